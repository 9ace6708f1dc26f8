"""FreqFusion for inference: the operations of ``offseg_d2.layers.freq_fusion``, fewer and faster.

All maps have their channels innermost. The kernels' logits then come out of the convolutions in
the order in which the sums of ``reassembly.py`` read them, and the sampled map is read as one
vector per pixel and channel group.

* ``2 x - carafe(x)`` is one CARAFE whose kernels are negated and have 2 added to their centre.
* Offsets are worked out at the fine resolution, where a displacement of ``2 d`` fine pixels is
  what the normalised grid of the readable form says for ``d`` coarse ones.
* The two kernel encoders are *not* merged: 25 and 9 output channels fill two and one vector
  registers, 34 would fill three, and the parts of the result would have to be copied out.

Shapes: B batch; hr (B, 2h, 2w, Ch), lr (B, h, w, Cl); Cc compressed channels; N = 4 h w.
"""

import copy

import torch
from torch import Tensor, nn

from offseg_d2.deploy.group_norm import group_norm_
from offseg_d2.deploy.packed import PackedConv2d, PackedLinear
from offseg_d2.deploy.reassembly import bilinear_taps, neighbours, reassemble, weighted_sums
from offseg_d2.deploy.size_cache import SizeCache
from offseg_d2.layers import FreqFusion, LocalSimilaritySampler
from offseg_d2.layers.freq_fusion import (
    HIGH_PASS_SIZE,
    LOW_PASS_SIZE,
    SAMPLER_GROUPS,
    SIMILARITY_DILATION,
)

_PADDED_TAPS = 16
_AXES = 2 * SAMPLER_GROUPS  # x of each group, then y of each group


def to_channels_first(features: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W), the same memory, as convolutions take it."""
    return features.permute(0, 3, 1, 2)


def to_channels_innermost(features: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C) contiguous; a view of a channels_last tensor."""
    return features.permute(0, 2, 3, 1).contiguous()


def _convolve(conv: nn.Module, features: Tensor) -> Tensor:
    """(B, H, W, C_in) -> (B, H, W, C_out)."""
    return to_channels_innermost(conv(to_channels_first(features)))


