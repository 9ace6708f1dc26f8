"""Packed layers are the usual layers; results by size are remembered for the last few sizes."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from offseg_d2.deploy.packed import PackedConv2d, PackedLinear
from offseg_d2.deploy.size_cache import CAPACITY, SizeCache
from tests.common import assert_close, seed_all

LIBRARY = "another library adds up the products in another order"


@pytest.fixture(autouse=True)
def _seeded():
    seed_all()
    with torch.no_grad():
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_packed_linear_is_the_layer_with_gelu_or_a_summand(dtype, bias):
    tolerance = 3e-2 if dtype == torch.bfloat16 else 1e-4
    layer = nn.Linear(24, 40, bias=bias, dtype=dtype)
    packed, packed_gelu = PackedLinear.of(layer), PackedLinear.of(layer, gelu=True)
    for shape in ((3, 24), (2, 50, 24), (1, 7, 9, 24), (0, 24)):  # weights are packed for the first
        tokens = torch.randn(shape, dtype=dtype)
        expected = layer(tokens)
        assert_close(packed(tokens), expected, tolerance, reason=LIBRARY)
        assert_close(packed_gelu(tokens), F.gelu(expected), tolerance, reason=LIBRARY)
        summand = expected.clone()
        assert_close(packed(tokens, summand), 2 * expected, 2 * tolerance, reason=LIBRARY)
        assert torch.equal(summand, expected), "a summand is not overwritten"


@pytest.mark.parametrize(("groups", "stride", "kernel"), [(8, 1, 3), (1, 2, 3), (8, 1, (1, 7))])
def test_packed_convolution_is_the_convolution_with_gelu_or_a_summand(groups, stride, kernel):
    side = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    padding = (side[0] // 2, side[1] // 2)
    conv = nn.Conv2d(8, 16 if groups == 1 else 8, side, stride, padding, groups=groups)
    packed, packed_gelu = PackedConv2d(conv), PackedConv2d(conv, gelu=True)
    for shape in ((1, 8, 10, 12), (2, 8, 5, 7), (1, 8, 1, 1)):
        features = torch.randn(shape).contiguous(memory_format=torch.channels_last)
        expected = conv(features)
        assert_close(packed(features), expected, 1e-4, reason=LIBRARY)
        assert_close(packed_gelu(features), F.gelu(expected), 1e-4, reason=LIBRARY)
        assert_close(packed(features, expected), 2 * expected, 1e-4, reason=LIBRARY)


def test_packed_weights_are_neither_copied_nor_saved_nor_outdated():
    tokens = torch.randn(4, 24)
    packed = PackedLinear.of(nn.Linear(24, 40))
    expected = packed(tokens)
    twin = copy.deepcopy(packed)
    assert twin._packed is None
    assert len(pickle.dumps(packed)) < 3 * packed.weight.numel() * 4
    other = PackedLinear.of(nn.Linear(24, 40))
    twin(tokens)
    twin.load_state_dict(other.state_dict())
    assert_close(twin(tokens), other(tokens))
    assert_close(packed(tokens), expected)
    assert packed.double()(tokens.double()).dtype == torch.float64


def test_packed_layers_let_gradients_through():
    packed = PackedLinear.of(nn.Linear(24, 40), gelu=True)
    with torch.enable_grad():
        tokens = torch.randn(4, 24, requires_grad=True)
        packed(tokens).sum().backward()
    assert tokens.grad.abs().min() > 0


def test_size_cache_keeps_the_last_few_and_is_not_copied():
    cache, made, like = SizeCache(), [], torch.zeros(1)

    def get(size):
        return cache.get(size, like, lambda: made.append(size) or [size])

    for size in range(CAPACITY + 1):
        assert get(size) == [size]
    get(1)  # still there, and the newest now
    assert made == list(range(CAPACITY + 1))
    get(0)  # was the oldest
    get(1)
    assert made == [*range(CAPACITY + 1), 0]
    assert cache.get(1, like.double(), lambda: "other") == "other"
    twin = copy.deepcopy(cache)
    assert twin.get(1, like, lambda: "new") == "new"


def test_what_a_size_cache_keeps_can_be_used_outside_of_inference_mode():
    cache, like = SizeCache(2), torch.zeros(1)
    with torch.inference_mode():
        made = cache.get("size", like, lambda: torch.ones(3))
    assert not made.is_inference()
    assert cache.get("size", like, lambda: pytest.fail("must be there still")) is made
