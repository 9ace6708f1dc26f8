"""Two-dimensional sine position code: where a pixel lies, written as waves of many lengths.

Papers: "Attention Is All You Need" (arXiv:1706.03762), section 3.5, for one axis; DETR
(arXiv:2005.12872), appendix A.4, for two.

Shapes: C channels, H x W pixels.
"""

import math

import torch
from torch import Tensor

TEMPERATURE = 10_000.0


def sine_position_encoding(
    height: int,
    width: int,
    dim: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Position code of every pixel of a map.

    The first half of the channels encodes the row, the second half the column. A coordinate counts
    from 1 and is scaled such that the last one is (nearly) 2 pi; so the code does not depend on
    the size of the map but on the position within it.

    Args:
        height: H.
        width: W.
        dim: C, a multiple of 4.
        dtype: floating-point type of the code.
        device: device of the code.

    Returns:
        (C, H, W), without gradient.

    Raises:
        ValueError: if ``dim`` is no multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"`dim` must be a multiple of 4, but is {dim}.")
    rows = _axis_code(height, dim // 2, dtype, device)  # (C / 2, H)
    columns = _axis_code(width, dim // 2, dtype, device)  # (C / 2, W)
    # Waves are computed once per row and column, not once per pixel.
    return torch.cat(
        [rows[:, :, None].expand(-1, -1, width), columns[:, None].expand(-1, height, -1)]
    )


def _axis_code(
    length: int, dim: int, dtype: torch.dtype, device: torch.device | str | None
) -> Tensor:
    """Sines (even channels) and cosines (odd ones) of one axis' coordinates: (dim, length)."""
    coordinates = torch.arange(1, length + 1, dtype=dtype, device=device)
    coordinates = coordinates / (length + 1e-6) * (2 * math.pi)
    exponents = torch.arange(0, dim, 2, dtype=dtype, device=device) / dim
    angles = coordinates / (TEMPERATURE**exponents)[:, None]  # (dim / 2, length)
    return torch.stack([angles.sin(), angles.cos()], dim=1).flatten(0, 1)
