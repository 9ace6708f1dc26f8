"""FreqFusion: fuses a high-resolution and a low-resolution feature map, aware of frequencies.

Chen et al., "Frequency-aware Feature Fusion for Dense Image Prediction", TPAMI 2024
(arXiv:2408.12879), in the form that OffSeg (arXiv:2508.08811) uses.

Three steps. Low-pass kernels, predicted for each pixel, upsample the coarse map without aliasing.
High-pass kernels sharpen the fine map. A sampler then moves each upsampled pixel towards
neighbours that resemble it, which repairs displaced boundaries.

Shapes: B batch; hr (B, Ch, 2h, 2w), the fine map; lr (B, Cl, h, w), the coarse map; Cc compressed
channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offseg_d2.layers.carafe import carafe
from offseg_d2.layers.kernels import kernels_apply, similarity_kernel

LOW_PASS_SIZE = 5
HIGH_PASS_SIZE = 3
SAMPLER_GROUPS = 4
SIMILARITY_DILATION = 2
SMALLEST_NORM = 1e-8


class FreqFusion(nn.Module):
    """Upsamples ``lr`` to the resolution of ``hr`` and sharpens ``hr``.

    Args:
        hr_channels: Ch.
        lr_channels: Cl, divisible by 4 (groups of the sampler).
        compressed_channels: Cc, divisible by 8; by default (Ch + Cl) // 4.

    Raises:
        ValueError: if a channel count is not divisible as above.
    """

    def __init__(
        self, hr_channels: int, lr_channels: int, compressed_channels: int | None = None
    ) -> None:
        super().__init__()
        compressed = compressed_channels or (hr_channels + lr_channels) // 4
        if lr_channels % SAMPLER_GROUPS:
            raise ValueError(f"`lr_channels` must be divisible by 4, but is {lr_channels}.")
        self.hr_channel_compressor = nn.Conv2d(hr_channels, compressed, 1)
        self.lr_channel_compressor = nn.Conv2d(lr_channels, compressed, 1)
        self.low_pass_encoder = nn.Conv2d(compressed, LOW_PASS_SIZE**2, 3, padding=1)
        self.high_pass_encoder = nn.Conv2d(compressed, HIGH_PASS_SIZE**2, 3, padding=1)
        self.sampler = LocalSimilaritySampler(compressed)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform convolutions, the sampler's included; kernel encoders near zero."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for encoder in (self.low_pass_encoder, self.high_pass_encoder):
            nn.init.normal_(encoder.weight, std=0.001)

    def forward(self, hr: Tensor, lr: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse two neighbouring levels.

        Args:
            hr: (B, Ch, 2h, 2w).
            lr: (B, Cl, h, w).

        Returns:
            the sharpened fine map (B, Ch, 2h, 2w) and the upsampled coarse map (B, Cl, 2h, 2w).
        """
        hr_compressed, lr_compressed, low_pass, high_pass = self.predict_kernels(hr, lr)
        lr_upsampled = carafe(lr, low_pass, LOW_PASS_SIZE, scale=2)
        hr_sharpened = 2 * hr - carafe(hr, high_pass, HIGH_PASS_SIZE)
        offsets = self.sampler(hr_compressed, lr_compressed)
        return hr_sharpened, sample_with_offsets(lr_upsampled, offsets)

    def predict_kernels(self, hr: Tensor, lr: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compressed maps and the kernels, both at the fine resolution.

        Returns:
            the compressed fine map, sharpened (B, Cc, 2h, 2w); the compressed coarse map
            (B, Cc, h, w); low-pass kernels (B, 25, 2h, 2w); high-pass kernels (B, 9, 2h, 2w).
            Every kernel sums to 1.
        """
        hr_compressed = self.hr_channel_compressor(hr)
        lr_compressed = self.lr_channel_compressor(lr)
        # The high-pass logits of the fine map come from the map before it is sharpened, the
        # low-pass ones from the map after: the order matters for trained weights.
        high_pass_hr = self.high_pass_encoder(hr_compressed)
        smooth = carafe(hr_compressed, _normalise_kernels(high_pass_hr), HIGH_PASS_SIZE)
        hr_compressed = 2 * hr_compressed - smooth
        low_pass_hr = self.low_pass_encoder(hr_compressed)
        upsampling = _normalise_kernels(low_pass_hr)
        low_pass_lr = self.low_pass_encoder(lr_compressed)
        low_pass_lr = carafe(low_pass_lr, upsampling, LOW_PASS_SIZE, scale=2)
        low_pass = _normalise_kernels(low_pass_hr + low_pass_lr)
        high_pass_lr = self.high_pass_encoder(lr_compressed)
        high_pass_lr = carafe(high_pass_lr, low_pass, LOW_PASS_SIZE, scale=2)
        high_pass = _normalise_kernels(high_pass_hr + high_pass_lr)
        return hr_compressed, lr_compressed, low_pass, high_pass


def _normalise_kernels(logits: Tensor) -> Tensor:
    """(B, k^2, H, W) -> the same shape, softmax over the taps."""
    return logits.softmax(dim=1)


class LocalSimilaritySampler(nn.Module):
    """Predicts, for each upsampled pixel, where to read so that it resembles its neighbourhood.

    The offsets are read off two similarity maps (how much a pixel resembles its eight neighbours
    at distance 2, at both resolutions) and scaled by a gate read off the features.

    Args:
        channels: Cc, channels of both compressed maps, divisible by 8 (group normalisation).

    Raises:
        ValueError: if ``channels`` is not divisible by 8.
    """

    init_positions: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels % 8:
            raise ValueError(f"`channels` must be divisible by 8, but is {channels}.")
        per_pixel = 2 * SAMPLER_GROUPS  # x and y for each group
        self.hr_norm = nn.GroupNorm(channels // 8, channels)
        self.lr_norm = nn.GroupNorm(channels // 8, channels)
        self.lr_offset = nn.Conv2d(8, 4 * per_pixel, 3, padding=1)
        self.lr_scale = nn.Conv2d(channels, 4 * per_pixel, 3, padding=1)
        self.hr_offset = nn.Conv2d(8, per_pixel, 3, padding=1)
        self.hr_scale = nn.Conv2d(channels, per_pixel, 3, padding=1)
        self.register_buffer("init_positions", _sub_pixel_positions(), persistent=False)

    def forward(self, hr: Tensor, lr: Tensor) -> Tensor:
        """(B, Cc, 2h, 2w), (B, Cc, h, w) -> offsets (B, 32, h, w) in pixels of the coarse map.

        Channels of the result: axis (x, y), group, sub-pixel row, sub-pixel column. They include
        the position of the sub-pixel within its coarse pixel.
        """
        hr, lr = self.hr_norm(hr), self.lr_norm(lr)
        offset = self.lr_offset(neighbour_similarity(lr))
        offset = offset + F.pixel_unshuffle(self.hr_offset(neighbour_similarity(hr)), 2)
        scale = self.lr_scale(lr) + F.pixel_unshuffle(self.hr_scale(hr), 2)
        return offset * scale.sigmoid() + self.init_positions


def _sub_pixel_positions() -> Tensor:
    """(1, 32, 1, 1): centres of the 2 x 2 sub-pixels, -0.25 or 0.25 coarse pixels."""
    quarter = torch.tensor([-0.25, 0.25])
    rows, columns = torch.meshgrid(quarter, quarter, indexing="ij")
    axes = torch.stack([columns, rows])[:, None].expand(2, SAMPLER_GROUPS, 2, 2)  # x first
    return axes.reshape(1, -1, 1, 1)


def neighbour_similarity(features: Tensor, dilation: int = SIMILARITY_DILATION) -> Tensor:
    """Cosine between each pixel and its eight neighbours at distance ``dilation``.

    Args:
        features: (B, C, H, W).
        dilation: distance of the neighbours in pixels.

    Returns:
        (B, 8, H, W), neighbours in row-major order without the centre; 0 outside the map.
    """
    if kernels_apply(features):
        autocast = torch.is_autocast_enabled(features.device.type)
        similarity, _ = similarity_kernel(features, dilation, SMALLEST_NORM)
        return similarity if autocast else similarity.to(features.dtype)
    norm = torch.linalg.vector_norm(features, dim=1, keepdim=True).clamp_min(SMALLEST_NORM)
    unit = features / norm
    height, width = features.shape[-2:]
    d = dilation
    padded = F.pad(unit, [d, d, d, d])
    forward, backward = [], []
    # cos(u, v) = cos(v, u): the map of a direction is that of the opposite one, moved. So four
    # products, each over an area enlarged by its step, give all eight maps.
    for dy, dx in ((0, d), (d, -d), (d, 0), (d, d)):
        right, left = max(dx, 0), max(-dx, 0)
        near = padded[:, :, d - dy : d + height, d - right : d + width + left]
        far = padded[:, :, d : d + height + dy, d - left : d + width + right]
        product = (near * far).sum(1, keepdim=True)  # (B, 1, H + dy, W + |dx|)
        forward.append(product[:, :, dy:, right : right + width])
        backward.append(product[:, :, :height, left : left + width])
    return torch.cat(backward[::-1] + forward, dim=1)


def sample_with_offsets(features: Tensor, offsets: Tensor) -> Tensor:
    """Read ``features`` at displaced positions, bilinearly, four channel groups each on its own.

    Args:
        features: (B, C, 2h, 2w), C divisible by 4.
        offsets: (B, 32, h, w) in pixels of the coarse map, see :class:`LocalSimilaritySampler`.

    Returns:
        (B, C, 2h, 2w); equal to ``features`` where offsets are just the sub-pixel positions.
    """
    batch, channels, out_height, out_width = features.shape
    height, width = offsets.shape[-2:]
    # Half precision cannot distinguish neighbouring pixels of a map of a few hundred.
    dtype = torch.promote_types(torch.promote_types(features.dtype, offsets.dtype), torch.float32)
    x = torch.arange(width, device=offsets.device, dtype=dtype) + 0.5
    y = torch.arange(height, device=offsets.device, dtype=dtype) + 0.5
    offsets = offsets.to(dtype).view(batch, 2, SAMPLER_GROUPS * 4, height, width)
    grid_x = 2 * (offsets[:, 0] + x) / width - 1
    grid_y = 2 * (offsets[:, 1] + y[:, None]) / height - 1
    grid = torch.stack([F.pixel_shuffle(grid_x, 2), F.pixel_shuffle(grid_y, 2)], dim=-1)
    grouped = features.reshape(-1, channels // SAMPLER_GROUPS, out_height, out_width)
    sampled = F.grid_sample(
        grouped.to(dtype),
        grid.flatten(0, 1),  # (B * 4, 2h, 2w, 2)
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    return sampled.reshape(features.shape).to(features.dtype)
