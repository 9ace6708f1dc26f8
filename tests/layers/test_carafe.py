"""CARAFE against the formula written as loops, and its own backward pass."""

import pytest
import torch
from torch import Tensor

from offseg_d2.layers import carafe
from tests.common import assert_close


def carafe_by_loops(features: Tensor, kernels: Tensor, k: int, scale: int) -> Tensor:
    batch, channels, height, width = features.shape
    r = (k - 1) // 2
    out = features.new_zeros(batch, channels, height * scale, width * scale)
    for y in range(height * scale):
        for x in range(width * scale):
            for dy in range(-r, r + 1):
                for dx in range(-r, r + 1):
                    row, column = y // scale + dy, x // scale + dx
                    if 0 <= row < height and 0 <= column < width:
                        weight = kernels[:, (dy + r) * k + dx + r, y, x]
                        out[:, :, y, x] += weight[:, None] * features[:, :, row, column]
    return out


def inputs(batch: int, k: int, scale: int, size=(3, 4), channels: int = 3) -> tuple[Tensor, Tensor]:
    height, width = size
    features = torch.randn(batch, channels, height, width, dtype=torch.float64)
    kernels = torch.randn(batch, k * k, scale * height, scale * width, dtype=torch.float64)
    return features, kernels


@pytest.mark.parametrize("size", [(3, 4), (1, 1), (6, 2)])
@pytest.mark.parametrize("scale", [1, 2, 3])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_equals_the_formula_as_loops(k, scale, size):
    features, kernels = inputs(2, k, scale, size)
    expected = carafe_by_loops(features, kernels, k, scale)
    assert_close(carafe(features, kernels, k, scale), expected, 1e-12)


@pytest.mark.parametrize(("size", "batch", "fast"), [((2, 2), 2, False), ((4, 5), 3, True)])
@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("k", [3, 5])
def test_gradients_equal_finite_differences(k, scale, size, batch, fast):
    features, kernels = inputs(batch, k, scale, size, channels=2)
    features.requires_grad_()
    kernels.requires_grad_()

    def run(f: Tensor, m: Tensor) -> Tensor:
        return carafe(f, m, k, scale)

    # fast: a random projection of the Jacobian instead of all its columns
    assert torch.autograd.gradcheck(run, (features, kernels), fast_mode=fast)


def test_gradients_equal_those_of_the_loops_when_only_one_input_learns():
    for learning in (0, 1):
        pairs = []
        for function in (carafe, carafe_by_loops):
            torch.manual_seed(1)
            both = inputs(2, 3, 2)
            both[learning].requires_grad_()
            out = function(*both, 3, 2)
            (out * torch.arange(out.numel()).view(out.shape)).sum().backward()
            pairs.append(both[learning].grad)
            assert both[1 - learning].grad is None
        assert_close(*pairs, 1e-12)


def test_result_does_not_depend_on_whether_gradients_are_recorded():
    features, kernels = inputs(2, 5, 2)
    plain = carafe(features, kernels, 5, 2)
    recorded = carafe(features.requires_grad_(), kernels, 5, 2)
    assert recorded.requires_grad and torch.equal(plain, recorded)
    with torch.no_grad():
        assert not carafe(features, kernels, 5, 2).requires_grad


def test_uniform_kernels_average_and_a_centre_kernel_is_nearest_upsampling():
    features = torch.arange(6.0).view(1, 1, 2, 3)
    average = torch.full((1, 9, 2, 3), 1 / 9)
    total = features.sum()
    # every pixel of a 2 x 3 map that is at most one step from the middle column sees all six
    assert_close(carafe(features, average, 3)[0, 0, :, 1], (total / 9).expand(2))
    centre = torch.zeros(1, 9, 4, 6)
    centre[:, 4] = 1
    upsampled = features.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert torch.equal(carafe(features, centre, 3, scale=2), upsampled)


def test_samples_of_a_batch_do_not_influence_each_other():
    features, kernels = inputs(3, 3, 2)
    together = carafe(features, kernels, 3, 2)
    alone = torch.cat(
        [carafe(f[None], m[None], 3, 2) for f, m in zip(features, kernels, strict=True)]
    )
    assert torch.equal(together, alone)


def test_result_has_the_type_of_the_features_and_sums_in_the_wider_one():
    features, kernels = (x.float() for x in inputs(1, 5, 1, channels=8))
    narrow = carafe(features.bfloat16(), kernels, 5)
    assert narrow.dtype == torch.bfloat16
    exact = carafe(features.bfloat16().float(), kernels, 5)
    assert torch.equal(narrow, exact.bfloat16())  # rounded once, at the end


def test_non_contiguous_inputs_are_fine():
    features, kernels = inputs(2, 3, 2)
    strided = features.to(memory_format=torch.channels_last)
    kernels_strided = kernels.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(carafe(strided, kernels_strided, 3, 2), carafe(features, kernels, 3, 2))


@pytest.mark.parametrize(
    ("shape", "k", "scale", "message"),
    [
        ((1, 4, 4, 4), 2, 1, "`kernel_size` must be odd, but is 2"),
        ((1, 9, 4, 4), 3, 2, r"`kernels` must have shape \(1, 9, 8, 8\), but has \(1, 9, 4, 4\)"),
        ((1, 25, 4, 4), 3, 1, r"`kernels` must have shape \(1, 9, 4, 4\)"),
        ((2, 9, 4, 4), 3, 1, r"`kernels` must have shape \(1, 9, 4, 4\)"),
    ],
)
def test_kernels_that_do_not_fit_are_refused(shape, k, scale, message):
    with pytest.raises(ValueError, match=message):
        carafe(torch.zeros(1, 3, 4, 4), torch.zeros(shape), k, scale)
