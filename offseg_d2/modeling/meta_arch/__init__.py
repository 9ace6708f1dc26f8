"""Meta-architectures: list of dicts in, losses or predictions out."""

from offseg_d2.modeling.meta_arch.evaluation_model import (
    AugmentationSettings,
    AugmentedModel,
    LabelMapModel,
    build_evaluation_model,
)
from offseg_d2.modeling.meta_arch.inference import InferenceSettings, predict, window_origins
from offseg_d2.modeling.meta_arch.mask_segmentor import MaskSegmentor, QueryScores
from offseg_d2.modeling.meta_arch.per_pixel_segmentor import PerPixelSegmentor
from offseg_d2.modeling.meta_arch.segmentor import Segmentor

__all__ = [
    "AugmentationSettings",
    "AugmentedModel",
    "InferenceSettings",
    "LabelMapModel",
    "MaskSegmentor",
    "PerPixelSegmentor",
    "QueryScores",
    "Segmentor",
    "build_evaluation_model",
    "predict",
    "window_origins",
]
