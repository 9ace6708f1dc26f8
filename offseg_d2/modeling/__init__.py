"""Models; importing this package registers them with Detectron2.

Where Detectron2 is not installed, offset learning itself is there all the same, with torch alone.
"""

from offseg_d2._requirements import has_module
from offseg_d2.modeling.classifiers import (
    OffsetClassifier,
    OffsetMaskPredictor,
    PlainClassifier,
    PlainMaskPredictor,
    build_classifier,
    build_mask_predictor,
)
from offseg_d2.modeling.offset_learning import OffsetLearning
from offseg_d2.modeling.replace_classifier import replace_classifier

if has_module("detectron2"):
    from offseg_d2.modeling.backbone import (
        MSCAN,
        EfficientFormerV2,
        MiT,
        Swin,
        TimmBackbone,
        TorchvisionMobileNetV2,
    )
    from offseg_d2.modeling.build import available_device, build_model
    from offseg_d2.modeling.host_head import HostHead
    from offseg_d2.modeling.meta_arch import (
        AugmentedModel,
        InferenceSettings,
        LabelMapModel,
        MaskSegmentor,
        PerPixelSegmentor,
        Segmentor,
        build_evaluation_model,
    )
    from offseg_d2.modeling.pixel_decoder import (
        LightHamPixelDecoder,
        MSDeformAttnPixelDecoder,
        OffSegPixelDecoder,
        SegFormerPixelDecoder,
    )
    from offseg_d2.modeling.sem_seg_head import MaskFormerHead, PerPixelHead
    from offseg_d2.modeling.transformer_decoder import MaskedAttentionDecoder

__all__ = [
    "MSCAN",
    "AugmentedModel",
    "EfficientFormerV2",
    "HostHead",
    "InferenceSettings",
    "LabelMapModel",
    "LightHamPixelDecoder",
    "MSDeformAttnPixelDecoder",
    "MaskFormerHead",
    "MaskSegmentor",
    "MaskedAttentionDecoder",
    "MiT",
    "OffSegPixelDecoder",
    "OffsetClassifier",
    "OffsetLearning",
    "OffsetMaskPredictor",
    "PerPixelHead",
    "PerPixelSegmentor",
    "PlainClassifier",
    "PlainMaskPredictor",
    "SegFormerPixelDecoder",
    "Segmentor",
    "Swin",
    "TimmBackbone",
    "TorchvisionMobileNetV2",
    "available_device",
    "build_classifier",
    "build_evaluation_model",
    "build_mask_predictor",
    "build_model",
    "replace_classifier",
]
