"""Reading maps at points, and choosing points where masks are uncertain."""

import math

import pytest
import torch
from torch import Tensor

from offseg_d2.layers import sample_points, uncertain_points
from tests.common import assert_close


def read_slowly(map_: Tensor, x: float, y: float) -> float:
    """Bilinear value at (x, y) in [0, 1] of an (H, W) map surrounded by zeros."""
    height, width = map_.shape
    column, row = x * width - 0.5, y * height - 0.5
    left, top = math.floor(column), math.floor(row)
    value = 0.0
    for i in (top, top + 1):
        for j in (left, left + 1):
            if 0 <= i < height and 0 <= j < width:
                value += (1 - abs(row - i)) * (1 - abs(column - j)) * float(map_[i, j])
    return value


def test_values_are_bilinear_with_zeros_around():
    maps = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    points = torch.rand(2, 30, 2, dtype=torch.float64)
    points[:, :4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.3, 0.0]])
    expected = torch.tensor(
        [
            [[read_slowly(maps[n, c], *points[n, p]) for p in range(30)] for c in range(3)]
            for n in range(2)
        ]
    )
    assert_close(sample_points(maps, points), expected.double())


def test_first_coordinate_runs_along_the_width():
    ramp = torch.arange(8.0).expand(1, 1, 2, 8)
    assert sample_points(ramp, torch.tensor([[[2.5 / 8, 0.5]]])).item() == 2.0


def test_masks_of_any_size_are_read_at_the_same_places():
    small = torch.tensor([[0.0, 1.0], [0.0, 1.0]])[None, None]
    large = small.repeat_interleave(8, 2).repeat_interleave(8, 3)
    points = torch.tensor([[[0.25, 0.5], [0.75, 0.5]]])
    assert sample_points(small, points).tolist() == sample_points(large, points).tolist()


@pytest.mark.parametrize("ratio, uncertain", [(0.75, 7), (1.0, 10), (0.0, 0)])
def test_most_uncertain_of_the_drawn_points_are_kept_and_the_rest_drawn_again(ratio, uncertain):
    logits = torch.randn(3, 1, 8, 8)
    drawn: list[Tensor] = []

    def draw(shape, device):
        drawn.append(torch.rand(shape, device=device))
        return drawn[-1]

    points = uncertain_points(logits, 10, oversample_ratio=3.0, importance_ratio=ratio, draw=draw)
    assert points.shape == (3, 10, 2)
    assert [tuple(d.shape) for d in drawn] == [(3, 30, 2), (3, 10 - uncertain, 2)][
        : 1 + (ratio < 1)
    ]
    for n in range(3):
        values = [abs(read_slowly(logits[n, 0], *point)) for point in drawn[0][n].tolist()]
        best = sorted(range(30), key=values.__getitem__)[:uncertain]
        chosen = points[n, :uncertain].tolist()
        assert sorted(chosen) == sorted(drawn[0][n, best].tolist())
        if ratio < 1:
            assert torch.equal(points[n, uncertain:], drawn[1][n])


def test_points_carry_no_gradient_and_no_masks_give_no_points():
    logits = torch.randn(2, 1, 4, 4, requires_grad=True)
    points = uncertain_points(logits, 5, oversample_ratio=2.0, importance_ratio=0.5)
    assert not points.requires_grad
    empty = uncertain_points(logits[:0], 5, oversample_ratio=2.0, importance_ratio=0.5)
    assert empty.shape == (0, 5, 2)
