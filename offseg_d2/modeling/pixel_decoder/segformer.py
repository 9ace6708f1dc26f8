"""The pixel decoder of SegFormer: every level to one width and one size, then mixed.

Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers",
NeurIPS 2021 (arXiv:2105.15203), section 3.2. In front of the offset classifier a max-pooling
halves the resolution (OffSeg, arXiv:2508.08811: not in its text, but in its models).
"""

from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn
from torch.nn import functional as F

from offseg_d2.modeling.pixel_decoder.build import PIXEL_DECODER_REGISTRY
from offseg_d2.modeling.pixel_decoder.level_fusion import LevelFusion

POOL_CHOICES = ("auto", "always", "never")


def conv_bn_relu(in_channels: int, out_channels: int) -> Conv2d:
    """1x1 convolution without bias, batch norm, ReLU; Kaiming-normal weights."""
    norm = nn.BatchNorm2d(out_channels)
    conv = Conv2d(in_channels, out_channels, 1, bias=False, norm=norm, activation=F.relu)
    c2_msra_fill(conv)
    return conv


@PIXEL_DECODER_REGISTRY.register()
class SegFormerPixelDecoder(nn.Module):
    """Fuses all levels into one map at the stride of the finest, or at twice that stride.

    Args:
        input_shape: channels and strides of the backbone's outputs, from fine to coarse.
        out_channels: channels of each level after reduction, and of the result.
        pool: halve the resolution of the result by max-pooling.
        linear_levels: reduce the levels by a 1x1 convolution alone, with bias, as the original
            SegFormer and Hugging Face's do; otherwise batch norm and ReLU follow.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        pool: bool = False,
        linear_levels: bool = False,
        out_channels: int = 256,
    ) -> None:
        super().__init__()
        self.in_features = list(input_shape)
        self.reduce = nn.ModuleList(
            nn.Conv2d(shape.channels, out_channels, 1)
            if linear_levels
            else conv_bn_relu(shape.channels, out_channels)
            for shape in input_shape.values()
        )
        norm = nn.BatchNorm2d(out_channels)
        self.fuse = LevelFusion([out_channels] * len(input_shape), out_channels, norm)
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
        self.out_channels = out_channels
        self.out_stride = next(iter(input_shape.values())).stride * (2 if pool else 1)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        choice = cfg.MODEL.SEGFORMER.POOL
        if choice not in POOL_CHOICES:
            raise ValueError(
                f"`MODEL.SEGFORMER.POOL` must be one of {list(POOL_CHOICES)}, but is {choice!r}."
            )
        is_offset = cfg.MODEL.SEM_SEG_HEAD.CLASSIFIER == "offset"
        return {
            "input_shape": input_shape,
            "out_channels": cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM,
            "pool": choice == "always" or (choice == "auto" and is_offset),
            "linear_levels": cfg.MODEL.SEGFORMER.LINEAR_LEVELS,
        }

    def forward(self, features: dict[str, Tensor]) -> list[Tensor]:
        """Fuse the levels.

        Args:
            features: "res2".."res5", (B, C_i, H / s_i, W / s_i); sizes need not halve exactly.

        Returns:
            one map, (B, out_channels, H / out_stride, W / out_stride).
        """
        # Reduced at their own size: a ReLU and a resize do not commute.
        levels = [
            reduce(features[name])
            for name, reduce in zip(self.in_features, self.reduce, strict=True)
        ]
        return [self.pool(self.fuse(levels))]
