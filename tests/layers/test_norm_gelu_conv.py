"""Norm, GELU and convolution as one step against the three modules in a row."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offseg_d2.layers import norm_gelu_conv
from tests.common import assert_close, spread_norms

CONVS = {
    "depth-wise": {"kernel_size": 3, "padding": 1, "groups": 4},
    "pointwise": {"kernel_size": 1},
    "strided without bias": {"kernel_size": 3, "stride": 2, "bias": False, "dilation": 2},
}


def layers(**conv) -> nn.ModuleDict:
    """Batch norm and convolution of four channels, float64."""
    modules = {"norm": nn.BatchNorm2d(4), "conv": nn.Conv2d(4, 8, **conv)}
    return spread_norms(nn.ModuleDict(modules))


def plainly(features: Tensor, norm: nn.Module, conv: nn.Module) -> Tensor:
    return conv(F.gelu(norm(features)))


def results(function, modules: nn.ModuleDict, features: Tensor) -> dict[str, Tensor]:
    """Output, all gradients and all buffers."""
    modules, features = copy.deepcopy(modules), features.clone().requires_grad_()
    out = function(features, modules["norm"], modules["conv"])
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)).sum().backward()
    gradients = {name: p.grad for name, p in modules.named_parameters()}
    return {"out": out.detach(), "in": features.grad, **gradients, **dict(modules.named_buffers())}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("conv", CONVS)
def test_equals_the_three_modules_in_a_row(conv, training):
    modules = layers(**CONVS[conv]).train(training)
    features = torch.randn(2, 4, 6, 7, dtype=torch.float64)
    expected = results(plainly, modules, features)
    actual = results(norm_gelu_conv, modules, features)
    assert len(actual) == len(expected) >= 8
    for name in expected:
        assert_close(actual[name], expected[name], 1e-10)


@pytest.mark.parametrize("training", [True, False])
def test_gradients_equal_finite_differences(training):
    modules = layers(kernel_size=3, padding=1, groups=4).train(training)
    norm, conv = modules["norm"], modules["conv"]
    features = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)

    def run(features, *_parameters):
        return norm_gelu_conv(features, norm, conv)

    inputs = (features, *norm.parameters(), *conv.parameters())
    assert torch.autograd.gradcheck(run, inputs)


def saved_bytes(function, modules: nn.ModuleDict, features: Tensor) -> int:
    """Bytes that are stored for the backward pass, parameters aside."""
    saved = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = (storage.nbytes(), tensor)  # alive, or its address is reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        function(features.requires_grad_(), modules["norm"], modules["conv"])
    own = {parameter.untyped_storage().data_ptr() for parameter in modules.parameters()}
    return sum(size for pointer, (size, _) in saved.items() if pointer not in own)


def test_one_map_is_saved_instead_of_three():
    modules = layers(kernel_size=3, padding=1, groups=4).train()
    features = torch.randn(2, 4, 32, 32, dtype=torch.float64)
    size = features.numel() * 8
    assert saved_bytes(plainly, modules, features) >= 3 * size
    assert saved_bytes(norm_gelu_conv, modules, features) < 1.1 * size


def test_changed_running_statistics_do_not_change_gradients_of_an_evaluated_norm():
    modules = layers(kernel_size=1).eval()
    features = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    expected = results(plainly, modules, features)["in"]
    features.requires_grad_()
    out = norm_gelu_conv(features, modules["norm"], modules["conv"])
    modules["norm"].running_mean.add_(1)
    modules["norm"].running_var.mul_(2)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)).sum().backward()
    assert_close(features.grad, expected, 1e-10)


def test_frozen_weights_get_no_gradient():
    modules = layers(kernel_size=1).train()
    modules["conv"].requires_grad_(False)
    features = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    expected, actual = (results(f, modules, features) for f in (plainly, norm_gelu_conv))
    assert actual["conv.weight"] is None and actual["conv.bias"] is None
    assert_close(actual["in"], expected["in"], 1e-10)
    assert_close(actual["norm.weight"], expected["norm.weight"], 1e-10)


def test_hooks_and_other_norms_are_respected():
    modules = layers(kernel_size=1).train()
    seen = []
    modules["conv"].register_forward_hook(lambda module, inputs, out: seen.append(out))
    features = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    out = norm_gelu_conv(features, modules["norm"], modules["conv"])
    assert torch.equal(seen[0], out)
    group_norm = nn.GroupNorm(2, 4).double()
    expected = plainly(features, group_norm, modules["conv"])
    assert torch.equal(norm_gelu_conv(features, group_norm, modules["conv"]), expected)


@pytest.mark.parametrize("kind", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_hooks_on_the_backward_pass_are_respected(kind):
    modules = layers(kernel_size=1).train()
    seen = []
    for name, module in modules.items():
        getattr(module, kind)(lambda *_, name=name: seen.append(name))
    features = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    norm_gelu_conv(features, modules["norm"], modules["conv"]).sum().backward()
    assert seen == ["conv", "norm"]


def test_autocast_gives_what_the_modules_give():
    modules = layers(kernel_size=1).float().train()
    features = torch.randn(2, 4, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        expected, actual = (results(f, modules, features) for f in (plainly, norm_gelu_conv))
    assert actual["out"].dtype == torch.bfloat16
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_a_single_value_per_channel_is_refused_as_by_the_norm():
    modules = layers(kernel_size=1).train()
    features = torch.randn(1, 4, 1, 1, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm_gelu_conv(features, modules["norm"], modules["conv"])


def test_second_derivatives_are_refused():
    modules = layers(kernel_size=1).train()
    features = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    out = norm_gelu_conv(features, modules["norm"], modules["conv"]).sum()
    with pytest.raises(RuntimeError, match="NormGeluConv cannot be differentiated again"):
        torch.autograd.grad(out, features, create_graph=True)
