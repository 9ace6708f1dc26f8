"""Sums of maps of several resolutions, resized to the finest, in one pass.

Resizing is linear and separable: along the columns first, at the coarse heights, where maps are
small; then each row of the result is a weighted sum of two rows of every level. One pass over
these rows adds up all levels, and any band of rows can be computed alone.

Shapes: B batch, C channels, H x W pixels of the finest level, D channels of the result.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offseg_d2.deploy.folding import BatchNorm, scale_and_shift
from offseg_d2.deploy.packed import PackedLinear
from offseg_d2.layers import bilinear
from offseg_d2.modeling.pixel_decoder.level_fusion import LevelFusion


class ResizedSum:
    """Bilinear resizes (half-pixel centres) of maps, and their sum, some rows at a time.

    Args:
        maps: (H_l, W_l, D) of one image, at least one.
        size: (H, W).
    """

    def __init__(self, maps: Sequence[Tensor], size: tuple[int, int]) -> None:
        height, width = size
        self.width, dim = width, maps[0].shape[-1]
        rows, places, weights, first = [], [], [], 0
        for level in maps:
            like = {"dtype": level.dtype, "device": level.device}
            columns = bilinear(level.shape[1], width, **like)
            vertical = bilinear(level.shape[0], height, **like)
            rows.append(_resize_columns(level, columns.positions(), columns.weights))
            places.append(vertical.positions() + first)
            weights.append(vertical.weights)
            first += level.shape[0]
        self._rows = torch.cat(rows).view(first, width * dim)
        self._places, self._weights = torch.cat(places, dim=1), torch.cat(weights, dim=1)

    def band(self, top: int, bottom: int) -> Tensor:
        """(bottom - top, W, D)."""
        total = F.embedding_bag(
            self._places[top:bottom],
            self._rows,
            mode="sum",
            per_sample_weights=self._weights[top:bottom],
        )
        return total.view(bottom - top, self.width, -1)


def _resize_columns(level: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    """(H_l, W_l, D) -> (H_l, W, D)."""
    height, before, dim = level.shape
    starts = torch.arange(height, device=level.device)[:, None, None] * before
    bags = (starts + places).flatten(0, 1)  # (H_l W, T)
    total = F.embedding_bag(
        bags,
        level.reshape(height * before, dim),
        mode="sum",
        per_sample_weights=weights.repeat(height, 1),
    )
    return total.view(height, len(places), dim)


def folded_weights(fusion: LevelFusion) -> tuple[list[Tensor], Tensor | None]:
    """Weights (D, C_l) of each level and bias (D,), in float64.

    A batch norm is part of them. Any other norm and the activation are left to the caller.
    """
    weight, bias = fusion.weight.double().flatten(1), None
    if isinstance(fusion.norm, BatchNorm):
        scale, bias = scale_and_shift(fusion.norm)
        weight = weight * scale[:, None]
    return list(weight.split(fusion.level_channels, dim=1)), bias


class FastLevelFusion(nn.Module):
    """The linear part of :class:`LevelFusion`, for some rows at a time.

    Args:
        weights: (D, C_l) for each level, the finest first.
        bias: (D,) or None.
        dtype: of the parameters.
    """

    def __init__(self, weights: Sequence[Tensor], bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        finest, *coarse = (weight.to(dtype) for weight in weights)
        self.finest = PackedLinear(finest, None if bias is None else bias.to(dtype))
        self.coarse = nn.ModuleList(PackedLinear(part, None) for part in coarse)

    def resized_sum(self, coarse: Sequence[Tensor], size: tuple[int, int]) -> ResizedSum | None:
        """What the coarse levels (H_l, W_l, C_l) of one image add to the result."""
        maps = [fuse(level) for fuse, level in zip(self.coarse, coarse, strict=True)]
        return ResizedSum(maps, size) if maps else None

    def band(self, finest: Tensor, total: ResizedSum | None, top: int, bottom: int) -> Tensor:
        """Rows (n, W, C_0) of the finest level -> (n, W, D) before the activation."""
        return self.finest(finest, None if total is None else total.band(top, bottom))
