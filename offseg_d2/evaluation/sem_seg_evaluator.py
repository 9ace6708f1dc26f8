"""Evaluator of semantic segmentation with Detectron2's interface and result keys.

It replaces Detectron2's own ``SemSegEvaluator``, which fails on numpy 2 (its label reader passes
``copy=False`` to ``np.array``), keeps every prediction in memory and always writes them to disk.
Here an image leaves behind its counts, and nothing else unless predictions are asked for.
"""

import json
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch import Tensor

from .boundary import boundary_iou, count_boundaries
from .class_ids import to_class_ids
from .confusion import check_absent_classes, count_confusion, metrics_from_confusion
from .observers import EvaluatedImage, EvaluationObserver
from .results import to_results, to_table

logger = logging.getLogger(__name__)

LabelReader = Callable[[Mapping[str, Any]], np.ndarray]


class SemSegEvaluator(DatasetEvaluator):
    """Mean IoU and its relatives over a data set, at the size of the label maps.

    An image, identified by its "file_name", counts once even if a sampler delivers it several
    times, to one process or to several.

    Attributes:
        confusion_matrix: (K + 1, K + 1) int64, on the main process after :meth:`evaluate` the sum
            over all images; rows are labels, columns predictions, the last of each ids outside
            0..K-1.

    Args:
        class_names: names of the K classes, in the order of their ids.
        ignore_value: label of pixels that do not count.
        read_label: returns the (H, W) class ids of the ground truth for an input dict.
        absent_classes: ``"zero"`` or ``"skip"``, see :mod:`.confusion`.
        boundary: measure the Boundary IoU too, see :mod:`.boundary`.
        observers: shown every image that is counted, see :mod:`.observers`.
        distributed: sum over all processes.
        output_dir: where to write predictions as run-length encoded JSON with class ids as
            category ids; None writes nothing.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        ignore_value: int,
        read_label: LabelReader,
        *,
        absent_classes: str = "zero",
        boundary: bool = False,
        observers: Sequence[EvaluationObserver] = (),
        distributed: bool = True,
        output_dir: str | None = None,
    ) -> None:
        self.class_names = list(class_names)
        self.ignore_value = ignore_value
        self.read_label = read_label
        self.absent_classes = check_absent_classes(absent_classes)
        self.boundary = boundary
        self.observers = list(observers)
        self.distributed = distributed
        self.output_dir = output_dir
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        num_classes = len(self.class_names)
        self.confusion_matrix = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
        self._num_delivered = 0
        # By file name: indices and values of the counts that are not zero, a few kilobytes.
        self._image_counts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._segments: dict[str, list[dict[str, Any]]] = {}
        for observer in self.observers:
            observer.reset()

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
        for sample, output in zip(inputs, outputs, strict=True):
            name = sample["file_name"]
            self._num_delivered += 1
            if name in self._image_counts:
                continue
            prediction = to_class_ids(output["sem_seg"], len(self.class_names), name)
            label = np.asarray(self.read_label(sample))
            if label.shape != prediction.shape:
                raise ValueError(
                    f"The prediction for `{name}` must have the size of its label map, "
                    f"(height, width) = {label.shape}, but has {prediction.shape}."
                )
            counts = self._count(name, label, prediction)
            for observer in self.observers:
                observer.process(EvaluatedImage(name, label, prediction, counts))
            if self.output_dir is not None:
                self._segments[name] = self._encode(name, prediction)

    def _count(self, name: str, label: np.ndarray, prediction: np.ndarray) -> np.ndarray:
        """Count one image; returns its confusion matrix."""
        settings = len(self.class_names), self.ignore_value
        matrix = count_confusion(label, prediction, *settings)
        counts = matrix.ravel()
        if self.boundary:
            boundary = count_boundaries(label, prediction, *settings)
            counts = np.concatenate([counts, boundary.ravel()])
        indices = np.flatnonzero(counts)
        self._image_counts[name] = indices, counts[indices]
        return matrix

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Metrics over all images and processes.

        Returns:
            ``{"sem_seg": {...}}`` with the keys of :func:`.results.to_results` in percent, NaN for
            what the data set does not hold; None on processes other than the main one.

        Raises:
            ValueError: if no image was counted.
        """
        if self.distributed:
            comm.synchronize()
        num_delivered = self._gather({comm.get_rank(): self._num_delivered})
        image_counts = self._gather(self._image_counts)
        segments = self._gather(self._segments)
        states = [self._gather(observer.state()) for observer in self.observers]
        if not comm.is_main_process():
            return None
        if not image_counts:
            raise ValueError("The data set to evaluate on must hold images, but none was counted.")
        num_repeated = sum(num_delivered.values()) - len(image_counts)
        if num_repeated:
            logger.warning(
                "Images were delivered again %d times; each was counted once.", num_repeated
            )
        self.confusion_matrix, boundary_counts = self._sum(image_counts)
        metrics = metrics_from_confusion(self.confusion_matrix, self.absent_classes)
        boundary = boundary_iou(boundary_counts, self.absent_classes) if self.boundary else None
        table = to_table(self.class_names, metrics, boundary)
        logger.info("Evaluation of %d images:\n%s", len(image_counts), table)
        if self.output_dir is not None:
            _write_segments(self.output_dir, [s for parts in segments.values() for s in parts])
        results = to_results(self.class_names, metrics, boundary)
        for observer, images in zip(self.observers, states, strict=True):
            observer.finish(results, self.confusion_matrix, images)
        return OrderedDict(sem_seg=results)

    def _gather(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        """Values of all processes on the main one, sorted; the lowest rank's of equal keys."""
        parts = comm.gather(dict(values)) if self.distributed else [values]
        merged: dict[Any, Any] = {}
        for part in reversed(parts):
            merged |= part
        return dict(sorted(merged.items()))

    def _sum(
        self, image_counts: Mapping[str, tuple[np.ndarray, np.ndarray]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Confusion matrix (K + 1, K + 1) and boundary counts (3, K) of all images."""
        shape, num_classes = self.confusion_matrix.shape, len(self.class_names)
        counts = np.zeros((num_classes + 1) ** 2 + 3 * num_classes, dtype=np.int64)
        for indices, values in image_counts.values():
            counts[indices] += values
        matrix, boundary = np.split(counts, [(num_classes + 1) ** 2])
        return matrix.reshape(shape), boundary.reshape(3, num_classes)

    @staticmethod
    def _encode(name: str, class_ids: np.ndarray) -> list[dict[str, Any]]:
        """One COCO-style segment for each class that the prediction holds."""
        from pycocotools import mask as mask_utils  # only needed for this

        segments = []
        for class_id in np.unique(class_ids):
            encoded = mask_utils.encode(np.asfortranarray(class_ids == class_id, dtype=np.uint8))
            encoded["counts"] = encoded["counts"].decode("ascii")
            segments.append(
                {
                    "file_name": name,
                    "category_id": int(class_id),
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
