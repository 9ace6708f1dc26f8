"""A trained model at work: images, folders and videos to label maps and pictures."""

from offseg_d2.inference.predictor import Predictor
from offseg_d2.inference.segmenter import Segmentation, Segmenter

__all__ = ["Predictor", "Segmentation", "Segmenter"]
