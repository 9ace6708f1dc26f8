"""Models; importing this package registers them with Detectron2."""

from offseg_d2.modeling.backbone import (
    MSCAN,
    EfficientFormerV2,
    MiT,
    TimmBackbone,
    TorchvisionMobileNetV2,
)
from offseg_d2.modeling.classifiers import OffsetClassifier, PlainClassifier, build_classifier
from offseg_d2.modeling.meta_arch import InferenceSettings, PerPixelSegmentor
from offseg_d2.modeling.offset_learning import OffsetLearning
from offseg_d2.modeling.pixel_decoder import (
    LightHamPixelDecoder,
    OffSegPixelDecoder,
    SegFormerPixelDecoder,
)
from offseg_d2.modeling.replace_classifier import HostHead, replace_classifier
from offseg_d2.modeling.sem_seg_head import PerPixelHead

__all__ = [
    "MSCAN",
    "EfficientFormerV2",
    "HostHead",
    "InferenceSettings",
    "LightHamPixelDecoder",
    "MiT",
    "OffSegPixelDecoder",
    "OffsetClassifier",
    "OffsetLearning",
    "PerPixelHead",
    "PerPixelSegmentor",
    "PlainClassifier",
    "SegFormerPixelDecoder",
    "TimmBackbone",
    "TorchvisionMobileNetV2",
    "build_classifier",
    "replace_classifier",
]
