"""Evaluation of semantic segmentation by a confusion matrix."""

from .confusion import SegmentationMetrics, count_confusion, metrics_from_confusion
from .sem_seg_evaluator import LabelReader, SemSegEvaluator

__all__ = [
    "LabelReader",
    "SegmentationMetrics",
    "SemSegEvaluator",
    "count_confusion",
    "metrics_from_confusion",
]
