"""Rule for the pixel decoder of SegNeXt: tokens throughout, and a low rank made use of.

The decomposition rebuilds the map as D C^T of rank R = 16. The 1x1 convolution W that follows it is
applied to the D x R bases instead of the pixels: W (D C^T) = (W D) C^T.

Shapes: B batch, D channels, N = H W pixels, R bases.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offseg_d2.deploy.folding import BatchNorm
from offseg_d2.deploy.group_norm import group_norm_of_tokens_
from offseg_d2.deploy.level_fusion import FastLevelFusion, folded_weights
from offseg_d2.deploy.packed import PackedLinear
from offseg_d2.deploy.rules import rule
from offseg_d2.layers import NMF2D, Hamburger
from offseg_d2.layers.matrix_decomposition import factorise
from offseg_d2.modeling.pixel_decoder.light_ham import LightHamPixelDecoder


class FastHamburger(nn.Module):
    """:class:`Hamburger` around :class:`NMF2D`, on tokens."""

    def __init__(self, hamburger: Hamburger) -> None:
        super().__init__()
        self.ham_in = PackedLinear.of(hamburger.ham_in, "relu")
        self.decomposition = hamburger.decomposition
        weight = hamburger.ham_out.conv.weight.detach().flatten(1).clone()
        self.out_weight = nn.Parameter(weight, requires_grad=False)
        self.norm = hamburger.ham_out.norm

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, H, W, D) -> (B, H, W, D), not negative."""
        pixels = self.ham_in(tokens).flatten(1, 2).mT  # Z (B, D, N)
        bases = self.decomposition.injected_bases
        if bases is None:
            bases = self.decomposition.draw_bases(len(pixels), pixels.device)
        bases = bases.to(pixels).expand(len(pixels), -1, -1)
        bases, coefficients = factorise(pixels, bases, self.decomposition.eval_steps)
        context = coefficients @ (self.out_weight @ bases).mT  # (B, N, D)
        context = group_norm_of_tokens_(context.view(tokens.shape), self.norm)
        return torch.relu_(context.add_(tokens))


class FastLightHamPixelDecoder(nn.Module):
    """:class:`LightHamPixelDecoder` on tokens."""

    def __init__(self, decoder: LightHamPixelDecoder) -> None:
        super().__init__()
        self.in_features = list(decoder.in_features)
        self.out_channels, self.out_stride = decoder.out_channels, decoder.out_stride
        self.fuse = FastLevelFusion(*folded_weights(decoder.squeeze), decoder.squeeze.weight.dtype)
        self.fuse_norm = decoder.squeeze.norm
        self.hamburger = FastHamburger(decoder.hamburger)
        self.align = PackedLinear.of(decoder.align)
        self.align_norm = decoder.align.norm

    def forward(self, features: dict[str, Tensor]) -> list[Tensor]:
        """One map (B, C, H / 8, W / 8), channels innermost."""
        levels = [features[name].permute(0, 2, 3, 1).contiguous() for name in self.in_features]
        height, width = levels[0].shape[1:3]
        fused = torch.stack(
            [
                self.fuse.band(finest, self.fuse.resized_sum(coarse, (height, width)), 0, height)
                for finest, *coarse in zip(*levels, strict=True)
            ]
        )
        if not isinstance(self.fuse_norm, BatchNorm):  # else it is part of the weights
            fused = group_norm_of_tokens_(fused, self.fuse_norm)
        aligned = self.align(self.hamburger(torch.relu_(fused)))
        aligned = group_norm_of_tokens_(aligned, self.align_norm, relu=True)
        return [aligned.permute(0, 3, 1, 2)]


@rule(LightHamPixelDecoder)
@torch.no_grad()
def fast_light_ham(decoder: LightHamPixelDecoder) -> nn.Module | None:
    """The decomposition's low rank made use of, levels added up in one pass."""
    hamburger = decoder.hamburger
    activations = {decoder.squeeze.activation, decoder.align.activation}
    is_known = type(hamburger) is Hamburger and type(hamburger.decomposition) is NMF2D
    return FastLightHamPixelDecoder(decoder) if is_known and activations == {F.relu} else None
