"""1x1 convolution of several levels of a feature pyramid at once."""

from collections.abc import Sequence

import torch.nn.functional as F
from detectron2.layers import Conv2d
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn


class LevelFusion(Conv2d):
    """All levels resized to the finest and concatenated, then 1x1 convolution, norm and ReLU.

    Computed without the concatenated map, and with a third of the operations (four levels of equal
    width).

    Args:
        in_channels: channels of the levels, from fine to coarse.
        out_channels: channels of the result.
        norm: norm over ``out_channels``.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int, norm: nn.Module) -> None:
        super().__init__(
            sum(in_channels), out_channels, 1, bias=False, norm=norm, activation=F.relu
        )
        self.level_channels = list(in_channels)
        c2_msra_fill(self)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """(B, C_i, H_i, W_i) for each level, the finest first -> (B, out_channels, H_0, W_0)."""
        size = levels[0].shape[-2:]
        weights = self.weight.split(self.level_channels, dim=1)
        fused = F.conv2d(levels[0], weights[0])
        for level, weight in zip(levels[1:], weights[1:], strict=True):
            # Convolved first: a 1x1 convolution and a bilinear resize are both linear and work on
            # different axes, so their order may change.
            part = F.conv2d(level, weight)
            fused = fused + F.interpolate(part, size=size, mode="bilinear", align_corners=False)
        return self.activation(self.norm(fused))
