"""The Triton kernels of the cosine with eight neighbours against the PyTorch form in float64."""

import torch
from torch import Tensor

from offseg_d2.layers import neighbour_similarity
from offseg_d2.layers.kernels import similarity as operators
from tests.common import assert_close

CHECKS = ("test_schema", "test_faketensor", "test_autograd_registration")


def differentiated(features, grad, dilation) -> list[Tensor]:
    features = features.detach().requires_grad_()
    out = neighbour_similarity(features, dilation)
    return [out.detach(), *torch.autograd.grad(out, features, grad)]


def compare(features, dilation=2, tolerance=5e-6, grad=None) -> list[Tensor]:
    batch, _, height, width = features.shape
    if grad is None:
        grad = torch.randn(batch, 8, height, width).to(features.dtype)
    ours = differentiated(features, grad, dilation)
    expected = differentiated(features.double(), grad.double(), dilation)
    for own, reference in zip(ours, expected, strict=True):
        assert own.dtype == features.dtype
        assert_close(own.double(), reference, tolerance, reason="rounding of the result's type")
    return ours


def check_values_and_gradients_of_all_sizes():
    for size, dilation in [
        ((2, 3, 5, 7), 2),
        ((1, 9, 3, 4), 1),
        ((1, 2, 1, 6), 2),
        ((1, 2, 2, 2), 3),  # no neighbour is inside
        ((1, 4, 11, 13), 2),  # more pixels than a program has
    ]:
        compare(torch.randn(size), dilation)


def check_pixels_without_length():
    features = torch.randn(1, 3, 4, 5)
    features[..., 1, 2] = 0
    features[..., 2, 2] = 1e-9
    compare(features[..., 1:2, 2:3], 1)
    ours = neighbour_similarity(features)
    assert_close(ours.double(), neighbour_similarity(features.double()), 2e-6)
    found = differentiated(features, torch.ones_like(ours), 2)[1].double()
    reference = differentiated(features.double(), torch.ones_like(ours).double(), 2)[1]
    assert_close(found / reference.abs().max(), reference / reference.abs().max(), 2e-6)


def check_memory_layout_does_not_matter():
    features, grad = torch.randn(2, 5, 4, 6), torch.randn(2, 8, 4, 6)
    plain = compare(features, grad=grad)
    wide = torch.zeros(2, 5, 8, 6)
    wide[:, :, ::2] = features
    for own in (features.contiguous(memory_format=torch.channels_last), wide[:, :, ::2]):
        for actual, expected in zip(compare(own, grad=grad.mT.contiguous().mT), plain, strict=True):
            assert torch.equal(actual, expected)


def check_half_precision_is_summed_in_float32():
    for dtype in (torch.float16, torch.bfloat16):
        compare(torch.randn(1, 24, 3, 4).to(dtype), 1, torch.finfo(dtype).eps)


def check_second_derivatives_are_refused():
    features = torch.randn(1, 2, 3, 3, requires_grad=True)
    try:
        torch.autograd.grad(neighbour_similarity(features).sum(), features, create_graph=True)
    except RuntimeError as error:
        assert "cannot be differentiated again" in str(error), error
        return
    raise AssertionError("no error")


def check_operators_are_sound():
    features = torch.randn(1, 3, 4, 4)
    similarity, norm = operators.neighbour_similarity(features, 2, 1e-8)
    for operator, *inputs in (
        (operators.neighbour_similarity, features),
        (operators.grad_features, similarity, features, similarity, norm),
    ):
        torch.library.opcheck(operator, (*inputs, 2, 1e-8), test_utils=CHECKS)
