"""Class weights from the frequencies of the classes in the training labels."""

import logging

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils import comm

from .datasets import require_registered
from .label_map import classes_of, count_ids, joint_metadata, label_lut_of, read_label_map

logger = logging.getLogger(__name__)

BALANCED = "balanced"
_MAX_LABELS = 500  # label maps that are read, evenly spread


def balance_class_weights(cfg: CfgNode) -> None:
    """Turn ``MODEL.SEM_SEG_HEAD.LOSS.CLASS_WEIGHTS`` "balanced" into numbers, and log them.

    ``w_k = N / (K n_k)`` with N labelled pixels of at most 500 label maps of ``DATASETS.TRAIN``,
    evenly spread, n_k of them of class k, and K the classes that occur; their mean over the pixels
    is 1. Classes that do not occur have 1. Nothing changes where the key has another value.

    Args:
        cfg: config, changed in place even if it is frozen.

    Raises:
        FileNotFoundError, ValueError: the datasets or their labels cannot be used.
    """
    if cfg.MODEL.SEM_SEG_HEAD.LOSS.CLASS_WEIGHTS != BALANCED:
        return
    for name in cfg.DATASETS.TRAIN:
        require_registered(name, "DATASETS.TRAIN")
    counts = _count_pixels(cfg) if comm.is_main_process() else None
    weights = _balanced(comm.all_gather(counts)[0])
    names = classes_of(joint_metadata(cfg.DATASETS.TRAIN))
    shown = ", ".join(f"{name} {weight:g}" for name, weight in zip(names, weights, strict=True))
    logger.info("Balanced class weights: %s", shown)
    was_frozen = cfg.is_frozen()
    cfg.defrost()
    cfg.MODEL.SEM_SEG_HEAD.LOSS.CLASS_WEIGHTS = weights
    if was_frozen:
        cfg.freeze()


def _count_pixels(cfg: CfgNode) -> np.ndarray:
    metadata = joint_metadata(cfg.DATASETS.TRAIN)
    samples = [sample for name in cfg.DATASETS.TRAIN for sample in DatasetCatalog.get(name)]
    labels = [s["sem_seg_file_name"] for s in samples if "sem_seg_file_name" in s]
    lut = label_lut_of(metadata)  # after the samples, which say what kind of files there is
    number = min(len(labels), _MAX_LABELS)
    counts = np.zeros(256, dtype=np.int64)
    for part in range(number):
        counts += count_ids(read_label_map(labels[part * len(labels) // number], lut))
    return counts[: len(classes_of(metadata))]


def _balanced(counts: np.ndarray) -> list[float]:
    occurring = max(np.count_nonzero(counts), 1)
    weights = counts.sum() / (occurring * np.maximum(counts, 1))
    return [round(float(w), 4) if n else 1.0 for w, n in zip(weights, counts, strict=True)]
