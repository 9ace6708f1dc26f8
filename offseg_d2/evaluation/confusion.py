"""Confusion matrix of label maps and the metrics of semantic segmentation that follow from it.

K is the number of classes. Counts are 64-bit integers, summed over images, so that the result
does not depend on the order of the images or on how they are spread over processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from torch import Tensor

# "zero": a class that is predicted but absent from the ground truth counts as IoU 0 (the authors'
# rule). "skip": it is left out of the mean (Detectron2's rule).
ABSENT_CLASSES_RULES = ("zero", "skip")

_EXACT_IN_FLOAT32 = 2**24


def count_confusion(
    label: np.ndarray | Tensor, prediction: np.ndarray | Tensor, num_classes: int, ignore_value: int
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
    size = num_classes + 1
    rows, columns = fold_ids(label, prediction, num_classes, ignore_value)
    return histogram([rows, columns], (size + 1, size))[:size]  # the last row was ignored


def fold_ids(
    label: np.ndarray | Tensor, prediction: np.ndarray | Tensor, num_classes: int, ignore_value: int
) -> tuple[np.ndarray, np.ndarray]:
    """Map ids to what is counted, in the smallest unsigned type.

    Returns:
        label and prediction, (H, W) each: 0..K-1 as they are, K for all other ids, and K + 1 for
        labels that are ignored.
    """
    rows = _fold(_as_array(label), num_classes, ignore_value)
    return rows, _fold(_as_array(prediction), num_classes)


def _as_array(ids: np.ndarray | Tensor) -> np.ndarray:
    return ids.cpu().numpy() if isinstance(ids, Tensor) else np.asarray(ids)


def _fold(ids: np.ndarray, num_classes: int, ignore_value: int | None = None) -> np.ndarray:
    """A copy with K in place of ids outside 0..K-1, and K + 1 in place of ``ignore_value``."""
    # Looking first spares temporary maps of 64-bit numbers, which cost more than all the counting.
    if ids.dtype != np.uint8 and ids.size and 0 <= ids.min() <= ids.max() <= 255:
        ids = ids.astype(np.uint8)
    if ids.dtype == np.uint8 and num_classes < 255:
        table = np.minimum(np.arange(256), num_classes).astype(np.uint8)
        if ignore_value is not None and 0 <= ignore_value <= 255:
            table[ignore_value] = num_classes + 1
        return cv2.LUT(ids, table) if ids.size else ids
    ids = ids.astype(np.int64)
    folded = np.where((ids < 0) | (ids >= num_classes), num_classes, ids)
    if ignore_value is not None:
        folded[ids == ignore_value] = num_classes + 1
    return folded.astype(np.min_scalar_type(num_classes + 1))


def histogram(
    maps: Sequence[np.ndarray], sizes: Sequence[int], mask: np.ndarray | None = None
) -> np.ndarray:
    """Count the pixels with each combination of ids.

    Args:
        maps: one or two (H, W) arrays of unsigned integers, each below its size.
        sizes: of the result.
        mask: (H, W) bool, the pixels to count; None counts all.

    Returns:
        int64 counts, of shape ``sizes``.
    """
    counts = np.zeros(tuple(sizes), dtype=np.int64)
    height, width = maps[0].shape
    if maps[0].dtype != np.uint8:  # more classes than OpenCV takes
        selected = [ids.ravel() if mask is None else ids[mask] for ids in maps]
        index = np.ravel_multi_index([ids.astype(np.int64) for ids in selected], counts.shape)
        return np.bincount(index, minlength=counts.size).reshape(counts.shape)
    # OpenCV counts in 32-bit floats, exactly up to 2^24: images are taken in parts of fewer pixels.
    rows = max(1, _EXACT_IN_FLOAT32 // max(width, 1))
    ranges = [bound for size in sizes for bound in (0, size)]
    for top in range(0, height if width else 0, rows):
        part = slice(top, top + rows)
        counted = None if mask is None else mask[part].view(np.uint8)
        images, channels = [ids[part] for ids in maps], list(range(len(maps)))
        found = cv2.calcHist(images, channels, counted, list(sizes), ranges)
        counts += found.reshape(counts.shape).astype(np.int64)
    return counts


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


def check_absent_classes(rule: str) -> str:
    """Return ``rule`` if it is one of :data:`ABSENT_CLASSES_RULES`.

    Raises:
        ValueError: it is not.
    """
    if rule not in ABSENT_CLASSES_RULES:
        raise ValueError(
            f"`TEST.SEM_SEG.ABSENT_CLASSES` must be one of {list(ABSENT_CLASSES_RULES)}, "
            f"but is {rule!r}."
        )
    return rule


def metrics_from_confusion(matrix: np.ndarray, absent_classes: str = "zero") -> SegmentationMetrics:
    """Metrics of a confusion matrix as :func:`count_confusion` returns it.

    Args:
        matrix: (K + 1, K + 1) counts, last row and column for ids outside 0..K-1.
        absent_classes: rule for classes that are predicted but absent from the ground truth, one
            of :data:`ABSENT_CLASSES_RULES`. Classes absent from both never count.

    Raises:
        ValueError: if the rule is unknown.
    """
    check_absent_classes(absent_classes)
    hits = np.diagonal(matrix)[:-1].astype(np.float64)
    labelled = matrix[:-1].sum(axis=1).astype(np.float64)
    predicted = matrix[:, :-1].sum(axis=0).astype(np.float64)
    union = labelled + predicted - hits
    counted = (labelled > 0) if absent_classes == "skip" else (union > 0)
    iou = divide(hits, np.where(counted, union, 0.0))
    acc = divide(hits, labelled)
    label_share = divide(labelled, np.full_like(labelled, labelled.sum()))
    return SegmentationMetrics(
        iou=iou,
        acc=acc,
        label_share=label_share,
        miou=mean(iou),
        fwiou=float(np.nansum(iou * label_share)) if counted.any() else float("nan"),
        macc=mean(acc),
        pacc=float(divide(hits.sum(keepdims=True), labelled.sum(keepdims=True))[0]),
    )


def divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient of float64 arrays, NaN where the denominator is 0."""
    result = np.full_like(numerator, np.nan)
    return np.divide(numerator, denominator, out=result, where=denominator > 0)


def mean(values: np.ndarray) -> float:
    """Mean of all but NaN; NaN if nothing is left."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")
