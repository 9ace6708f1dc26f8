"""Confusion matrix of label maps and the metrics of semantic segmentation that follow from it.

K is the number of classes. Counts are 64-bit integers, summed over images, so that the result
does not depend on the order of the images or on how they are spread over processes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# "zero": a class that is predicted but absent from the ground truth counts as IoU 0 (the authors'
# rule). "skip": it is left out of the mean (Detectron2's rule).
ABSENT_CLASSES_RULES = ("zero", "skip")


def count_confusion(
    label: Tensor, prediction: Tensor, num_classes: int, ignore_value: int
) -> np.ndarray:
    """Count the pairs of label and prediction in one image.

    Args:
        label: (H, W) integer class ids of the ground truth.
        prediction: (H, W) integer class ids, on any device.
        num_classes: K.
        ignore_value: label of pixels that do not count at all.

    Returns:
        (K + 1, K + 1) int64; rows are labels, columns predictions. Ids outside 0..K-1 share the
        last row or column: such a pixel counts for the class on its other side only.
    """
    label = label.to(prediction.device).reshape(-1).long()
    prediction = prediction.reshape(-1).long()
    counted = label != ignore_value
    size = num_classes + 1
    row = _fold_foreign_ids(label[counted], num_classes)
    column = _fold_foreign_ids(prediction[counted], num_classes)
    counts = torch.bincount(row * size + column, minlength=size * size)
    return counts.reshape(size, size).cpu().numpy()


def _fold_foreign_ids(ids: Tensor, num_classes: int) -> Tensor:
    return torch.where((ids < 0) | (ids >= num_classes), num_classes, ids)


@dataclass(frozen=True)
class SegmentationMetrics:
    """Metrics as fractions in 0..1; NaN where nothing is there to be measured.

    Attributes:
        iou: (K,) intersection over union of each class.
        acc: (K,) share of each class's pixels that are found.
        label_share: (K,) share of each class in all labelled pixels.
        miou: mean of ``iou``.
        fwiou: mean of ``iou`` weighted by ``label_share``.
        macc: mean of ``acc``.
        pacc: share of all labelled pixels that are right.
    """

    iou: np.ndarray
    acc: np.ndarray
    label_share: np.ndarray
    miou: float
    fwiou: float
    macc: float
    pacc: float


def metrics_from_confusion(matrix: np.ndarray, absent_classes: str = "zero") -> SegmentationMetrics:
    """Metrics of a confusion matrix as :func:`count_confusion` returns it.

    Args:
        matrix: (K + 1, K + 1) counts, last row and column for ids outside 0..K-1.
        absent_classes: rule for classes that are predicted but absent from the ground truth, one
            of :data:`ABSENT_CLASSES_RULES`. Classes absent from both never count.

    Raises:
        ValueError: if the rule is unknown.
    """
    if absent_classes not in ABSENT_CLASSES_RULES:
        raise ValueError(
            f"`TEST.SEM_SEG.ABSENT_CLASSES` must be one of {list(ABSENT_CLASSES_RULES)}, "
            f"but is {absent_classes!r}."
        )
    hits = np.diagonal(matrix)[:-1].astype(np.float64)
    labelled = matrix[:-1].sum(axis=1).astype(np.float64)
    predicted = matrix[:, :-1].sum(axis=0).astype(np.float64)
    union = labelled + predicted - hits
    counted = (labelled > 0) if absent_classes == "skip" else (union > 0)
    iou = _divide(hits, np.where(counted, union, 0.0))
    acc = _divide(hits, labelled)
    label_share = _divide(labelled, np.full_like(labelled, labelled.sum()))
    return SegmentationMetrics(
        iou=iou,
        acc=acc,
        label_share=label_share,
        miou=_mean(iou),
        fwiou=float(np.nansum(iou * label_share)) if counted.any() else float("nan"),
        macc=_mean(acc),
        pacc=float(_divide(hits.sum(keepdims=True), labelled.sum(keepdims=True))[0]),
    )


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient, NaN where the denominator is 0."""
    result = np.full_like(numerator, np.nan)
    return np.divide(numerator, denominator, out=result, where=denominator > 0)


def _mean(values: np.ndarray) -> float:
    """Mean of all but NaN; NaN if nothing is left."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")