class FastFreqFusion(nn.Module):
    """The same function as a trained :class:`~offseg_d2.layers.FreqFusion`, channels innermost.

    Args:
        fusion: in evaluation mode; its convolutions are shared.
    """

    def __init__(self, fusion: FreqFusion) -> None:
        super().__init__()
        self.hr_channel_compressor = PackedLinear.of(fusion.hr_channel_compressor)
        self.lr_channel_compressor = PackedLinear.of(fusion.lr_channel_compressor)
        self.low_pass_encoder = PackedConv2d(fusion.low_pass_encoder)
        self.high_pass_encoder = PackedConv2d(fusion.high_pass_encoder)
        self.high_pass_padded = PackedConv2d(_padded_logits(fusion.high_pass_encoder))
        self.sampler = FastSampler(fusion.sampler)

    def forward(self, hr: Tensor, lr: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse (B, 2h, 2w, Ch) and (B, h, w, Cl).

        Returns:
            the sharpened fine map (B, 2h, 2w, Ch) and the upsampled coarse one (B, 2h, 2w, Cl).
        """
        hr_compressed = self.hr_channel_compressor(hr)
        lr_compressed = self.lr_channel_compressor(lr)
        fine, coarse = hr.shape[1:3], lr.shape[1:3]
        # In this order for the same reason as in the readable form.
        high_pass = _convolve(self.high_pass_padded, hr_compressed)
        sharpening = _sharpening(high_pass, fine)
        hr_compressed = reassemble(hr_compressed, sharpening, HIGH_PASS_SIZE)
        low_pass = _convolve(self.low_pass_encoder, hr_compressed)
        low_pass_lr = _convolve(self.low_pass_encoder, lr_compressed)
        upsampling = _smoothing(low_pass, coarse)
        low_pass += reassemble(low_pass_lr, upsampling, LOW_PASS_SIZE, scale=2)
        upsampling = _smoothing(low_pass, coarse)
        high_pass_lr = _convolve(self.high_pass_encoder, lr_compressed)
        high_pass[..., : HIGH_PASS_SIZE**2] += reassemble(
            high_pass_lr, upsampling, LOW_PASS_SIZE, scale=2
        )
        lr_upsampled = reassemble(lr, upsampling, LOW_PASS_SIZE, scale=2)
        hr_sharpened = reassemble(hr, _sharpening(high_pass, fine), HIGH_PASS_SIZE)
        positions = self.sampler(hr_compressed, lr_compressed)
        # What comes next is the largest; the less memory is in use then, the less is asked for.
        del hr_compressed, lr_compressed, low_pass, high_pass, low_pass_lr, high_pass_lr, upsampling
        return hr_sharpened, _sample(lr_upsampled, positions)


def _smoothing(logits: Tensor, coarse: tuple[int, int]) -> Tensor:
    """Logits (B, 2h, 2w, 25) -> kernels (B, N, 25), without taps outside the coarse map."""
    _, inside = neighbours(tuple(coarse), LOW_PASS_SIZE, 2, logits)
    return logits.flatten(1, 2).softmax(dim=-1).mul_(inside)


def _sharpening(logits: Tensor, fine: tuple[int, int]) -> Tensor:
    """Logits (B, 2h, 2w, 16) -> kernels (B, N, 9) of 2 x - carafe(x)."""
    taps = HIGH_PASS_SIZE**2
    _, inside = neighbours(tuple(fine), HIGH_PASS_SIZE, 1, logits)
    kernels = (logits.flatten(1, 2).softmax(dim=-1)[..., :taps] * inside).neg_()
    kernels[..., taps // 2] += 2
    return kernels


def _padded_logits(encoder: nn.Conv2d) -> nn.Conv2d:
    """The encoder with logits of -1e9 in addition, so that there are 16.

    A convolution of 9 channels computes 16 anyway, and a softmax over 16 values is vectorised.
    """
    padded = nn.Conv2d(encoder.in_channels, _PADDED_TAPS, 3, padding=1).to(encoder.weight)
    nn.init.zeros_(padded.weight)
    nn.init.constant_(padded.bias, -1e9)
    with torch.no_grad():
        padded.weight[: encoder.out_channels] = encoder.weight
        padded.bias[: encoder.out_channels] = encoder.bias
    return padded


def _sample(features: Tensor, positions: Tensor) -> Tensor:
    """Read (B, H, W, C) at positions (B, N, 2, G) in pixels, each channel group at its own."""
    batch, height, width, channels = features.shape
    vectors = features.view(batch, -1, channels // SAMPLER_GROUPS)
    sampled = [
        weighted_sums(of_image, *bilinear_taps(where, width, height))
        for of_image, where in zip(vectors, positions, strict=True)
    ]
    result = sampled[0][None] if batch == 1 else torch.stack(sampled)
    return result.view(features.shape)


class FastSampler(nn.Module):
    """Positions at which each fine pixel reads the upsampled map.

    Args:
        sampler: in evaluation mode; its layers are shared or, where their output channels get
            another order, copied.
    """

    def __init__(self, sampler: LocalSimilaritySampler) -> None:
        super().__init__()
        self.hr_norm, self.lr_norm = sampler.hr_norm, sampler.lr_norm
        self.hr_offset, self.hr_scale = map(PackedConv2d, (sampler.hr_offset, sampler.hr_scale))
        self.lr_offset = PackedConv2d(_sub_pixels_first(sampler.lr_offset))
        self.lr_scale = PackedConv2d(_sub_pixels_first(sampler.lr_scale))
        self._own_positions = SizeCache()

    def forward(self, hr: Tensor, lr: Tensor) -> Tensor:
        """(B, 2h, 2w, Cc), (B, h, w, Cc) -> positions (B, N, 2, 4) in pixels of the fine map.

        Both arguments may be overwritten.
        """
        hr, lr = group_norm_(hr, self.hr_norm), group_norm_(lr, self.lr_norm)
        offset = _add_sub_pixels(
            _convolve(self.hr_offset, similarity(hr)), _convolve(self.lr_offset, similarity(lr))
        )
        scale = _add_sub_pixels(_convolve(self.hr_scale, hr), _convolve(self.lr_scale, lr))
        size = (hr.shape[1], hr.shape[2])
        own = self._own_positions.get(size, hr, lambda: _positions(size, hr))
        moved = torch.addcmul(own, offset, scale.sigmoid_(), value=2)
        return moved.view(len(hr), -1, 2, SAMPLER_GROUPS)


def _sub_pixels_first(conv: nn.Conv2d) -> nn.Conv2d:
    """Output channels (axis and group, sub-pixel) -> (sub-pixel, axis and group)."""
    conv = copy.deepcopy(conv)
    order = torch.arange(conv.out_channels).view(_AXES, 4).T.flatten()
    conv.weight.data, conv.bias.data = conv.weight.data[order], conv.bias.data[order]
    return conv


def _add_sub_pixels(fine: Tensor, coarse: Tensor) -> Tensor:
    """Add (B, h, w, 4 * 8), four sub-pixels a pixel, to (B, 2h, 2w, 8), in place."""
    batch, height, width, _ = coarse.shape
    sub_pixels = coarse.view(batch, height, width, 2, 2, _AXES).transpose(2, 3)
    fine.view(batch, height, 2, width, 2, _AXES).add_(sub_pixels)
    return fine


def _positions(size: tuple[int, int], like: Tensor) -> Tensor:
    """(H, W, 8) column of each pixel for each group, then its row for each group."""
    rows, columns = (torch.arange(n, device=like.device, dtype=like.dtype) for n in size)
    x, y = columns[None, :, None].expand(*size, 1), rows[:, None, None].expand(*size, 1)
    return torch.cat([x.expand(*size, SAMPLER_GROUPS), y.expand(*size, SAMPLER_GROUPS)], -1)


def similarity(features: Tensor, dilation: int = SIMILARITY_DILATION) -> Tensor:
    """Cosines with eight neighbours, as ``offseg_d2.layers.neighbour_similarity`` defines them.

    Args:
        features: (B, H, W, C).
        dilation: distance of the neighbours in pixels.

    Returns:
        (B, H, W, 8), 0 for neighbours outside the map.
    """
    batch, height, width, _ = features.shape
    inverse = (features * features).sum(-1).sqrt_().clamp_min_(1e-8).reciprocal_()
    result = features.new_zeros(batch, height, width, 8)
    d = dilation
    # The channels 4 to 7 are those to the right and below; their mirror images are 3 to 0.
    for channel, (dy, dx) in enumerate(((0, d), (d, -d), (d, 0), (d, d)), start=4):
        rows, rows_far = slice(0, max(height - dy, 0)), slice(dy, None)
        columns = slice(max(-dx, 0), max(width - max(dx, 0), 0))
        columns_far = slice(max(dx, 0), max(width - max(-dx, 0), 0))
        near, far = features[:, rows, columns], features[:, rows_far, columns_far]
        cosine = (near * far).sum(-1)
        cosine *= inverse[:, rows, columns]
        cosine *= inverse[:, rows_far, columns_far]
        result[:, rows, columns, channel] = cosine
        result[:, rows_far, columns_far, 7 - channel] = cosine
    return result
