"""Cross-entropy in bands against resizing everything first."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from offseg_d2.layers import resized_cross_entropy
from offseg_d2.layers.resized_cross_entropy import _few_kernels
from tests.common import assert_close

IGNORED = 255


def plainly(logits: Tensor, targets: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = targets.shape[-2:]
    resized = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    resized = resized[..., :height, :width]
    return F.cross_entropy(resized, targets, ignore_index=IGNORED, reduction="sum")


def case(shape, targets_size, dtype=torch.float64) -> tuple[Tensor, Tensor]:
    logits = (3 * torch.randn(shape, dtype=dtype)).requires_grad_()
    targets = torch.randint(0, shape[1], (shape[0], *targets_size))
    targets[torch.rand(targets.shape) < 0.2] = IGNORED
    return logits, targets


@pytest.mark.parametrize("rows_at_once", [1, 3, 1000])
@pytest.mark.parametrize(
    ("shape", "size", "targets_size"),
    [
        ((2, 5, 4, 6), (16, 24), (16, 24)),
        ((2, 5, 4, 6), (16, 24), (13, 22)),  # padding is cut off
        ((1, 3, 5, 3), (17, 7), (17, 7)),  # no whole factor
        ((1, 3, 1, 2), (4, 9), (4, 9)),
        ((1, 3, 9, 8), (5, 3), (5, 3)),  # smaller than the logits
        ((1, 2, 4, 4), (4, 4), (3, 4)),  # nothing to resize
    ],
)
def test_loss_and_gradient_equal_those_of_resizing_everything(
    monkeypatch, shape, size, targets_size, rows_at_once
):
    values = rows_at_once * targets_size[1] * shape[1]
    monkeypatch.setitem(_bands(), "cpu", values)
    logits, targets = case(shape, targets_size)
    expected = plainly(logits, targets, size)
    (expected_gradient,) = torch.autograd.grad(2.5 * expected, logits)
    loss = resized_cross_entropy(logits, targets, size, ignore_index=IGNORED)
    (gradient,) = torch.autograd.grad(2.5 * loss, logits)
    assert_close(loss, expected, 1e-10)
    assert_close(gradient, expected_gradient, 1e-10)


def _bands() -> dict[str, int]:
    return resized_cross_entropy.__globals__["_BAND_VALUES"]


def test_gradients_equal_finite_differences():
    logits, targets = case((2, 3, 3, 2), (7, 8))
    assert torch.autograd.gradcheck(
        lambda x: resized_cross_entropy(x, targets, (7, 8), ignore_index=IGNORED), (logits,)
    )


@pytest.mark.parametrize("size", [(4, 6), (16, 24)])
def test_weights_multiply_the_losses_of_their_classes(monkeypatch, size):
    monkeypatch.setitem(_bands(), "cpu", 3 * size[1] * 5)
    logits, targets = case((2, 5, 4, 6), size)
    weight = torch.tensor([0.0, 0.5, 1.0, 2.0, 7.0], dtype=torch.float64)
    resized = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    pixels = F.cross_entropy(resized, targets, ignore_index=IGNORED, reduction="none")
    factors = weight[targets.masked_fill(targets == IGNORED, 0)]
    expected = (pixels * factors).sum()
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    loss = resized_cross_entropy(logits, targets, size, ignore_index=IGNORED, weight=weight)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert_close(loss, expected, 1e-10)
    assert_close(gradient, expected_gradient, 1e-10)


def test_memory_layout_of_the_logits_does_not_matter():
    logits, targets = case((2, 5, 4, 6), (16, 24))
    losses, gradients = [], []
    for layout in (torch.contiguous_format, torch.channels_last):
        own = logits.detach().contiguous(memory_format=layout).requires_grad_()
        losses.append(resized_cross_entropy(own, targets, (16, 24), ignore_index=IGNORED))
        losses[-1].backward()
        gradients.append(own.grad)
    assert torch.equal(*losses) and torch.equal(*gradients)


def test_float32_is_as_exact_as_resizing_everything():
    logits, targets = case((1, 150, 16, 16), (64, 64), torch.float32)
    exact = plainly(logits.detach().double(), targets, (64, 64)).item()
    ours = resized_cross_entropy(logits, targets, (64, 64), ignore_index=IGNORED)
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(exact, rel=1e-6)


def test_no_labelled_pixel_gives_zero_loss_and_gradient():
    logits, targets = case((1, 3, 2, 2), (8, 8))
    loss = resized_cross_entropy(
        logits, torch.full_like(targets, IGNORED), (8, 8), ignore_index=IGNORED
    )
    loss.backward()
    assert loss.item() == 0 and logits.grad.eq(0).all()


def test_without_gradients_the_loss_is_the_same():
    logits, targets = case((1, 3, 2, 2), (8, 8))
    with torch.no_grad():
        loss = resized_cross_entropy(logits, targets, (8, 8), ignore_index=IGNORED)
    assert not loss.requires_grad
    assert torch.equal(loss, resized_cross_entropy(logits, targets, (8, 8), ignore_index=IGNORED))


def test_second_derivatives_are_refused():
    logits, targets = case((1, 3, 2, 2), (8, 8))
    loss = resized_cross_entropy(logits, targets, (8, 8), ignore_index=IGNORED)
    with pytest.raises(RuntimeError, match="ResizedCrossEntropy cannot be differentiated again"):
        torch.autograd.grad(loss, logits, create_graph=True)


@pytest.mark.parametrize("bad", [3, -1])
def test_labels_that_are_no_class_are_refused(bad):
    logits, targets = case((1, 3, 2, 2), (8, 8))
    targets[0, 5, 5] = bad
    with pytest.raises(IndexError, match=f"Target {bad} is out of bounds"):
        resized_cross_entropy(logits, targets, (8, 8), ignore_index=IGNORED)


def test_labels_larger_than_the_resized_logits_are_refused():
    logits, targets = case((1, 3, 2, 2), (9, 8))
    with pytest.raises(ValueError, match=r"`targets` must be at most \(8, 8\) pixels"):
        resized_cross_entropy(logits, targets, (8, 8), ignore_index=IGNORED)


def test_the_form_for_other_devices_has_the_same_value_and_gradient():
    logits = torch.randn(2, 5, 6, 9, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 5, (2, 20, 33))
    targets[0, :9] = 255
    results = []
    for form in (resized_cross_entropy, _few_kernels):
        size = {"size": (24, 36), "ignore_index": 255}
        loss = form(logits, targets, **size)
        (gradient,) = torch.autograd.grad(loss, logits)
        results.append((loss, gradient))
    torch.testing.assert_close(*results)
