"""Packed layers are the usual layers, and so are the other building blocks of the rules."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from offseg_d2.deploy.level_fusion import ResizedSum
from offseg_d2.deploy.mask_query import LevelResize
from offseg_d2.deploy.msdeformattn import Table, read_points
from offseg_d2.deploy.packed import PackedConv2d, PackedLinear, PackedMatrix
from offseg_d2.deploy.size_cache import CAPACITY, SizeCache
from offseg_d2.layers.ms_deform_attn import sample_levels_by_grid
from tests.common import assert_close, seed_all

FUNCTIONS = {"none": lambda x: x, "relu": F.relu, "gelu": F.gelu}
LIBRARY = "another library adds up the products in another order"


@pytest.fixture(autouse=True)
def _seeded():
    seed_all()
    with torch.no_grad():
        yield


@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_packed_linear_is_the_layer_and_its_activation(activation, dtype):
    layer = nn.Linear(24, 40, dtype=dtype)
    packed = PackedLinear.of(layer, activation)
    for shape in ((3, 24), (2, 50, 24), (1, 7, 9, 24), (0, 24)):  # weights are packed for the first
        tokens = torch.randn(shape, dtype=dtype)
        expected = FUNCTIONS[activation](layer(tokens))
        assert_close(packed(tokens), expected, 1e-4, reason=LIBRARY)


@pytest.mark.parametrize("activation", FUNCTIONS)
def test_packed_layers_in_bfloat16_are_the_layers_up_to_rounding(activation):
    rounding = "bfloat16 has eight bits"
    layer, conv = nn.Linear(24, 40), nn.Conv2d(24, 24, 3, padding=1, groups=24)
    tokens, maps = torch.randn(50, 24), torch.randn(2, 24, 7, 9)
    for made, module, x in (
        (PackedLinear.of(layer, activation), layer, tokens),
        (PackedConv2d(conv, activation), conv, maps),
    ):
        actual = made.bfloat16()(x.bfloat16())
        assert actual.dtype == torch.bfloat16
        assert_close(actual.float(), FUNCTIONS[activation](module(x)), 3e-2, reason=rounding)


@pytest.mark.parametrize("bias", [True, False])
def test_packed_linear_adds_a_summand(bias):
    layer = nn.Linear(24, 40, bias=bias)
    tokens, summand = torch.randn(2, 5, 24), torch.randn(2, 5, 40)
    kept = summand.clone()
    assert_close(
        PackedLinear.of(layer)(tokens, summand), layer(tokens) + kept, 1e-4, reason=LIBRARY
    )
    assert torch.equal(summand, kept)


@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize(("groups", "stride", "kernel"), [(8, 1, 3), (1, 2, 3), (8, 1, (1, 7))])
def test_packed_convolution_is_the_convolution_and_its_activation(
    activation, groups, stride, kernel
):
    side = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    padding = (side[0] // 2, side[1] // 2)
    conv = nn.Conv2d(8, 16 if groups == 1 else 8, side, stride, padding, groups=groups)
    packed = PackedConv2d(conv, activation)
    for shape in ((1, 8, 10, 12), (2, 8, 5, 7), (1, 8, 1, 1)):
        features = torch.randn(shape).contiguous(memory_format=torch.channels_last)
        expected = FUNCTIONS[activation](conv(features))
        assert_close(packed(features), expected, 1e-4, reason=LIBRARY)
        if activation == "none":
            added = packed(features, expected)
            assert_close(added, 2 * expected, 1e-4, reason=LIBRARY)


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
    packed = PackedLinear.of(nn.Linear(24, 40), "gelu")
    with torch.enable_grad():
        tokens = torch.randn(4, 24, requires_grad=True)
        packed(tokens).sum().backward()
    assert tokens.grad.abs().min() > 0


def test_unknown_activation_is_refused():
    with pytest.raises(ValueError, match=r"`activation` must be one of .* but is 'swish'"):
        PackedLinear.of(nn.Linear(2, 2), "swish")


def test_packed_matrix_is_a_product():
    matrix, rows = torch.randn(50, 24), torch.randn(7, 24)
    product = PackedMatrix(matrix.T.contiguous().T)
    for _ in range(2):
        assert_close(product(rows), rows @ matrix.T, 1e-4, reason=LIBRARY)


def test_bands_of_resized_sums_are_those_of_resized_maps():
    maps = [torch.randn(9, 12, 5), torch.randn(3, 4, 5), torch.randn(20, 30, 5)]
    size = (17, 25)
    total = ResizedSum(maps, size)
    expected = sum(
        F.interpolate(x.permute(2, 0, 1)[None], size=size, mode="bilinear", align_corners=False)[0]
        for x in maps
    ).permute(1, 2, 0)
    for top, bottom in ((0, 17), (0, 1), (5, 11), (16, 17)):
        assert_close(total.band(top, bottom), expected[top:bottom])


@pytest.mark.parametrize("after", [(4, 6), (2, 3), (5, 5), (8, 12), (11, 20), (1, 1)])
def test_level_resize_reads_no_more_pixels_than_it_needs(after):
    maps, before = torch.randn(3, 8 * 12), (8, 12)
    resize = LevelResize(before, after, maps)
    pixels = resize.pixels(maps)
    expected = F.interpolate(maps.view(1, 3, 8, 12), size=after, mode="bilinear")
    assert_close(resize.resized(pixels), expected[0].flatten(1))
    if after == (2, 3):
        assert pixels.shape == (3, 4, 6)


def test_bags_of_rows_are_bilinear_samples_with_zeros_outside():
    sizes, heads, points, queries = [(2, 3), (5, 4), (7, 9)], 2, 4, 30
    values = torch.randn(1, sum(h * w for h, w in sizes), heads, 6)
    locations = torch.rand(1, queries, heads, len(sizes), points, 2) * 2 - 0.5
    locations[0, 0] = 1e4
    locations[0, 1] = -1e4
    locations[0, 2, ..., 0] = 1.0
    logits = torch.randn(1, queries, heads, len(sizes), points)
    weights = logits.flatten(3).softmax(3).view_as(logits)
    expected = sample_levels_by_grid(values, sizes, locations, weights)[0]
    table = Table.of(sizes, heads, points, values)
    rows = values.new_zeros(table.rows, heads * 6)
    table.fill(values[0].flatten(1), rows)
    extent = torch.tensor([(w, h) for h, w in sizes])[:, None]
    pixels = (locations[0] * extent - 0.5).flatten(1, 3)  # (n, h L P, 2)
    given = torch.stack([*pixels.unbind(2), logits[0].flatten(1)], dim=1)
    actual = read_points(table, rows.view(-1, 6), given)
    assert_close(actual, expected, 1e-4, reason="places are rounded at another scale")
    assert not actual[:2].any()


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
    for size in ("b", "c"):
        cache.get(size, like, lambda: like)
    assert len(cache) == 2
