"""Metrics under Detectron2's result keys, and as a table for the log."""

from collections.abc import Sequence

import numpy as np
from tabulate import tabulate

from .confusion import SegmentationMetrics, mean


def to_results(
    class_names: Sequence[str], metrics: SegmentationMetrics, boundary: np.ndarray | None = None
) -> dict[str, float]:
    """Metrics in percent.

    Args:
        class_names: of the K classes.
        metrics: of the data set.
        boundary: (K,) Boundary IoU of each class, a fraction; None if it was not asked for.

    Returns:
        mIoU, fwIoU, ``IoU-<class>``, mACC, pACC, ``ACC-<class>`` and, if asked for, mBIoU and
        ``BIoU-<class>``.
    """
    results = {"mIoU": 100 * metrics.miou, "fwIoU": 100 * metrics.fwiou}
    results |= _of_classes("IoU", class_names, metrics.iou)
    results |= {"mACC": 100 * metrics.macc, "pACC": 100 * metrics.pacc}
    results |= _of_classes("ACC", class_names, metrics.acc)
    if boundary is not None:
        results["mBIoU"] = 100 * mean(boundary)
        results |= _of_classes("BIoU", class_names, boundary)
    return results


def _of_classes(kind: str, class_names: Sequence[str], values: np.ndarray) -> dict[str, float]:
    return {
        f"{kind}-{name}": 100 * float(value)
        for name, value in zip(class_names, values, strict=True)
    }


def to_table(
    class_names: Sequence[str], metrics: SegmentationMetrics, boundary: np.ndarray | None = None
) -> str:
    """Table with one line per class and the means, in percent."""
    columns = {"IoU %": metrics.iou, "ACC %": metrics.acc, "label share %": metrics.label_share}
    means = [metrics.miou, metrics.macc, None]
    if boundary is not None:
        columns["BIoU %"] = boundary
        means.append(mean(boundary))
    rows = [
        [name, *(100 * value for value in values)]
        for name, *values in zip(class_names, *columns.values(), strict=True)
    ]
    rows.append(["mean", *(None if value is None else 100 * value for value in means)])
    table = tabulate(rows, headers=["class", *columns], floatfmt=".2f", missingval="-")
    return f"{table}\nfwIoU {100 * metrics.fwiou:.2f} %, pACC {100 * metrics.pacc:.2f} %"
