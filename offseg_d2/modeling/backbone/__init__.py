"""Backbones: image -> {"res2", "res3", "res4", "res5"} at strides 4, 8, 16, 32."""

from offseg_d2.modeling.backbone.efficientformer_v2 import (
    EFFICIENTFORMER_V2_VARIANTS,
    EfficientFormerV2,
)
from offseg_d2.modeling.backbone.mit import MIT_VARIANTS, MiT
from offseg_d2.modeling.backbone.mscan import MSCAN, MSCAN_VARIANTS

__all__ = [
    "EFFICIENTFORMER_V2_VARIANTS",
    "MIT_VARIANTS",
    "MSCAN",
    "MSCAN_VARIANTS",
    "EfficientFormerV2",
    "MiT",
]
