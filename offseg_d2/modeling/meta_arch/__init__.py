"""Meta-architectures: list of dicts in, losses or predictions out."""

from offseg_d2.modeling.meta_arch.inference import InferenceSettings, predict, window_origins
from offseg_d2.modeling.meta_arch.per_pixel_segmentor import PerPixelSegmentor

__all__ = ["InferenceSettings", "PerPixelSegmentor", "predict", "window_origins"]
