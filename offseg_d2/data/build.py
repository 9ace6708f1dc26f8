"""Loaders of training and test samples.

``SOLVER.IMS_PER_BATCH`` counts the images of one forward and backward pass over all processes. An
iteration (one optimizer step) takes ``SOLVER.ACCUMULATION_STEPS`` such batches from the training
loader, so that iteration ``i`` begins at position
``i * ACCUMULATION_STEPS * IMS_PER_BATCH`` of the order in :mod:`offseg_d2.data.sampler`.
"""

import itertools
import logging
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import cv2
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetFromList, Metadata, MetadataCatalog
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm
from detectron2.utils.logger import log_first_n
from torch.utils.data import DataLoader, Dataset

from .batches import Sample, collate
from .dataset_mapper import build_mapper
from .datasets import require_registered
from .image_io import DataFileError
from .label_map import (
    IGNORE_LABEL,
    classes_of,
    describe_label_map,
    joint_metadata,
    label_map_of,
)
from .loader import ClassOccurrence, SampleLoader, UnusableSample
from .sampler import TrainingBatchSampler, sample_rng

logger = logging.getLogger(__name__)

_PREFETCH_BATCHES = 4
_FIRST_LABEL_MAPS = 1000  # after which absent classes are reported


def build_train_loader(cfg: CfgNode, start_iter: int = 0) -> SampleLoader:
    """Build the endless loader of this process' share of the training batches.

    With a negative ``SEED`` a random one is drawn, shared by all processes and logged. Where
    ``MODEL.DEVICE`` is CUDA, the samples' tensors are on it already.

    Args:
        cfg: whole config.
        start_iter: iteration (optimizer step) that the run starts or resumes with.

    Raises:
        ValueError: config and dataset disagree, or a key cannot be used.
        FileNotFoundError: the dataset is not where it was looked for.
    """
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise ValueError(
            f"`DATALOADER.SAMPLER_TRAIN` must be 'TrainingSampler', "
            f"but is {cfg.DATALOADER.SAMPLER_TRAIN!r}."
        )
    for name in cfg.DATASETS.TRAIN:
        require_registered(name, "DATASETS.TRAIN")
    metadata = joint_metadata(cfg.DATASETS.TRAIN)
    _check_classes(cfg, metadata)
    _check_every_class_has_an_id(metadata)
    samples = list(itertools.chain.from_iterable(_samples(n) for n in cfg.DATASETS.TRAIN))
    unlabelled = next((s["file_name"] for s in samples if "sem_seg_file_name" not in s), None)
    if unlabelled is not None:
        raise DataFileError(
            f"`DATASETS.TRAIN` must name data sets with label files, but '{unlabelled}' has none."
        )
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    sampler = TrainingBatchSampler(
        len(samples),
        cfg.SOLVER.IMS_PER_BATCH,
        seed=seed,
        start_batch=start_iter * cfg.SOLVER.ACCUMULATION_STEPS,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
    )
    mapper = build_mapper(cfg, is_train=True)
    logger.info(
        f"Training on {len(samples)} images of {', '.join(cfg.DATASETS.TRAIN)}, "
        f"{cfg.SOLVER.IMS_PER_BATCH} a batch ({sampler.batch_size} a process), "
        f"data seed {seed}, from iteration {start_iter}."
    )
    logger.info(f"Label map: {describe_label_map(metadata)}.")
    logger.info(f"Training augmentations: {mapper.augmentations}.")
    device = torch.device(cfg.MODEL.DEVICE if _uses_cuda(cfg) else "cpu")
    if mapper.on_device is not None:
        logger.info(f"On {device}: {mapper.on_device}.")
    dataset = _TrainingDataset(DatasetFromList(samples, copy=False), mapper, seed)
    workers = cfg.DATALOADER.NUM_WORKERS
    prefetch = _PREFETCH_BATCHES if workers > 0 else None
    return SampleLoader(
        _build_loader(cfg, dataset, batch_sampler=sampler, prefetch_factor=prefetch),
        device=device,
        augmentation=mapper.on_device,
        occurrence=ClassOccurrence(classes_of(metadata), min(_FIRST_LABEL_MAPS, len(samples))),
    )


def build_test_loader(cfg: CfgNode, dataset_name: str) -> SampleLoader:
    """Build the loader of this process' share of a test set, one image a batch.

    Over all processes each image comes exactly once; with ``TEST.SUBSET`` each of that many, which
    are spread evenly over the set.

    Raises:
        ValueError: config and dataset disagree, or a key cannot be used.
        FileNotFoundError: the dataset is not where it was looked for.
    """
    require_registered(dataset_name, "DATASETS.TEST")
    metadata = MetadataCatalog.get(dataset_name)
    _check_classes(cfg, metadata)
    samples = _subset(_samples(dataset_name), cfg.TEST.SUBSET)
    logger.info(f"Testing on {len(samples)} images of {dataset_name}.")
    logger.info(f"Label map: {describe_label_map(metadata)}.")
    mapper = build_mapper(cfg, is_train=False)
    dataset = _MappedDataset(DatasetFromList(samples, copy=False), mapper)
    loader = _build_loader(cfg, dataset, batch_size=1, sampler=InferenceSampler(len(samples)))
    return SampleLoader(loader)


