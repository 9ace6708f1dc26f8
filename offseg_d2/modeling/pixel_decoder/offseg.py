"""The pixel decoder of OffSeg: FreqFusion from the coarsest level to the finest.

OffSeg, ICCV 2025 (arXiv:2508.08811). Each level is first reduced by a 1x1 convolution; then the
running map is upsampled by FreqFusion and joined with the next finer level, three times; a last
1x1 convolution mixes all channels.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn
from torch.nn import functional as F

from offseg_d2.layers import FreqFusion
from offseg_d2.modeling.pixel_decoder.build import PIXEL_DECODER_REGISTRY

INTERLEAVE_GROUPS = 4
NORM_GROUPS = 32


def conv_norm_relu(in_channels: int, out_channels: int) -> Conv2d:
    """1x1 convolution without bias, GroupNorm(32), ReLU; Kaiming-normal weights."""
    norm = nn.GroupNorm(NORM_GROUPS, out_channels)
    conv = Conv2d(in_channels, out_channels, 1, bias=False, norm=norm, activation=F.relu)
    c2_msra_fill(conv)
    return conv


def interleave_channels(first: Tensor, second: Tensor, groups: int = INTERLEAVE_GROUPS) -> Tensor:
    """Concatenate two maps group by group: [first_0, second_0, first_1, second_1, ...].

    So each channel group of the next FreqFusion's sampler holds channels of both.

    Args:
        first: (B, C1, H, W).
        second: (B, C2, H, W).
        groups: number of contiguous channel groups, a divisor of C1 and C2.

    Returns:
        (B, C1 + C2, H, W).
    """
    pair = [x.unflatten(1, (groups, -1)) for x in (first, second)]
    return torch.cat(pair, dim=2).flatten(1, 2)


@PIXEL_DECODER_REGISTRY.register()
class OffSegPixelDecoder(nn.Module):
    """Fuses "res2".."res5" into one map at stride 4.

    Args:
        input_shape: channels and strides of the backbone's outputs, from fine to coarse; strides
            must double from level to level.
        level_channels: channels of each level after reduction, from fine to coarse; multiples of
            32 (group norm).
        out_channels: channels of the result.

    Raises:
        ValueError: if the numbers of levels differ, the strides do not double, or channels are no
            multiples of 32.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        level_channels: Sequence[int],
        out_channels: int = 256,
    ) -> None:
        super().__init__()
        if len(input_shape) != len(level_channels):
            raise ValueError(
                f"`MODEL.OFFSEG.LEVEL_CHANNELS` must have one entry for each of "
                f"{list(input_shape)}, but is {list(level_channels)}."
            )
        strides = [shape.stride for shape in input_shape.values()]
        if any(2 * fine != coarse for fine, coarse in pairwise(strides)):
            raise ValueError(
                "`MODEL.SEM_SEG_HEAD.IN_FEATURES` of OffSegPixelDecoder must have strides that "
                f"double from level to level, but they are {strides}."
            )
        if any(channels % NORM_GROUPS for channels in level_channels):
            raise ValueError(
                f"`MODEL.OFFSEG.LEVEL_CHANNELS` must be multiples of {NORM_GROUPS}, but is "
                f"{list(level_channels)}."
            )
        if out_channels % NORM_GROUPS:
            raise ValueError(
                f"`MODEL.SEM_SEG_HEAD.CONVS_DIM` must be a multiple of {NORM_GROUPS}, but is "
                f"{out_channels}."
            )
        self.in_features = list(input_shape)
        self.reduce = nn.ModuleList(
            conv_norm_relu(shape.channels, channels)
            for shape, channels in zip(input_shape.values(), level_channels, strict=True)
        )
        self.fusions = nn.ModuleList()
        fused_channels = level_channels[-1]
        for channels in reversed(level_channels[:-1]):
            self.fusions.append(FreqFusion(channels, fused_channels))
            fused_channels += channels
        self.align = conv_norm_relu(fused_channels, out_channels)
        self.out_channels = out_channels
        self.out_stride = strides[0]

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        return {
            "input_shape": input_shape,
            "level_channels": cfg.MODEL.OFFSEG.LEVEL_CHANNELS,
            "out_channels": cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM,
        }

    def forward(self, features: dict[str, Tensor]) -> list[Tensor]:
        """Fuse the levels.

        Args:
            features: "res2".."res5", (B, C_i, H / s_i, W / s_i), sizes exactly halving.

        Returns:
            one map, (B, out_channels, H / 4, W / 4).
        """
        levels = [
            reduce(features[name].contiguous())  # FreqFusion's sums are faster channel by channel
            for name, reduce in zip(self.in_features, self.reduce, strict=True)
        ]
        fused = levels.pop()
        for fusion in self.fusions:
            sharpened, upsampled = fusion(levels.pop(), fused)
            fused = interleave_channels(sharpened, upsampled)
        return [self.align(fused)]
