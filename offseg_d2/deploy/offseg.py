"""The pixel decoder of OffSeg deployed: channels innermost, large maps changed in place."""

import torch
from detectron2.layers import Conv2d as NormedConv2d
from torch import Tensor, nn

from offseg_d2.deploy.freq_fusion import FastFreqFusion, to_channels_first, to_channels_innermost
from offseg_d2.deploy.group_norm import group_norm_
from offseg_d2.deploy.packed import PackedLinear
from offseg_d2.modeling.pixel_decoder.offseg import INTERLEAVE_GROUPS, OffSegPixelDecoder


class ConvNormRelu(nn.Module):
    """1x1 convolution, group norm, ReLU; the last two in place.

    Args:
        conv: with a group norm and ReLU as activation.
    """

    def __init__(self, conv: NormedConv2d) -> None:
        super().__init__()
        self.conv, self.norm = PackedLinear.of(conv), conv.norm

    def forward(self, features: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, H, W, C_out)."""
        tokens = self.conv(to_channels_innermost(features))
        return group_norm_(tokens, self.norm, relu=True)


class TwoPartConvNormRelu(nn.Module):
    """The same of two maps that the convolution was trained to read interleaved.

    The products of both parts are added; neither is the joint map stored nor are its channels
    brought into order.

    Args:
        conv: as above.
        first_channels: channels of the first part.
    """

    def __init__(self, conv: NormedConv2d, first_channels: int) -> None:
        super().__init__()
        groups = torch.arange(conv.in_channels).view(INTERLEAVE_GROUPS, -1)
        own = first_channels // INTERLEAVE_GROUPS
        weight = conv.weight.detach().flatten(1)
        first = weight[:, groups[:, :own].flatten()]
        self.first_weight = nn.Parameter(first.mT.contiguous(), requires_grad=False)  # (C_1, C_out)
        self.second = PackedLinear(weight[:, groups[:, own:].flatten()], conv.bias)
        self.norm = conv.norm

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """(B, H, W, C_1), (B, H, W, C_2) -> (B, H, W, C_out)."""
        tokens = self.second(second)
        # In place: a map more would take longer to get from the system than these few products.
        tokens.view(-1, tokens.shape[3]).addmm_(first.flatten(0, 2), self.first_weight)
        return group_norm_(tokens, self.norm, relu=True)


class FastOffSegPixelDecoder(nn.Module):
    """The same function as a trained ``OffSegPixelDecoder``, channels innermost throughout.

    Args:
        decoder: in evaluation mode; its weights are shared.
    """

    def __init__(self, decoder: OffSegPixelDecoder) -> None:
        super().__init__()
        self.in_features = decoder.in_features
        self.out_channels, self.out_stride = decoder.out_channels, decoder.out_stride
        self.reduce = nn.ModuleList(ConvNormRelu(conv) for conv in decoder.reduce)
        self.fusions = nn.ModuleList(FastFreqFusion(fusion) for fusion in decoder.fusions)
        self.align = TwoPartConvNormRelu(decoder.align, decoder.reduce[0].out_channels)

    def forward(self, features: dict[str, Tensor]) -> list[Tensor]:
        """(B, C_i, H / s_i, W / s_i) per level -> one map (B, out_channels, H / 4, W / 4)."""
        levels = [
            reduce(features[name])
            for name, reduce in zip(self.in_features, self.reduce, strict=True)
        ]
        parts: tuple[Tensor, ...] = (levels.pop(),)
        for fusion in self.fusions:
            parts = fusion(levels.pop(), _interleaved(parts))
        return [to_channels_first(self.align(*parts))]


def _interleaved(parts: tuple[Tensor, ...]) -> Tensor:
    """Maps (B, H, W, C_i) joined group by group."""
    if len(parts) == 1:
        return parts[0]
    return torch.cat([x.unflatten(-1, (INTERLEAVE_GROUPS, -1)) for x in parts], dim=-1).flatten(3)
