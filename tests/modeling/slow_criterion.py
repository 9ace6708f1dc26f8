"""The losses of mask classification written out: loops over numbers, one assignment by trial.

Takes the same random points as :class:`offseg_d2.modeling.criterion.SetCriterion`, handed over as
nested lists, and shares no code with it.
"""

import itertools
import math
from collections.abc import Iterator

Grid = list[list[float]]
Points = list[list[float]]


def read(grid: Grid, x: float, y: float) -> float:
    """Bilinear value at (x, y) in [0, 1]; zero outside."""
    height, width = len(grid), len(grid[0])
    column, row = x * width - 0.5, y * height - 0.5
    value = 0.0
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            if 0 <= i < height and 0 <= j < width:
                value += (1 - abs(row - i)) * (1 - abs(column - j)) * float(grid[i][j])
    return value


def cross_entropy(xs: list[float], ts: list[float]) -> float:
    """Mean over points."""
    total = 0.0
    for x, t in zip(xs, ts, strict=True):
        total += t * math.log1p(math.exp(-x)) + (1 - t) * math.log1p(math.exp(x))
    return total / len(xs)


def dice(xs: list[float], ts: list[float]) -> float:
    ps = [1 / (1 + math.exp(-x)) for x in xs]
    overlap = sum(p * t for p, t in zip(ps, ts, strict=True))
    return 1 - (2 * overlap + 1) / (sum(ps) + sum(ts) + 1)


def log_softmax(row: list[float]) -> list[float]:
    total = math.log(sum(math.exp(x) for x in row))
    return [x - total for x in row]


def match(
    logits: Grid, masks: list[Grid], labels: list[int], targets: list[Grid], points: Points
) -> list[tuple[int, int]]:
    """Pairs (query, mask), by ascending query; weights 2, 5 and 5."""
    ours = [[read(mask, *point) for point in points] for mask in masks]
    theirs = [[read(target, *point) for point in points] for target in targets]

    def cost(q: int, m: int) -> float:
        probability = math.exp(log_softmax(logits[q])[labels[m]])
        masks_cost = 5 * cross_entropy(ours[q], theirs[m]) + 5 * dice(ours[q], theirs[m])
        return masks_cost - 2 * probability

    costs = [[cost(q, m) for m in range(len(labels))] for q in range(len(masks))]
    orders = itertools.permutations(range(len(masks)), len(labels))
    best = min(orders, key=lambda order: sum(costs[q][m] for m, q in enumerate(order)))
    return sorted((q, m) for m, q in enumerate(best))


def losses(
    batch: list[tuple[Grid, list[Grid], list[int], list[Grid]]],
    no_object: float,
    num_points: int,
    importance: float,
    draws: Iterator,
) -> tuple[float, float, float]:
    """(class, mask, dice) of one prediction, weighted 2, 5 and 5.

    Args:
        batch: for each image class logits, mask logits, labels and masks.
        no_object: weight of the class "none".
        num_points: points per mask.
        importance: share of uncertain points.
        draws: the random numbers in the order in which they are drawn.
    """
    matches = [match(*image, next(draws)[0]) if image[2] else [] for image in batch]
    total = weights = 0.0
    for (logits, _, labels, _), pairs in zip(batch, matches, strict=True):
        wanted = {q: labels[m] for q, m in pairs}
        for q, row in enumerate(logits):
            none = len(row) - 1
            weight = 1.0 if q in wanted else no_object
            total -= weight * log_softmax(row)[wanted.get(q, none)]
            weights += weight
    num_masks = max(sum(max(len(pairs), 1) for pairs in matches), 1)
    matched = [(i, q, m) for i, pairs in enumerate(matches) for q, m in pairs]
    if not matched:
        return 2 * total / weights, 0.0, 0.0
    candidates, random = next(draws), next(draws)
    loss_mask = loss_dice = 0.0
    for n, (i, q, m) in enumerate(matched):
        mask, target = batch[i][1][q], batch[i][3][m]
        by_doubt = sorted(candidates[n], key=lambda point, mask=mask: abs(read(mask, *point)))
        points = by_doubt[: int(importance * num_points)] + random[n]
        assert len(points) == num_points
        xs = [read(mask, *point) for point in points]
        ts = [read(target, *point) for point in points]
        loss_mask += cross_entropy(xs, ts)
        loss_dice += dice(xs, ts)
    return 2 * total / weights, 5 * loss_mask / num_masks, 5 * loss_dice / num_masks
