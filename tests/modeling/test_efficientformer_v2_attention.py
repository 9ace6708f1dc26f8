"""Attention of EfficientFormerV2: biases by hand and cached ones, both kinds step by step."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from offseg_d2.layers import ConvBN
from offseg_d2.modeling.backbone.efficientformer_v2_attention import (
    Attention,
    AttentionBias,
    DownsamplingAttention,
)
from tests.common import assert_close, spread_norms, spread_weights


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def test_bias_indices_are_the_distances_on_the_nominal_grids():
    same, halved = AttentionBias(16, 16), AttentionBias(16, 32)
    assert same.table.shape == (8, 256) and halved.table.shape == (8, 1024)
    for p in range(0, 256, 7):
        for q in range(256):
            expected = abs(p // 16 - q // 16) * 16 + abs(p % 16 - q % 16)
            assert same.indices[p, q] == expected
        for q in range(0, 1024, 3):
            expected = abs(2 * (p // 16) - q // 32) * 32 + abs(2 * (p % 16) - q % 32)
            assert halved.indices[p, q] == expected


def test_bias_of_the_nominal_input_is_the_table_itself():
    bias = spread_weights(AttentionBias(4, 8)).double()
    expected = bias.table[:, bias.indices]
    assert torch.equal(bias(16, 64)[0], expected)
    # ... which resizing would leave unchanged
    resized = F.interpolate(expected[None], size=(16, 64), mode="bicubic")
    assert_close(resized[0], expected, 1e-12)


def cubic(distance: float, a: float = -0.75) -> float:
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def bicubic_by_loops(image: Tensor, height: int, width: int) -> Tensor:
    """(H, W) -> (height, width): half-pixel centres, borders repeated, no antialiasing."""

    def taps(length: int, new: int, position: int) -> list[tuple[int, float]]:
        source = (position + 0.5) * length / new - 0.5
        first = math.floor(source) - 1
        clamped = [min(max(first + i, 0), length - 1) for i in range(4)]
        return [(clamped[i], cubic(source - first - i)) for i in range(4)]

    out = image.new_zeros(height, width)
    for y in range(height):
        for x in range(width):
            for row, row_weight in taps(image.shape[0], height, y):
                for column, column_weight in taps(image.shape[1], width, x):
                    out[y, x] += row_weight * column_weight * image[row, column]
    return out


@pytest.mark.parametrize(("queries", "keys"), [(6, 6), (3, 12), (25, 9)])
def test_bias_of_other_inputs_is_resized_on_the_flattened_tokens(queries, keys):
    bias = spread_weights(AttentionBias(4, 4)).double()
    table = bias.table[:, bias.indices]  # (8, 16, 16)
    resized = bias(queries, keys)
    assert resized.shape == (1, 8, queries, keys)
    assert_close(resized[0, 3], bicubic_by_loops(table[3], queries, keys), 1e-10)


def conv_bn(module: ConvBN, features: Tensor) -> Tensor:
    """Convolution and the affine map of a batch norm in evaluation, written out."""
    conv, bn = module.conv, module.bn
    out = F.conv2d(features, conv.weight, conv.bias, conv.stride, conv.padding, 1, conv.groups)
    factor = bn.weight / (bn.running_var + 1e-5).sqrt()
    return (out - bn.running_mean[:, None, None]) * factor[:, None, None] + bn.bias[:, None, None]


def attention_by_steps(layer: Attention, features: Tensor) -> Tensor:
    tokens = conv_bn(layer.stride_conv, features) if layer.stride_conv else features
    batch, _, height, width = tokens.shape
    n = height * width
    q = conv_bn(layer.q, tokens).reshape(batch, 8, 32, n)
    k = conv_bn(layer.k, tokens).reshape(batch, 8, 32, n)
    v_map = conv_bn(layer.v, tokens)
    v = v_map.reshape(batch, 8, 128, n)
    bias = layer.bias(n, n)[0]
    similarity = torch.einsum("bhdp,bhdq->bhpq", q, k) / math.sqrt(32) + bias
    w1, b1 = layer.talking_head1.weight[:, :, 0, 0], layer.talking_head1.bias
    w2, b2 = layer.talking_head2.weight[:, :, 0, 0], layer.talking_head2.bias
    mixed = torch.einsum("gh,bhpq->bgpq", w1, similarity) + b1[:, None, None]
    attention = mixed.exp() / mixed.exp().sum(-1, keepdim=True)
    attention = torch.einsum("gh,bhpq->bgpq", w2, attention) + b2[:, None, None]
    out = torch.einsum("bhpq,bhdq->bhdp", attention, v).reshape(batch, 1024, height, width)
    out = out + conv_bn(layer.v_local, v_map)
    if layer.stride_conv:
        out = F.interpolate(out, size=features.shape[-2:], mode="bilinear", align_corners=False)
    return conv_bn(layer.proj, F.gelu(out))


@pytest.mark.parametrize("size", [(4, 6), (8, 8)])
@pytest.mark.parametrize("stride", [1, 2])
def test_attention_equals_its_formula_step_by_step(stride, size):
    layer = spread_norms(Attention(24, stride, grid=16))
    features = images(2, 24, *size)
    with torch.no_grad():
        assert_close(layer(features), attention_by_steps(layer, features), 1e-10)


@pytest.mark.parametrize("size", [(4, 6), (8, 8)])
def test_downsampling_attention_equals_its_formula_step_by_step(size):
    layer = spread_norms(DownsamplingAttention(24, 40, grid=16))
    features = images(2, 24, *size)
    height, width = size[0] // 2, size[1] // 2
    n_q, n_k = height * width, size[0] * size[1]
    with torch.no_grad():
        local = F.conv2d(
            features, layer.q_local.weight, layer.q_local.bias, stride=2, padding=1, groups=24
        )
        subsampled = torch.stack(
            [features[:, :, y, x] for y in range(0, size[0], 2) for x in range(0, size[1], 2)], -1
        ).reshape(2, 24, height, width)
        q = conv_bn(layer.q, local + subsampled).reshape(2, 8, 16, n_q)
        k = conv_bn(layer.k, features).reshape(2, 8, 16, n_k)
        v_map = conv_bn(layer.v, features)
        similarity = torch.einsum("bhdp,bhdq->bhpq", q, k) / 4 + layer.bias(n_q, n_k)
        attention = similarity.exp() / similarity.exp().sum(-1, keepdim=True)
        out = torch.einsum("bhpq,bhdq->bhdp", attention, v_map.reshape(2, 8, 64, n_k))
        out = out.reshape(2, 512, height, width) + conv_bn(layer.v_local, v_map)
        expected = conv_bn(layer.proj, F.gelu(out))
        assert_close(layer(features), expected, 1e-10)


def test_cached_biases_belong_to_the_weights_of_the_moment():
    bias = AttentionBias(4, 4).eval()
    with torch.no_grad():
        for _ in range(20):  # short-lived weights may come to lie at the same address
            table = torch.randn_like(bias.table)
            actual = torch.func.functional_call(bias, {"table": table}, (6, 6))
            matrix = table[:, bias.indices][None]
            expected = F.interpolate(matrix, size=(6, 6), mode="bicubic", align_corners=False)
            assert torch.equal(actual, expected)
            del table, actual, matrix, expected


def test_cached_biases_follow_the_size_and_the_weights():
    bias = AttentionBias(4, 4).eval()
    with torch.no_grad():
        bias.table.normal_()
        first = bias(9, 9)
        assert bias(9, 9) is first
        assert bias(6, 9).shape == (1, 8, 6, 9)
        bias.table.mul_(2)
        assert_close(bias(9, 9), 2 * first)
        bias.load_state_dict({"table": torch.ones_like(bias.table)})
        assert_close(bias(9, 9), torch.ones(1, 8, 9, 9))
        assert bias.double()(9, 9).dtype == torch.float64
    assert bias.train()(9, 9).requires_grad


@torch.no_grad()
def test_a_thread_with_another_image_size_does_not_disturb():
    bias = AttentionBias(2, 2).eval()
    bias(9, 9)
    of_other_size = bias._cached
    bias(4, 4)

    class Interrupted(tuple):
        """A key whose comparison takes so long that another thread gets its turn."""

        def __ne__(self, other: object) -> bool:
            bias._cached = of_other_size
            return tuple(self) != other

    assert bias._cached is not None
    bias._cached = (Interrupted(bias._cached[0]), *bias._cached[1:])
    assert bias(4, 4).shape[-2:] == (4, 4)
