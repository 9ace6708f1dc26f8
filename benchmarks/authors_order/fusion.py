"""FreqFusion and the fusion of several levels, in the authors' order of operations.

Shapes: B batch, C channels, s scale, k kernel size; hr (B, Ch, 2h, 2w), lr (B, Cl, h, w).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from offseg_d2.layers import FreqFusion, LocalSimilaritySampler
from offseg_d2.modeling.pixel_decoder.level_fusion import LevelFusion

DILATION = 2  # of the neighbours whose cosines guide the sampler
GROUPS = 4  # of channels that are sampled each on their own


def carafe(features: Tensor, kernels: Tensor, kernel_size: int, scale: int = 1) -> Tensor:
    """(B, C, h, w) and kernels (B, k^2, s h, s w) -> (B, C, s h, s w)."""
    height, width = kernels.shape[-2:]
    if scale > 1:
        features = F.interpolate(features, scale_factor=scale, mode="nearest")
    padded = F.pad(features, [scale * (kernel_size // 2)] * 4)
    out: Tensor | None = None
    for tap in range(kernel_size**2):
        top, left = (scale * step for step in divmod(tap, kernel_size))
        view = padded[:, :, top : top + height, left : left + width]
        product = kernels[:, tap : tap + 1] * view
        out = product if out is None else out + product
    assert out is not None, "a kernel has at least one tap"
    return out


def neighbour_similarity(features: Tensor) -> Tensor:
    """(B, C, H, W) -> cosines with the eight neighbours (B, 8, H, W), 0 outside the map."""
    height, width = features.shape[-2:]
    columns = F.unfold(features, 3, dilation=DILATION, padding=DILATION)
    windows = columns.unflatten(2, (height, width)).unflatten(1, (-1, 9))
    neighbours = torch.cat([windows[:, :, :4], windows[:, :, 5:]], dim=2)  # (B, C, 8, H, W)
    return F.cosine_similarity(features[:, :, None], neighbours, dim=1)


def sample_with_offsets(features: Tensor, offsets: Tensor) -> Tensor:
    """(B, C, 2h, 2w) read at offsets (B, 32, h, w) in coarse pixels -> (B, C, 2h, 2w)."""
    batch, channels, out_height, out_width = features.shape
    height, width = offsets.shape[-2:]
    axes = (torch.arange(size, device=offsets.device) + 0.5 for size in (width, height))
    centres = torch.stack(torch.meshgrid(*axes, indexing="xy"))  # (2, h, w), x first
    extent = offsets.new_tensor([width, height]).view(1, 2, 1, 1, 1)
    positions = offsets.unflatten(1, (2, -1)) + centres[:, None].to(offsets)  # (B, 2, 16, h, w)
    positions = (2 * positions / extent - 1).flatten(1, 2)
    grid = F.pixel_shuffle(positions, 2)  # (B, 2 * 4, 2h, 2w)
    grid = grid.unflatten(1, (2, GROUPS)).permute(0, 2, 3, 4, 1).flatten(0, 1)
    grouped = features.reshape(batch * GROUPS, channels // GROUPS, out_height, out_width)
    sampled = F.grid_sample(grouped, grid, padding_mode="border", align_corners=False)
    return sampled.reshape(features.shape)


class AuthorsFreqFusion(FreqFusion):
    """CARAFE over nearest-upsampled maps."""

    def forward(self, hr: Tensor, lr: Tensor) -> tuple[Tensor, Tensor]:
        """(B, Ch, 2h, 2w), (B, Cl, h, w) -> sharpened (B, Ch, 2h, 2w), upsampled (B, Cl, ...)."""
        hr_small, lr_small = self.hr_channel_compressor(hr), self.lr_channel_compressor(lr)
        high_pass_hr = self.high_pass_encoder(hr_small)
        hr_small = 2 * hr_small - carafe(hr_small, high_pass_hr.softmax(dim=1), 3)
        low_pass_hr = self.low_pass_encoder(hr_small)
        upsampling = low_pass_hr.softmax(dim=1)
        low_pass_lr = carafe(self.low_pass_encoder(lr_small), upsampling, 5, scale=2)
        low_pass = (low_pass_hr + low_pass_lr).softmax(dim=1)
        high_pass_lr = carafe(self.high_pass_encoder(lr_small), low_pass, 5, scale=2)
        high_pass = (high_pass_hr + high_pass_lr).softmax(dim=1)
        upsampled = carafe(lr, low_pass, 5, scale=2)
        sharpened = 2 * hr - carafe(hr, high_pass, 3)
        return sharpened, sample_with_offsets(upsampled, self.sampler(hr_small, lr_small))


class AuthorsSampler(LocalSimilaritySampler):
    """Cosines by unfolding."""

    def forward(self, hr: Tensor, lr: Tensor) -> Tensor:
        """(B, Cc, 2h, 2w), (B, Cc, h, w) -> offsets (B, 32, h, w)."""
        hr, lr = self.hr_norm(hr), self.lr_norm(lr)
        offset = self.lr_offset(neighbour_similarity(lr))
        offset = offset + F.pixel_unshuffle(self.hr_offset(neighbour_similarity(hr)), 2)
        scale = self.lr_scale(lr) + F.pixel_unshuffle(self.hr_scale(hr), 2)
        return offset * scale.sigmoid() + self.init_positions


class AuthorsLevelFusion(LevelFusion):
    """Levels resized and concatenated, then convolved."""

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """(B, C_i, H_i, W_i) for each level, the finest first -> (B, out_channels, H_0, W_0)."""
        size = levels[0].shape[-2:]
        coarse = (
            F.interpolate(level, size=size, mode="bilinear", align_corners=False)
            for level in levels[1:]
        )
        wide = torch.cat([levels[0], *coarse], dim=1)
        return self.activation(self.norm(F.conv2d(wide, self.weight)))
