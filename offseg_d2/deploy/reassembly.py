"""CARAFE and bilinear sampling of maps whose channels are innermost, as sums of weighted vectors.

An output pixel of either is a weighted sum of a few pixel vectors of the input. That is what
``F.embedding_bag`` computes: one pass, a sum in registers, no temporary. Which vectors a CARAFE
output reads depends on the sizes only, so the table of their positions is computed once per size.

Shapes: C channels, (h, w) the input's size, s scale, k kernel size, N = s h * s w output pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from offseg_d2.deploy.size_cache import SizeCache

_NEIGHBOURS = SizeCache(12)


def weighted_sums(vectors: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """(M, C) vectors, (N, T) int32 positions, (N, T) weights -> (N, C)."""
    return F.embedding_bag(indices, vectors, mode="sum", per_sample_weights=weights)


def neighbours(
    size: tuple[int, int], kernel_size: int, scale: int, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Positions (N, k^2) int32 that each output pixel reads, and whether they are in the map.

    Positions outside are replaced by the nearest inside; the second tensor is 0. there, else 1., on
    the device and of the type of ``like``.
    """
    key = (size, kernel_size, scale)
    return _NEIGHBOURS.get(key, like, lambda: _find_neighbours(size, kernel_size, scale, like))


def _find_neighbours(
    size: tuple[int, int], kernel_size: int, scale: int, like: Tensor
) -> tuple[Tensor, Tensor]:
    reach = torch.arange(kernel_size, device=like.device) - kernel_size // 2
    rows, columns = (
        torch.arange(n * scale, device=like.device)[:, None] // scale + reach for n in size
    )  # (s h, k), (s w, k)
    inside = [(x >= 0) & (x < n) for x, n in zip((rows, columns), size, strict=True)]
    indices = rows.clamp(0, size[0] - 1)[:, None, :, None] * size[1]
    indices = indices + columns.clamp(0, size[1] - 1)[None, :, None, :]
    mask = inside[0][:, None, :, None] & inside[1][None, :, None, :]
    shape = (-1, kernel_size**2)
    return indices.reshape(shape).int(), mask.reshape(shape).to(like.dtype)


def reassemble(features: Tensor, kernels: Tensor, kernel_size: int, scale: int = 1) -> Tensor:
    """CARAFE (see ``offseg_d2.layers.carafe``), channels innermost.

    Args:
        features: (B, h, w, C) contiguous.
        kernels: (B, N, k^2), 0 where a tap is outside of the map.
        kernel_size: k.
        scale: s.

    Returns:
        (B, s h, s w, C) contiguous.
    """
    batch, height, width, channels = features.shape
    indices, _ = neighbours((height, width), kernel_size, scale, features)
    maps = features.view(batch, height * width, channels)
    sums = [weighted_sums(m, indices, k) for m, k in zip(maps, kernels, strict=True)]
    result = sums[0][None] if batch == 1 else torch.stack(sums)
    return result.view(batch, scale * height, scale * width, channels)


def bilinear_taps(positions: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    """Vectors that a bilinear read at given positions adds up, clamped to the border.

    Args:
        positions: (N, 2, G) x and y in pixels, one pair for each of G channel groups.
        width: of the map that is read.
        height: likewise.

    Returns:
        (N G, 4) int32 positions in the map seen as (height width G) vectors, and their weights.
    """
    groups = positions.shape[2]
    x, y = positions.unbind(1)  # (N, G)
    # Corner by corner on whole (N, G) planes: axes of length 2 would be worked on value by value.
    left, right, share_x = _corners(x, width, step=groups)
    upper, lower, share_y = _corners(y, height, step=groups * width)
    group = torch.arange(groups, device=x.device, dtype=torch.int32)
    left, right = left + group, right + group
    indices = torch.stack([upper + left, upper + right, lower + left, lower + right], dim=-1)
    right_lower = share_x * share_y
    right_upper, left_lower = share_x - right_lower, share_y - right_lower
    left_upper = 1 - share_x - left_lower
    weights = torch.stack([left_upper, right_upper, left_lower, right_lower], dim=-1)
    return indices.view(-1, 4), weights.view(-1, 4)


def _corners(positions: Tensor, size: int, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Positions of both neighbours along one axis, times ``step``, and the second one's share."""
    positions = positions.clamp(0, size - 1)
    low = positions.floor()
    high = (low + 1).clamp_max_(size - 1)
    return low.int() * step, high.int() * step, positions - low
