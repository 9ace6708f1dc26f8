"""The matcher against trying every assignment, and on predictions that are out of bounds."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from offseg_d2.modeling.matcher import (
    HungarianMatcher,
    assign,
    dice_cost,
    mask_cross_entropy_cost,
)
from tests.common import assert_close


def cheapest_by_trial(cost: Tensor) -> float:
    rows, columns = cost.shape
    if columns > rows:
        return cheapest_by_trial(cost.T)
    return min(
        sum(float(cost[row, column]) for column, row in enumerate(chosen))
        for chosen in itertools.permutations(range(rows), columns)
    )


@pytest.mark.parametrize("shape", [(1, 1), (4, 1), (5, 3), (4, 4), (3, 5)])
@pytest.mark.parametrize("seed", range(3))
def test_assignment_is_the_cheapest_of_all(shape, seed):
    torch.manual_seed(seed)
    cost = torch.randn(shape)
    rows, columns = assign(cost)
    assert len(rows) == len(columns) == min(shape)
    assert len(set(columns.tolist())) == len(columns)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert float(cost[rows, columns].sum()) == pytest.approx(cheapest_by_trial(cost))


def test_costs_are_those_of_each_pair():
    logits, masks = torch.randn(4, 7).double(), torch.rand(3, 7).round().double()
    expected = torch.zeros(2, 4, 3, dtype=torch.float64)
    for q, m in itertools.product(range(4), range(3)):
        entropy = overlap = ours = 0.0
        for x, t in zip(logits[q].tolist(), masks[m].tolist(), strict=True):
            p = 1 / (1 + math.exp(-x))
            entropy -= t * math.log(p) + (1 - t) * math.log(1 - p)
            overlap, ours = overlap + p * t, ours + p
        expected[0, q, m] = entropy / 7
        expected[1, q, m] = 1 - (2 * overlap + 1) / (ours + float(masks[m].sum()) + 1)
    assert_close(mask_cross_entropy_cost(logits, masks), expected[0])
    assert_close(dice_cost(logits, masks), expected[1])


def predictions(queries: int = 5, classes: int = 3) -> dict[str, Tensor]:
    return {
        "pred_logits": torch.randn(2, queries, classes + 1),
        "pred_masks": torch.randn(2, queries, 4, 6),
    }


def random_targets(*numbers: int, classes: int = 3) -> list[dict[str, Tensor]]:
    return [
        {
            "labels": torch.randint(0, classes, (number,)),
            "masks": (torch.rand(number, 16, 24) < 0.5).float(),
        }
        for number in numbers
    ]


def test_total_cost_is_the_weighted_sum():
    outputs, targets = predictions(), random_targets(3, 2)
    logits, masks, target = outputs["pred_logits"][0], outputs["pred_masks"][0], targets[0]
    points = torch.rand(1, 50, 2)

    def cost(c, m, d):
        matcher = HungarianMatcher(class_weight=c, mask_weight=m, dice_weight=d)
        return matcher.cost(logits, masks, target, points)

    assert_close(cost(2.0, 5.0, 3.0), 2 * cost(1, 0, 0) + 5 * cost(0, 1, 0) + 3 * cost(0, 0, 1))
    probabilities = logits.softmax(-1)[:, target["labels"]]
    assert_close(cost(1, 0, 0), -probabilities)


def test_each_query_finds_its_own_mask():
    targets = random_targets(3, 2)
    outputs = predictions()
    order = [[4, 0, 2], [3, 1]]
    outputs["pred_logits"].fill_(0.0)
    outputs["pred_masks"] = torch.full((2, 5, 16, 24), -9.0)
    for b, queries in enumerate(order):
        for index, query in enumerate(queries):
            outputs["pred_masks"][b, query] = 18.0 * targets[b]["masks"][index] - 9.0
            outputs["pred_logits"][b, query, targets[b]["labels"][index]] = 5.0
    for b, (queries, masks) in enumerate(HungarianMatcher(num_points=200)(outputs, targets)):
        assert queries.tolist() == sorted(order[b])
        assert masks.tolist() == [order[b].index(query) for query in sorted(order[b])]


def test_image_without_masks_and_image_with_more_masks_than_queries():
    outputs, targets = predictions(queries=4), random_targets(0, 7)
    drawn = []

    def draw(shape, device):
        drawn.append(shape)
        return torch.rand(shape)

    (none, no_mask), (queries, masks) = HungarianMatcher(num_points=30)(outputs, targets, draw)
    assert none.shape == no_mask.shape == (0,) and none.dtype == torch.int64
    assert queries.tolist() == [0, 1, 2, 3]
    assert len(set(masks.tolist())) == 4
    assert drawn == [(1, 30, 2)]  # one set of points, for the image that needs it


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_query_that_overflowed_is_matched_last(bad):
    outputs, targets = predictions(queries=4), random_targets(3, 3)
    outputs["pred_masks"][0, 1] = bad
    outputs["pred_logits"][1, 2] = bad
    matches = HungarianMatcher(num_points=30)(outputs, targets)
    assert matches[0][0].tolist() == [0, 2, 3]
    assert matches[1][0].tolist() == [0, 1, 3]
    outputs["pred_masks"][:] = bad  # nothing usable at all: still one query for each mask
    outputs["pred_logits"][:] = bad
    for queries, masks in HungarianMatcher(num_points=30)(outputs, targets):
        assert len(set(queries.tolist())) == 3 and sorted(masks.tolist()) == [0, 1, 2]


def test_costs_are_computed_in_single_precision_under_autocast():
    outputs, targets = predictions(), random_targets(3, 2)
    matcher, points = HungarianMatcher(), torch.rand(1, 50, 2)
    halves = {key: value.bfloat16() for key, value in outputs.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cost = matcher.cost(halves["pred_logits"][0], halves["pred_masks"][0], targets[0], points)
    assert cost.dtype == torch.float32
    rounded = {key: value.float() for key, value in halves.items()}
    expected = matcher.cost(rounded["pred_logits"][0], rounded["pred_masks"][0], targets[0], points)
    assert torch.equal(cost, expected)
