"""The Triton kernels of the cross-entropy of resized logits against resizing in float64."""

import torch
import torch.nn.functional as F
from torch import Tensor

from offseg_d2.layers import resized_cross_entropy
from offseg_d2.layers.kernels import resized_cross_entropy as operators
from tests.common import assert_close

IGNORED = 255
CHECKS = ("test_schema", "test_faketensor", "test_autograd_registration")


def case(shape, targets_size, dtype=torch.float32) -> tuple[Tensor, Tensor]:
    logits = 3 * torch.randn(shape, dtype=dtype)
    targets = torch.randint(0, shape[1], (shape[0], *targets_size))
    targets[torch.rand(targets.shape) < 0.2] = IGNORED
    return logits, targets


def ours(logits, targets, size) -> tuple[Tensor, Tensor]:
    logits = logits.detach().requires_grad_()
    loss = resized_cross_entropy(logits, targets, size, ignore_index=IGNORED)
    return loss.detach(), torch.autograd.grad(2.5 * loss, logits)[0]


def compare(logits, targets, size, tolerance=5e-6) -> tuple[Tensor, Tensor]:
    exact = logits.detach().double().requires_grad_()
    height, width = targets.shape[-2:]
    resized = F.interpolate(exact, size=size, mode="bilinear", align_corners=False)
    resized = resized[..., :height, :width]
    expected = F.cross_entropy(resized, targets, ignore_index=IGNORED, reduction="sum")
    (slope,) = torch.autograd.grad(2.5 * expected, exact)
    loss, gradient = ours(logits, targets, size)
    assert loss.dtype == torch.float32 and gradient.dtype == logits.dtype
    assert_close(loss.double(), expected.detach(), 5e-6)
    assert_close(gradient.double(), slope, tolerance, reason="rounding of the result's type")
    return loss, gradient


def check_losses_and_gradients_of_all_sizes():
    for shape, size, targets_size in [
        ((2, 3, 2, 3), (7, 9), (5, 8)),  # no whole factor; padding is cut off
        ((1, 2, 2, 1), (8, 4), (8, 4)),
        ((1, 2, 1, 2), (1, 9), (1, 9)),  # one axis is not resized
        ((1, 2, 5, 4), (3, 2), (3, 2)),  # smaller than the logits
        ((1, 2, 1, 35), (2, 70), (2, 70)),  # more columns and pixels than a program has
    ]:
        compare(*case(shape, targets_size), size)


def check_numbers_of_classes():
    for classes in (2, 19, 150, 171):
        compare(*case((1, classes, 1, 1), (1, 3)), (1, 3))


def check_weights_of_classes():
    logits, targets = case((1, 3, 2, 2), (3, 4))
    weight = torch.tensor([0.0, 0.5, 7.0])
    results = []
    for dtype in (torch.float32, torch.float64):  # the kernel, the PyTorch form
        own = logits.detach().to(dtype).requires_grad_()
        loss = resized_cross_entropy(
            own, targets, (3, 4), ignore_index=IGNORED, weight=weight.to(dtype)
        )
        results.append((loss.double(), torch.autograd.grad(loss, own)[0].double()))
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected, 5e-6)


def check_memory_layout_does_not_matter():
    logits, targets = case((2, 5, 2, 2), (3, 4))
    plain = compare(logits, targets, (3, 4))
    wide = torch.zeros(2, 5, 4, 2)
    wide[:, :, ::2] = logits
    for own in (
        (logits.contiguous(memory_format=torch.channels_last), targets),
        (wide[:, :, ::2], targets.mT.contiguous().mT),
    ):
        for actual, expected in zip(compare(*own, (3, 4)), plain, strict=True):
            assert torch.equal(actual, expected)


def check_half_precision_is_summed_in_float32():
    for dtype in (torch.float16, torch.bfloat16):
        compare(*case((1, 19, 1, 2), (4, 8), dtype), (4, 8), torch.finfo(dtype).eps)


def check_large_logits_stay_finite():
    logits, targets = case((1, 7, 1, 2), (2, 4))
    loss, gradient = compare(300 * logits, targets, (2, 4), tolerance=1e-3)
    assert loss.isfinite() and gradient.isfinite().all()


def check_no_labelled_pixel_gives_zero_loss_and_gradient():
    logits, targets = case((1, 3, 2, 2), (8, 8))
    loss, gradient = ours(logits, torch.full_like(targets[:, :3, :4], IGNORED), (8, 8))
    assert loss.item() == 0 and gradient.eq(0).all()


def check_labels_that_are_no_class_give_nan():
    for bad in (3, -1):
        logits, targets = case((1, 3, 2, 2), (8, 8))
        targets[0, 5, 5] = bad
        loss, _ = operators.cross_entropy_of_pixels(logits, targets, 8, 8, IGNORED)
        assert loss.isnan().nonzero().tolist() == [[0, 5, 5]]


def check_second_derivatives_are_refused():
    logits, targets = case((1, 3, 2, 2), (8, 8))
    loss = resized_cross_entropy(logits.requires_grad_(), targets, (8, 8), ignore_index=IGNORED)
    try:
        torch.autograd.grad(loss, logits, create_graph=True)
    except RuntimeError as error:
        assert "cannot be differentiated again" in str(error), error
        return
    raise AssertionError("no error")


def check_operators_are_sound():
    logits, targets = case((1, 3, 2, 2), (5, 6))
    loss, log_sum = operators.cross_entropy_of_pixels(logits, targets, 8, 8, IGNORED)
    for operator, *inputs in (
        (operators.cross_entropy_of_pixels, logits, targets),
        (operators.grad_logits, loss, logits, targets, log_sum),
    ):
        torch.library.opcheck(operator, (*inputs, 8, 8, IGNORED), test_utils=CHECKS)
