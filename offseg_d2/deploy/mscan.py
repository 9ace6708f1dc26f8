"""Rules for MSCAN, the backbone of SegNeXt: norms and layer scales become part of the weights.

A batch norm is z = a * x + c for each channel. In front of a 1x1 convolution it becomes part of
it. The attention adds z itself to its result and a layer scale s follows, so that the block is
``(1 + s a) x + s c + s proj_2(...)``: one factor for each channel of x, and a scaled convolution.

Shapes: B batch, C channels, H x W pixels.
"""

import torch
from torch import Tensor, nn

from offseg_d2.deploy.feed_forward import DepthwiseFeedForward
from offseg_d2.deploy.folding import scale_and_shift
from offseg_d2.deploy.packed import PackedConv2d, PackedLinear
from offseg_d2.deploy.rules import rule
from offseg_d2.modeling.backbone.mscan import Block, SpatialGate


def after_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d, activation: str = "none") -> PackedLinear:
    """A 1x1 convolution of what a batch norm gives."""
    scale, shift = scale_and_shift(norm)
    weight = conv.weight.flatten(1)
    bias = conv.bias.double() + weight.double() @ shift
    return PackedLinear((weight * scale).to(weight), bias.to(weight), activation)


class FastSpatialGate(nn.Module):
    """:class:`SpatialGate`; the sums of the scales happen within the convolutions."""

    def __init__(self, gate: SpatialGate) -> None:
        super().__init__()
        self.conv0 = PackedConv2d(gate.conv0)
        self.horizontal = nn.ModuleList(map(PackedConv2d, gate.horizontal))
        self.vertical = nn.ModuleList(map(PackedConv2d, gate.vertical))
        self.mix = PackedLinear.of(gate.mix)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        near = scales = self.conv0(tokens.permute(0, 3, 1, 2))
        for horizontal, vertical in zip(self.horizontal, self.vertical, strict=True):
            scales = vertical(horizontal(near), scales)
        return self.mix(scales.permute(0, 2, 3, 1)).mul_(tokens)


class FastBlock(nn.Module):
    """:class:`Block` of MSCAN, with all norms and scales folded."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        attn, mlp = block.attn, block.mlp
        self.proj_1 = after_norm(attn.proj_1, block.norm1, "gelu")
        self.gate = FastSpatialGate(attn.gate)
        slope, shift = scale_and_shift(block.norm1)
        scale = block.layer_scale_1.double()
        self.proj_2 = _scaled(attn.proj_2, scale, shift)
        kept = (1 + scale * slope).to(block.layer_scale_1)
        self.kept = nn.Parameter(kept.detach(), requires_grad=False)
        self.mlp = DepthwiseFeedForward(
            after_norm(mlp.fc1, block.norm2), mlp.dwconv, _scaled(mlp.fc2, block.layer_scale_2)
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), channels innermost."""
        tokens = features.permute(0, 2, 3, 1).contiguous()
        tokens = self.proj_2(self.gate(self.proj_1(tokens)), tokens * self.kept)
        return self.mlp(tokens, tokens).permute(0, 3, 1, 2)


def _scaled(conv: nn.Conv2d, scale: Tensor, shift: Tensor | float = 0.0) -> PackedLinear:
    """``scale * (conv(x) + shift)`` of a 1x1 convolution."""
    weight = conv.weight.flatten(1)
    bias = scale * (conv.bias.double() + shift)
    return PackedLinear((weight * scale[:, None]).to(weight), bias.to(weight))


@rule(Block)
@torch.no_grad()
def fast_mscan_block(block: Block) -> nn.Module | None:
    """Norms and layer scales folded, hidden maps in bands."""
    if any(norm.running_mean is None for norm in (block.norm1, block.norm2)):
        return None
    return FastBlock(block)
