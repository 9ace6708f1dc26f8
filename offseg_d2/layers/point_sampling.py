"""Maps read at points: bilinear sampling, and the choice of points where a mask is uncertain.

Comparing masks at some thousands of points instead of all pixels is what keeps matching and mask
losses affordable. Paper: PointRend (arXiv:1912.08193), section 3.1; Mask2Former (arXiv:2112.01527),
section 3.3.

Shapes: N masks, P points. Points are (x, y) in [0, 1], whatever the size of the map; the centre of
a map's first pixel is (0.5 / W, 0.5 / H).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Gives uniform numbers in [0, 1) of a shape, on a device.
PointSource = Callable[[tuple[int, ...], torch.device], Tensor]


def uniform_points(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Uniform numbers in [0, 1) of torch's global generator, float32."""
    return torch.rand(shape, device=device)


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Read maps at points, bilinearly; beyond the centres of the outermost pixels zeros mix in.

    Args:
        maps: (N, C, H, W).
        points: (N, P, 2), (x, y) in [0, 1], of the maps' floating-point type.

    Returns:
        (N, C, P).
    """
    grid = 2.0 * points.unsqueeze(2) - 1.0  # (N, P, 1, 2)
    return F.grid_sample(maps, grid, mode="bilinear", align_corners=False).squeeze(3)


def points_to_draw(
    masks: int, num_points: int, *, oversample_ratio: float, importance_ratio: float
) -> list[tuple[int, int, int]]:
    """Shapes that :func:`uncertain_points` draws, in this order; arguments as there."""
    shapes = [(masks, int(oversample_ratio * num_points), 2)]
    rest = num_points - int(importance_ratio * num_points)
    return [*shapes, (masks, rest, 2)] if rest else shapes


@torch.no_grad()
def uncertain_points(
    mask_logits: Tensor,
    num_points: int,
    *,
    oversample_ratio: float,
    importance_ratio: float,
    draw: PointSource = uniform_points,
) -> Tensor:
    """Random points of each mask, most of them where its logit is nearest to zero.

    ``oversample_ratio * num_points`` points are drawn and the most uncertain of them kept, as many
    as ``importance_ratio`` of ``num_points``; the rest are drawn at random.

    Args:
        mask_logits: (N, 1, H, W), floating point.
        num_points: P.
        oversample_ratio: drawn points per point, at least 1.
        importance_ratio: share of uncertain points, in [0, 1].
        draw: called for the points to choose from, then for the rest, as (N, number, 2).

    Returns:
        (N, P, 2), (x, y) in [0, 1], without gradient.
    """
    masks, device, dtype = len(mask_logits), mask_logits.device, mask_logits.dtype
    num_uncertain = int(importance_ratio * num_points)
    shapes = points_to_draw(
        masks, num_points, oversample_ratio=oversample_ratio, importance_ratio=importance_ratio
    )
    drawn = draw(shapes[0], device).to(dtype)
    uncertainty = -sample_points(mask_logits, drawn).squeeze(1).abs()  # (N, drawn)
    kept = uncertainty.topk(num_uncertain, dim=1).indices
    uncertain = drawn.gather(1, kept.unsqueeze(2).expand(-1, -1, 2))
    if len(shapes) == 1:
        return uncertain
    rest = draw(shapes[1], device).to(dtype)
    return torch.cat([uncertain, rest], dim=1)
