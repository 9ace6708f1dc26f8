"""Scores of queries: equal to combining everything at once, row by row, within bounded memory."""

import pytest
import torch
from torch import Tensor

from offseg_d2.modeling.meta_arch import QueryScores, scores
from tests.common import assert_close
from tests.modeling.mask_query import combined


def queries(count: int = 6, classes: int = 4, size=(8, 12)) -> tuple[Tensor, Tensor]:
    logits = torch.randn(count, classes + 1, dtype=torch.float64)
    masks = 4 * torch.randn(count, *size, dtype=torch.float64)
    return logits.softmax(1)[:, :-1], masks


@pytest.mark.parametrize("size", [(32, 48), (8, 12), (31, 50), (5, 7), (1, 1)])
def test_scores_are_sums_of_class_times_mask_probability(size):
    probabilities, masks = queries()
    actual = QueryScores(probabilities, masks, size).rows(0, size[0])
    assert_close(actual, combined(probabilities, masks, size), 1e-12)


@pytest.mark.parametrize("values", [1, 1000, 10**9])
def test_any_rows_equal_those_of_the_whole_whatever_the_size_of_a_block(values, monkeypatch):
    monkeypatch.setattr(scores, "BAND_BYTES", values)
    probabilities, masks = queries()
    whole = combined(probabilities, masks, (32, 48))[:, :29, :45]
    some = QueryScores(probabilities, masks, (32, 48), (29, 45))
    for first, end in [(0, 29), (0, 1), (28, 29), (3, 17)]:
        assert_close(some.rows(first, end), whole[:, first:end], 1e-12)


def test_masks_of_all_queries_never_exist_at_full_size(monkeypatch):
    monkeypatch.setattr(scores, "BAND_BYTES", 4 * 6 * 48 * 3)  # three rows of six masks
    largest, sigmoid = [], Tensor.sigmoid

    def record(self: Tensor) -> Tensor:
        largest.append(self.numel())
        return sigmoid(self)

    monkeypatch.setattr(Tensor, "sigmoid", record)
    probabilities, masks = queries()
    QueryScores(probabilities, masks, (32, 48)).rows(0, 32)
    assert max(largest) == 6 * 48 * 3 and sum(largest) == 6 * 48 * 32