class _MappedDataset(Dataset):
    """Samples through the mapper; a bad file becomes an :class:`UnusableSample`."""

    def __init__(self, samples: DatasetFromList, mapper: Callable[[Sample], Sample]) -> None:
        self.samples, self.mapper = samples, mapper

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample | UnusableSample:
        try:
            return self.mapper(self.samples[index])
        except DataFileError as error:
            return UnusableSample(str(error))


class _TrainingDataset(_MappedDataset):
    """Takes (position, index); the position seeds the augmentation."""

    def __init__(
        self, samples: DatasetFromList, mapper: Callable[[Sample], Sample], seed: int
    ) -> None:
        super().__init__(samples, mapper)
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> Sample | UnusableSample:
        position, index = key
        with sample_rng(self.seed, position):
            return super().__getitem__(index)


def _samples(dataset_name: str) -> list[Sample]:
    samples = DatasetCatalog.get(dataset_name)
    if not samples:
        raise ValueError(f"Dataset '{dataset_name}' must hold at least one image, but is empty.")
    return samples


def _subset(samples: list[Sample], number: int) -> list[Sample]:
    """Return the middles of ``number`` equal parts; all samples for 0, or where there are fewer."""
    if number < 0:
        raise ValueError(f"`TEST.SUBSET` must be at least 0, but is {number!r}.")
    if not 0 < number < len(samples):
        return samples
    return [samples[(2 * part + 1) * len(samples) // (2 * number)] for part in range(number)]


def _check_classes(cfg: CfgNode, metadata: Metadata) -> None:
    head = cfg.MODEL.SEM_SEG_HEAD
    num_classes = len(classes_of(metadata))
    if num_classes != head.NUM_CLASSES:
        raise ValueError(
            f"`MODEL.SEM_SEG_HEAD.NUM_CLASSES` must be {num_classes} for dataset "
            f"'{metadata.name}', but is {head.NUM_CLASSES}."
        )
    if num_classes == 1:
        log_first_n(
            logging.WARNING,
            f"Dataset '{metadata.name}' has the one class '{classes_of(metadata)[0]}': with no "
            f"other to confuse it with, mIoU is 100 whatever is learned. Make the background a "
            f"class of its own instead of ignoring it.",
            name=__name__,
            key="message",
        )
    for raw_id, train_id in label_map_of(metadata).items():
        if train_id >= num_classes and train_id != IGNORE_LABEL:
            raise ValueError(
                f"The `label_map` of dataset '{metadata.name}' must map to train ids below "
                f"{num_classes} or to {IGNORE_LABEL}, but maps {raw_id} to {train_id}."
            )
    if head.IGNORE_VALUE != IGNORE_LABEL:
        raise ValueError(
            f"`MODEL.SEM_SEG_HEAD.IGNORE_VALUE` must be {IGNORE_LABEL}, the value that "
            f"label maps give ignored pixels, but is {head.IGNORE_VALUE}."
        )


def _check_every_class_has_an_id(metadata: Metadata) -> None:
    names = classes_of(metadata)
    missing = set(range(len(names))) - set(label_map_of(metadata).values())
    if missing:
        shown = ", ".join(repr(names[index]) for index in sorted(missing))
        raise ValueError(
            f"The `label_map` of dataset '{metadata.name}' must give every class an id to be "
            f"trained on, but gives none to {shown}."
        )


def _uses_cuda(cfg: CfgNode) -> bool:
    return torch.cuda.is_available() and cfg.MODEL.DEVICE.startswith("cuda")


def _build_loader(cfg: CfgNode, dataset: Dataset, **kwargs: Any) -> DataLoader:
    # Workers live as long as an iteration: endless in training, one pass at test. Persistent ones
    # would stay behind after it, and after an error.
    return DataLoader(
        dataset,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=collate,
        worker_init_fn=_init_worker,
        pin_memory=_uses_cuda(cfg),
        # Its own generator: starting to iterate must not draw from the model's random numbers.
        generator=torch.Generator(),
        **kwargs,
    )


def _init_worker(worker_id: int) -> None:
    """Leave signals to the trainer, which finishes its iteration and saves; keep to one thread.

    A cluster signals all processes of a job. A worker that died of it would take the trainer down
    before it has saved.
    """
    for signum in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)
    # Blocked, so that the thread below receives it with its sender. Ignoring it is no choice:
    # that is how the trainer itself ends its workers, and waits for them.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_obey_sigterm_of, args=(os.getppid(),), daemon=True).start()
    cv2.setNumThreads(0)


def _obey_sigterm_of(trainer_pid: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer_pid:
        pass
    os._exit(0)
