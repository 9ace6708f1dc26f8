"""Backbones: image -> {"res2", "res3", "res4", "res5"} at strides 4, 8, 16, 32."""

from offseg_d2.modeling.backbone.efficientformer_v2 import (
    EFFICIENTFORMER_V2_VARIANTS,
    EfficientFormerV2,
)
from offseg_d2.modeling.backbone.mit import MIT_VARIANTS, MiT
from offseg_d2.modeling.backbone.mscan import MSCAN, MSCAN_VARIANTS
from offseg_d2.modeling.backbone.swin import SWIN_VARIANTS, Swin
from offseg_d2.modeling.backbone.timm_backbone import TimmBackbone, build_timm_backbone
from offseg_d2.modeling.backbone.torchvision_backbone import TorchvisionMobileNetV2

__all__ = [
    "EFFICIENTFORMER_V2_VARIANTS",
    "MIT_VARIANTS",
    "MSCAN",
    "MSCAN_VARIANTS",
    "SWIN_VARIANTS",
    "EfficientFormerV2",
    "MiT",
    "Swin",
    "TimmBackbone",
    "TorchvisionMobileNetV2",
    "build_timm_backbone",
]
