"""Resampling by explicit weights: PyTorch's interpolation, composed, cut and in blocks."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from offseg_d2.layers import Resampling, bilinear, identity, resample
from tests.common import assert_close

CPU = torch.device("cpu")
SIZES = [
    *((1, 1), (1, 5), (5, 1), (4, 16), (16, 4)),
    *((171, 683), (7, 7), (9, 10), (10, 9), (750, 3000)),
]


def axis(before: int, after: int, dtype: torch.dtype = torch.float32) -> Resampling:
    return bilinear(before, after, dtype=dtype, device=CPU)


def interpolate(scores: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]


@pytest.mark.parametrize(("before", "after"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_are_those_of_pytorch(before, after, dtype):
    signal = torch.randn(2, before, 3, dtype=dtype)
    expected = interpolate(signal, (after, 3))
    # A formula in float32 would be off by 6e-5 at the larger sizes.
    assert_close(resample(signal, axis(before, after, dtype), axis(3, 3, dtype)), expected, 1e-6)
    columns = signal.mT.contiguous()
    resized = resample(columns, axis(3, 3, dtype), axis(before, after, dtype))
    assert_close(resized, expected.mT, 1e-6)


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_outputs_are_weighted_means_of_neighbours_in_ascending_order(before, after):
    resize = axis(before, after)
    assert len(resize) == after
    assert_close(resize.weights.sum(1), torch.ones(after))
    assert resize.weights.min() >= 0 and resize.weights.shape[1] <= 2
    assert (resize.start.diff() >= 0).all() and (resize.end.diff() >= 0).all()
    assert resize.positions().min() >= 0 and resize.positions().max() < before
    first, last = resize.weights[:, 0], resize.weights.gather(1, resize.span[:, None] - 1)
    assert (first != 0).all() and (last != 0).all()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(12, 25), (6, 7), (3, 7), (6, 2), (1, 1)])
def test_both_axes_are_resized_in_any_layout(size, memory_format):
    scores = torch.randn(1, 4, 6, 7).contiguous(memory_format=memory_format)
    before = scores.clone()
    resized = resample(scores[0], axis(6, size[0]), axis(7, size[1]))
    assert_close(resized, interpolate(scores[0], size))
    assert torch.equal(scores, before)


@pytest.mark.parametrize(
    "sizes",
    [
        (5, 20, 17, 31),  # resized, cut, resized
        (5, 20, 20, 3),  # far down: some inputs have no weight
        (30, 11, 9, 40),
        (1, 32, 30, 7),
        (6, 6, 4, 4),
    ],
)
def test_two_steps_with_a_cut_between_are_one(sizes):
    before, middle, cut, after = sizes
    signal = torch.randn(3, before, 1, dtype=torch.float64)
    expected = interpolate(interpolate(signal, (middle, 1))[:, :cut], (after, 1))
    dtype = torch.float64
    both = axis(before, middle, dtype).cut(0, cut).then(axis(cut, after, dtype))
    assert_close(resample(signal, both, axis(1, 1, dtype)), expected, 1e-12)


def test_any_rows_can_be_computed_from_their_own_inputs_alone():
    scores, rows, columns = torch.randn(3, 9, 5), axis(9, 40), axis(5, 11)
    whole = resample(scores, rows, columns)
    for begin, end in ((0, 1), (0, 40), (7, 23), (39, 40)):
        part = rows.cut(begin, end)
        top, bottom = part.extent()
        assert bottom - top <= (end - begin) * 9 / 40 + 3
        block = resample(scores[:, top:bottom], part.cut(0, end - begin, top), columns)
        assert_close(block, whole[:, begin:end], 1e-6)


def test_identity_is_recognised_and_copies_nothing():
    assert axis(7, 7).is_identity and axis(7, 7).cut(0, 5).is_identity
    assert identity(3, dtype=torch.float32, device=CPU).is_identity
    assert axis(7, 7).cut(3, 6, 3).is_identity
    for other in (axis(7, 8), axis(7, 6), axis(7, 7).cut(1, 7), axis(1, 3)):
        assert not other.is_identity
    scores = torch.randn(2, 7, 7)
    cut = resample(scores, axis(7, 7).cut(0, 5), axis(7, 7))
    assert cut.data_ptr() == scores.data_ptr() and torch.equal(cut, scores[:, :5])
