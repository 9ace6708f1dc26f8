"""Rule for the pixel decoder of SegFormer: band by band, and nothing at stride 4 is stored.

The widest maps of the whole network are its 256 channels at stride 4. They are computed some rows
at a time, from the reduction of the finest level to the max-pooling at the end.

Shapes: B batch, C channels, D channels of the result, H x W pixels of the finest level.
"""

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d as NormedConv2d
from torch import Tensor, nn

from offseg_d2.deploy.folding import BatchNorm, fold_conv_bn
from offseg_d2.deploy.level_fusion import FastLevelFusion, folded_weights
from offseg_d2.deploy.packed import PackedLinear
from offseg_d2.deploy.rules import rule
from offseg_d2.modeling.pixel_decoder.segformer import SegFormerPixelDecoder

BAND_BYTES = 2 << 20  # of each map at stride 4 that are computed at once


class FastSegFormerPixelDecoder(nn.Module):
    """:class:`SegFormerPixelDecoder` with norms folded, in bands.

    Args:
        decoder: with batch norms.
    """

    def __init__(self, decoder: SegFormerPixelDecoder) -> None:
        super().__init__()
        self.in_features = list(decoder.in_features)
        self.out_channels, self.out_stride = decoder.out_channels, decoder.out_stride
        self.has_pool = not isinstance(decoder.pool, nn.Identity)
        is_linear = all(type(reduce) is nn.Conv2d for reduce in decoder.reduce)
        self.fuse = _fusion(decoder, merge=is_linear)
        self.reduce: nn.ModuleList | None = None
        if not is_linear:
            self.reduce = nn.ModuleList(_reduction(reduce) for reduce in decoder.reduce)

    def forward(self, features: dict[str, Tensor]) -> list[Tensor]:
        """One map (B, D, H, W), channels innermost; H and W halved if there is a pool."""
        levels = [features[name].permute(0, 2, 3, 1).contiguous() for name in self.in_features]
        batch, height, width, _ = levels[0].shape
        shrink = 2 if self.has_pool else 1
        out = levels[0].new_empty(batch, height // shrink, width // shrink, self.out_channels)
        for image, *maps in zip(out, *levels, strict=True):
            self._fuse_image(maps, image, shrink)
        return [out.permute(0, 3, 1, 2)]

    def _fuse_image(self, levels: list[Tensor], out: Tensor, shrink: int) -> None:
        """(H_l, W_l, C_l) for each level -> ``out`` (H / shrink, W / shrink, D)."""
        finest, *coarse = levels
        reduce_finest = None
        if self.reduce is not None:
            reduce_finest, *others = self.reduce
            coarse = [reduce(level) for reduce, level in zip(others, coarse, strict=True)]
        height, width, _ = finest.shape
        total = self.fuse.resized_sum(coarse, (height, width))
        step = max(BAND_BYTES // (width * self.out_channels * 4) // shrink, 2)
        for first in range(0, len(out), step):
            last = min(first + step, len(out))
            top, bottom = first * shrink, last * shrink
            part = finest[top:bottom]
            if reduce_finest is not None:
                part = reduce_finest(part)
            part = self.fuse.band(part, total, top, bottom)[None].permute(0, 3, 1, 2)
            if shrink > 1:  # it does not matter whether the ReLU comes first
                part = F.max_pool2d(part, shrink)
            out[first:last] = torch.relu_(part)[0].permute(1, 2, 0)


def _reduction(reduce: nn.Conv2d) -> PackedLinear:
    if type(reduce) is nn.Conv2d:
        return PackedLinear.of(reduce)
    return PackedLinear.of(fold_conv_bn(reduce, reduce.norm), "relu")


def _fusion(decoder: SegFormerPixelDecoder, merge: bool) -> FastLevelFusion:
    """The fusion, with linear reductions as part of it: W (R x + r) = (W R) x + W r."""
    weights, bias = folded_weights(decoder.fuse)
    if merge:
        for i, reduce in enumerate(decoder.reduce):
            if reduce.bias is not None:
                # A constant map stays one when it is resized, so the biases add up.
                bias = bias + weights[i] @ reduce.bias.double()
            weights[i] = weights[i] @ reduce.weight.double().flatten(1)
    return FastLevelFusion(weights, bias, decoder.fuse.weight.dtype)


def _is_known(reduce: nn.Module) -> bool:
    if type(reduce) is nn.Conv2d:
        return True
    is_normed = type(reduce) is NormedConv2d and isinstance(reduce.norm, BatchNorm)
    return is_normed and reduce.activation in (F.relu, torch.relu)


@rule(SegFormerPixelDecoder)
@torch.no_grad()
def fast_segformer_decoder(decoder: SegFormerPixelDecoder) -> nn.Module | None:
    """Batch norms folded; reductions too where no ReLU follows them."""
    norms = isinstance(decoder.fuse.norm, BatchNorm) and all(map(_is_known, decoder.reduce))
    return FastSegFormerPixelDecoder(decoder) if norms else None
