"""Evaluation of semantic segmentation: scores, reports, predictions as files."""

from .boundary import boundary_iou, boundary_pixels, count_boundaries
from .class_ids import to_class_ids
from .confusion import SegmentationMetrics, count_confusion, metrics_from_confusion
from .observers import EvaluatedImage, EvaluationObserver
from .pictures import PictureWriter, read_photograph
from .report import EvaluationReport, RunInfo
from .sem_seg_evaluator import LabelReader, SemSegEvaluator
from .submission import PREDICTION_FORMATS, PredictionFolder

__all__ = [
    "PREDICTION_FORMATS",
    "EvaluatedImage",
    "EvaluationObserver",
    "EvaluationReport",
    "LabelReader",
    "PictureWriter",
    "PredictionFolder",
    "RunInfo",
    "SegmentationMetrics",
    "SemSegEvaluator",
    "boundary_iou",
    "boundary_pixels",
    "count_boundaries",
    "count_confusion",
    "metrics_from_confusion",
    "read_photograph",
    "to_class_ids",
]
