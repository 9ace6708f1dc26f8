"""Multi-scale deformable attention: each query reads a few points of every level of a pyramid.

Paper: Deformable DETR (arXiv:2010.04159), section 4.1. Where the points lie, relative to the query,
and how much each of them counts, are linear functions of the query; so the cost grows with the
number of pixels, not with its square.

The points are read by ``grid_sample``, which needs no compiled extension. If the optional package
torch-ms-deform-attn is installed, its operator does the same in less time, on CPU and CUDA.

Shapes: B batch, C channels, h heads, L levels, P points per level, S pixels of all levels, Q
queries. Points are (x, y) in [0, 1] of a level's extent.
"""

import functools
import logging
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

logger = logging.getLogger(__name__)


def sample_levels(
    values: Tensor, level_sizes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Weighted sum of the values at each query's points, by the fastest way there is.

    Args:
        values: (B, S, h, C / h), the pixels of all levels one after the other, row by row.
        level_sizes: (height, width) of each level in pixels; their areas add up to S.
        locations: (B, Q, h, L, P, 2), (x, y) in [0, 1]; zeros lie beyond the level's border.
        weights: (B, Q, h, L, P).

    Returns:
        (B, Q, C).
    """
    if not has_compiled_operator(values.device.type):
        return sample_levels_by_grid(values, level_sizes, locations, weights)
    from torch_ms_deform_attn import ms_deform_attn

    sizes = torch.tensor(level_sizes).to(values.device, non_blocking=True)  # (L, 2)
    areas = sizes.prod(dim=1)
    return ms_deform_attn(values, sizes, areas.cumsum(0) - areas, locations, weights)


def sample_levels_by_grid(
    values: Tensor, level_sizes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """:func:`sample_levels` in PyTorch alone."""
    batch, queries, heads, _, points, _ = locations.shape
    grids = 2.0 * locations - 1.0
    grids = grids.permute(3, 0, 2, 1, 4, 5).reshape(-1, batch * heads, queries, points, 2)
    shares = weights.permute(3, 0, 2, 1, 4).reshape(-1, batch * heads, 1, queries, points)
    areas = [height * width for height, width in level_sizes]
    total: Tensor | None = None
    for value, size, grid, share in zip(
        values.split(areas, dim=1), level_sizes, grids, shares, strict=True
    ):
        level = value.permute(0, 2, 3, 1).reshape(batch * heads, -1, *size)
        read = F.grid_sample(level, grid, mode="bilinear", align_corners=False)
        read = (read * share).sum(dim=-1)  # (B h, C / h, Q)
        total = read if total is None else total + read
    assert total is not None, "a pyramid has at least one level"
    return total.reshape(batch, -1, queries).mT  # (B, Q, C)


@torch.compiler.assume_constant_result  # or torch.compile would cut the model in pieces here
def has_compiled_operator(device_type: str) -> bool:
    """Check that the package torch-ms-deform-attn is installed and works on a type of device."""
    return _has_compiled_operator(device_type)


@functools.cache
def _has_compiled_operator(device_type: str) -> bool:
    try:
        from torch_ms_deform_attn import ms_deform_attn
    except ModuleNotFoundError:
        return False
    except (ImportError, OSError) as error:  # built against another PyTorch
        logger.warning(f"torch_ms_deform_attn cannot be loaded and is not used: {error}")
        return False
    try:  # it may have been built without CUDA
        _try_operator(ms_deform_attn, torch.device(device_type))
    except (RuntimeError, NotImplementedError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        logger.warning(f"torch_ms_deform_attn is not used on {device_type}: {reason}")
        return False
    logger.info(f"Deformable attention on {device_type}: operator of torch_ms_deform_attn.")
    return True


def _try_operator(operator: Callable[..., Tensor], device: torch.device) -> None:
    """Read one pixel; raises RuntimeError if the result is wrong."""
    values = torch.ones(1, 1, 1, 1, device=device)
    sizes, starts = torch.ones(1, 2, device=device).long(), torch.zeros(1, device=device).long()
    locations = torch.full((1, 1, 1, 1, 1, 2), 0.5, device=device)
    weights = torch.full((1, 1, 1, 1, 1), 2.0, device=device)
    if operator(values, sizes, starts, locations, weights).tolist() != [[[2.0]]]:
        raise RuntimeError("it reads a wrong value")


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention with its four projections.

    Args:
        dim: C, a multiple of ``num_heads``.
        num_heads: h.
        num_levels: L.
        num_points: P.

    Raises:
        ValueError: if ``dim`` is no multiple of ``num_heads``.
    """

    def __init__(
        self, dim: int, *, num_heads: int = 8, num_levels: int = 3, num_points: int = 4
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"`dim` must be a multiple of {num_heads} heads, but is {dim}.")
        self.points_shape = (num_heads, num_levels, num_points)
        points = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(dim, 2 * points)
        self.attention_weights = nn.Linear(dim, points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self._init_weights()

    def _init_weights(self) -> None:
        """Head k looks in direction k, point p lies p + 1 pixels away; all points count the same.

        The directions are those of ``num_heads`` equal angles, on the border of a square.
        """
        heads, levels, points = self.points_shape
        angles = 2 * math.pi / heads * torch.arange(heads, dtype=torch.float32)
        directions = torch.stack([angles.cos(), angles.sin()], dim=1)  # (h, 2)
        directions = directions / directions.abs().amax(dim=1, keepdim=True)
        distances = torch.arange(1, points + 1, dtype=torch.float32)
        offsets = directions[:, None, None] * distances[:, None]  # (h, 1, P, 2)
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        queries: Tensor,
        pixels: Tensor,
        reference_points: Tensor,
        level_sizes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Let each query read the pyramid around its reference point.

        Args:
            queries: (B, Q, C), position code included.
            pixels: (B, S, C), of all levels one after the other, row by row.
            reference_points: (Q, 2), (x, y) in [0, 1], the same in all levels.
            level_sizes: (height, width) of each level in pixels.

        Returns:
            (B, Q, C).
        """
        heads = self.points_shape[0]
        values = self.value_proj(pixels)
        # fp32: half precision cannot distinguish neighbouring positions.
        with torch.autocast(queries.device.type, enabled=False):
            dtype = torch.promote_types(queries.dtype, torch.float32)
            queries = queries.to(dtype)
            offsets = self.sampling_offsets(queries).unflatten(2, (*self.points_shape, 2))
            weights = self.attention_weights(queries).unflatten(2, (heads, -1))
            weights = weights.softmax(dim=3).unflatten(3, self.points_shape[1:])
            # Not one tensor of all numbers: an export would keep those of its example.
            sides = [side for height, width in level_sizes for side in (width, height)]
            extent = torch.stack([offsets.new_full((), side) for side in sides]).view(-1, 2)
            reference = reference_points[:, None, None, None]  # (Q, 1, 1, 1, 2)
            locations = torch.addcdiv(reference, offsets, extent[:, None])  # (B, Q, h, L, P, 2)
            values = values.to(dtype).unflatten(2, (heads, -1))
            read = sample_levels(values, level_sizes, locations, weights)
        return self.output_proj(read)
