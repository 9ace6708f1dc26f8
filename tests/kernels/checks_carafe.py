"""The Triton kernels of CARAFE against the PyTorch form in float64."""

import torch
from torch import Tensor

from offseg_d2.layers import carafe
from offseg_d2.layers.kernels import carafe as carafe_op
from tests.common import assert_close

CHECKS = ("test_schema", "test_faketensor", "test_autograd_registration")


def inputs(size, kernel_size, scale, dtype=torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Features, kernels and the gradient of the result."""
    batch, channels, height, width = size
    features = torch.randn(size, dtype=dtype)
    kernels = torch.randn(batch, kernel_size**2, scale * height, scale * width, dtype=dtype)
    return features, kernels, torch.randn(batch, channels, *kernels.shape[2:], dtype=dtype)


def differentiated(features, kernels, grad, *sizes) -> list[Tensor]:
    """Result and both gradients."""
    features, kernels = (x.detach().requires_grad_() for x in (features, kernels))
    out = carafe(features, kernels, *sizes)
    return [out.detach(), *torch.autograd.grad(out, (features, kernels), grad)]


def compare(features, kernels, grad, *sizes, tolerance=2e-6) -> list[Tensor]:
    ours = differentiated(features, kernels, grad, *sizes)
    assert "GeneratedBackward" in carafe(features.requires_grad_(), kernels, *sizes).grad_fn.name()
    expected = differentiated(features.double(), kernels.double(), grad.double(), *sizes)
    for own, reference in zip(ours, expected, strict=True):
        assert_close(own.double(), reference, tolerance, reason="rounding of the result's type")
    return ours


def check_values_and_gradients_of_all_sizes():
    for kernel_size, scale, size in [
        (3, 1, (2, 3, 3, 4)),
        (5, 1, (1, 2, 3, 4)),
        (3, 2, (1, 2, 1, 2)),
        (5, 2, (1, 9, 2, 3)),  # more channels than a program has
        (7, 1, (1, 1, 2, 2)),
        (1, 3, (1, 2, 2, 2)),
        (3, 1, (1, 1, 11, 13)),  # more pixels than a program has
    ]:
        compare(*inputs(size, kernel_size, scale), kernel_size, scale)


def check_memory_layout_does_not_matter():
    features, kernels, grad = inputs((2, 3, 2, 3), 3, 2)
    plain = compare(features, kernels, grad, 3, 2)
    wide = torch.randn(2, 3, 4, 4)
    wide[:, :, ::2, 1:] = features.detach()
    channels_last = [
        x.detach().contiguous(memory_format=torch.channels_last) for x in (features, kernels, grad)
    ]
    layouts = [channels_last, [wide[:, :, ::2, 1:].detach(), kernels.mT.contiguous().mT, grad]]
    for layout in layouts:
        for own, reference in zip(compare(*layout, 3, 2), plain, strict=True):
            assert torch.equal(own, reference)
    compare(features, kernels, grad[:1, :1, :1, :1].expand_as(grad), 3, 2)  # strides 0


def check_half_precision_is_summed_in_float32():
    for dtype in (torch.float16, torch.bfloat16):
        features, kernels, grad = inputs((1, 24, 2, 3), 3, 1, dtype)
        ours = compare(features, kernels, grad, 3, 1, tolerance=torch.finfo(dtype).eps)
        assert all(x.dtype == dtype for x in ours)


def check_mixed_types_are_those_of_autocast():
    features, kernels, grad = inputs((1, 3, 3, 4), 3, 1)
    ours = compare(features.half(), kernels, grad.half(), 3, 1, tolerance=1e-3)
    assert [x.dtype for x in ours] == [torch.float16, torch.float16, torch.float32]


def check_only_wanted_gradients_are_computed():
    features, kernels, _ = inputs((1, 2, 3, 3), 3, 1)
    carafe(features.requires_grad_(), kernels, 3).sum().backward()
    assert features.grad is not None and kernels.grad is None
    with torch.no_grad():
        assert carafe(features, kernels, 3).grad_fn is None


def check_second_derivatives_are_refused():
    features, kernels, _ = inputs((1, 2, 3, 3), 3, 1)
    out = carafe(features.requires_grad_(), kernels, 3)
    try:
        torch.autograd.grad(out.sum(), features, create_graph=True)
    except RuntimeError as error:
        assert "cannot be differentiated again" in str(error), error
        return
    raise AssertionError("no error")


def check_operators_are_sound():
    features, kernels, grad = inputs((1, 2, 3, 3), 3, 2)
    for kernel, *inputs_of in (
        (carafe_op.carafe, features, kernels),
        (carafe_op.grad_features, grad, kernels, torch.float16),
        (carafe_op.grad_weights, grad, features, torch.float16),
    ):
        torch.library.opcheck(kernel, (*inputs_of, 3, 2), test_utils=CHECKS)


def check_compiled_code_calls_the_kernel():
    features, kernels, grad = inputs((1, 2, 3, 3), 3, 2)
    plain = differentiated(features, kernels, grad, 3, 2)
    compiled = torch.compile(carafe, backend="aot_eager", fullgraph=True)
    features, kernels = features.requires_grad_(), kernels.requires_grad_()
    out = compiled(features, kernels, 3, 2)
    gradients = torch.autograd.grad(out, (features, kernels), grad)
    for own, reference in zip((out, *gradients), plain, strict=True):
        assert torch.equal(own, reference)
