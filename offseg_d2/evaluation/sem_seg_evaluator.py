"""Evaluator of semantic segmentation with Detectron2's interface and result keys.

It replaces Detectron2's own ``SemSegEvaluator``, which fails on numpy 2 (its label reader passes
``copy=False`` to ``np.array``), keeps every prediction in memory and always writes them to disk.
Here nothing is kept but a (K+1, K+1) matrix of counts, unless predictions are asked for.
"""

import json
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from tabulate import tabulate
from torch import Tensor

from .confusion import (
    ABSENT_CLASSES_RULES,
    SegmentationMetrics,
    count_confusion,
    metrics_from_confusion,
)

logger = logging.getLogger(__name__)

LabelReader = Callable[[Mapping[str, Any]], np.ndarray]


class SemSegEvaluator(DatasetEvaluator):
    """Mean IoU and its relatives over a data set, at the size of the label maps.

    Attributes:
        confusion_matrix: (K + 1, K + 1) int64 after :meth:`evaluate`, on the main process the sum
            over all processes; rows are labels, columns predictions, the last of each ids outside
            0..K-1.

    Args:
        class_names: names of the K classes, in the order of their ids.
        ignore_value: label of pixels that do not count.
        read_label: returns the (H, W) class ids of the ground truth for an input dict.
        absent_classes: ``"zero"`` or ``"skip"``, see :mod:`.confusion`.
        distributed: whether to sum over all processes.
        output_dir: where to write predictions as run-length encoded JSON; None writes nothing.
        dataset_ids: category id of each class in that file; None means the class id itself.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        ignore_value: int,
        read_label: LabelReader,
        *,
        absent_classes: str = "zero",
        distributed: bool = True,
        output_dir: str | None = None,
        dataset_ids: Sequence[int] | None = None,
    ) -> None:
        if absent_classes not in ABSENT_CLASSES_RULES:
            raise ValueError(
                f"`TEST.SEM_SEG.ABSENT_CLASSES` must be one of {list(ABSENT_CLASSES_RULES)}, "
                f"but is {absent_classes!r}."
            )
        self.class_names = list(class_names)
        self.ignore_value = ignore_value
        self.read_label = read_label
        self.absent_classes = absent_classes
        self.distributed = distributed
        self.output_dir = output_dir
        self.dataset_ids = list(range(len(class_names)) if dataset_ids is None else dataset_ids)
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        size = len(self.class_names) + 1
        self._counts = np.zeros((size, size), dtype=np.int64)
        self._num_images = 0
        self._segments: list[dict[str, Any]] = []
        self.confusion_matrix = self._counts

    def process(
        self, inputs: Iterable[Mapping[str, Any]], outputs: Iterable[Mapping[str, Tensor]]
    ) -> None:
        """Count one batch.

        Args:
            inputs: dicts with "file_name", as given to the model.
            outputs: dicts with "sem_seg": (K, H, W) scores, or (H, W) integer class ids.

        Raises:
            ValueError: if a prediction has another size than its label map or another K.
        """
        for record, output in zip(inputs, outputs, strict=True):
            prediction = self._to_class_ids(record, output["sem_seg"])
            label = np.asarray(self.read_label(record))
            if label.shape != tuple(prediction.shape):
                raise ValueError(
                    f"The prediction for `{record.get('file_name')}` must have the size of its "
                    f"label map, (height, width) = {label.shape}, but has "
                    f"{tuple(prediction.shape)}."
                )
            self._counts += count_confusion(
                torch.from_numpy(label.astype(np.int64)),
                prediction,
                len(self.class_names),
                self.ignore_value,
            )
            self._num_images += 1
            if self.output_dir is not None:
                self._segments += self._encode(record, prediction)

    def _to_class_ids(self, record: Mapping[str, Any], sem_seg: Tensor) -> Tensor:
        if sem_seg.dim() == 2 and not sem_seg.is_floating_point():
            return sem_seg
        if sem_seg.dim() != 3 or sem_seg.shape[0] != len(self.class_names):
            raise ValueError(
                f"The prediction for `{record.get('file_name')}` must be "
                f"({len(self.class_names)}, H, W) scores or an (H, W) integer map, but is a "
                f"{tuple(sem_seg.shape)} tensor of {sem_seg.dtype}."
            )
        return sem_seg.argmax(dim=0)

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Metrics over all images and processes.

        Returns:
            ``{"sem_seg": {...}}`` with mIoU, fwIoU, mACC, pACC, ``IoU-<class>`` and
            ``ACC-<class>`` in percent, NaN for what the data set does not hold; None on processes
            other than the main one.

        Raises:
            ValueError: if no image was counted.
        """
        counts, num_images, segments = self._gather()
        if not comm.is_main_process():
            return None
        if num_images == 0:
            raise ValueError("The data set to evaluate on must hold images, but none was counted.")
        self.confusion_matrix = counts
        metrics = metrics_from_confusion(counts, self.absent_classes)
        if self.output_dir is not None:
            _write_segments(self.output_dir, segments)
        logger.info("Evaluation of %d images:\n%s", num_images, self._table(metrics))
        return OrderedDict(sem_seg=self._results(metrics))

    def _gather(self) -> tuple[np.ndarray, int, list[dict[str, Any]]]:
        own = (self._counts, self._num_images, self._segments)
        if not self.distributed:
            return own
        comm.synchronize()
        gathered = comm.gather(own)
        if not gathered:  # not the main process
            return own
        counts, numbers, segments = zip(*gathered, strict=True)
        return np.sum(counts, axis=0), sum(numbers), [item for part in segments for item in part]

    def _results(self, metrics: SegmentationMetrics) -> dict[str, float]:
        results = {"mIoU": 100 * metrics.miou, "fwIoU": 100 * metrics.fwiou}
        for name, iou in zip(self.class_names, metrics.iou, strict=True):
            results[f"IoU-{name}"] = 100 * float(iou)
        results |= {"mACC": 100 * metrics.macc, "pACC": 100 * metrics.pacc}
        for name, acc in zip(self.class_names, metrics.acc, strict=True):
            results[f"ACC-{name}"] = 100 * float(acc)
        return results

    def _table(self, metrics: SegmentationMetrics) -> str:
        columns = (metrics.iou, metrics.acc, metrics.label_share)
        rows = [
            (name, *(100 * value for value in values))
            for name, *values in zip(self.class_names, *columns, strict=True)
        ]
        rows.append(("mean", 100 * metrics.miou, 100 * metrics.macc, None))
        table = tabulate(
            rows,
            headers=("class", "IoU %", "ACC %", "label share %"),
            floatfmt=".2f",
            missingval="-",
        )
        return f"{table}\nfwIoU {100 * metrics.fwiou:.2f} %, pACC {100 * metrics.pacc:.2f} %"

    def _encode(self, record: Mapping[str, Any], prediction: Tensor) -> list[dict[str, Any]]:
        """One COCO-style segment for each class that the prediction holds."""
        from pycocotools import mask as mask_utils  # only needed for this

        class_ids = prediction.cpu().numpy()
        segments = []
        for class_id in np.unique(class_ids):
            encoded = mask_utils.encode(np.asfortranarray(class_ids == class_id, dtype=np.uint8))
            encoded["counts"] = encoded["counts"].decode("ascii")
            segments.append(
                {
                    "file_name": record["file_name"],
                    "category_id": self.dataset_ids[int(class_id)],
                    "segmentation": encoded,
                }
            )
        return segments


def _write_segments(output_dir: str, segments: list[dict[str, Any]]) -> None:
    PathManager.mkdirs(output_dir)
    path = os.path.join(output_dir, "sem_seg_predictions.json")
    with PathManager.open(path, "w") as file:
        json.dump(segments, file)
    logger.info("Wrote the predictions to %s", path)
