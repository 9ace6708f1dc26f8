"""MSCAN, the backbone of SegNeXt."""

import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_backbone
from torch import nn

from offseg_d2.config import load_config
from offseg_d2.layers import DropPath
from offseg_d2.modeling.backbone import MSCAN, MSCAN_VARIANTS
from offseg_d2.modeling.backbone.mscan import Block, SpatialAttention, SpatialGate

# Without the classification head, as the authors' models count; "l" is in no model of theirs.
PARAMETERS = {"t": 3_903_584, "s": 13_450_176, "b": 26_277_824}


@pytest.mark.parametrize("variant", sorted(PARAMETERS))
def test_variant_has_the_published_number_of_parameters(variant):
    with torch.device("meta"):
        backbone = MSCAN(variant=variant)
    assert sum(p.numel() for p in backbone.parameters()) == PARAMETERS[variant]


@pytest.mark.parametrize("size", [(64, 64), (61, 93), (5, 7)])
def test_levels_are_ceiled_halvings_whatever_the_size(size):
    backbone = MSCAN(variant="t").eval()
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, *size))
    for name, shape in backbone.output_shape().items():
        expected = tuple(math.ceil(x / shape.stride) for x in size)
        assert features[name].shape == (1, shape.channels, *expected), name
    assert [s.stride for s in backbone.output_shape().values()] == [4, 8, 16, 32]


@pytest.mark.parametrize("variant", sorted(set(MSCAN_VARIANTS) - {"t"}))
def test_larger_variants_have_their_output_shapes(variant):
    with torch.device("meta"):
        backbone = MSCAN(variant=variant)
        features = backbone(torch.empty(2, 3, 64, 64))
    shapes = [tuple(x.shape) for x in features.values()]
    assert shapes == [(2, 64, 16, 16), (2, 128, 8, 8), (2, 320, 4, 4), (2, 512, 2, 2)]


def test_gradients_reach_every_parameter():
    backbone = MSCAN(variant="t", drop_path_rate=0.0).train()
    features = backbone(torch.randn(2, 3, 64, 64))
    sum((x * torch.randn_like(x)).sum() for x in features.values()).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_strips_of_the_gate_equal_square_kernels_of_rank_one():
    gate = SpatialGate(4).double()
    for conv in gate.modules():
        if isinstance(conv, nn.Conv2d) and conv is not gate.mix:
            nn.init.zeros_(conv.bias)  # a bias inside a strip pair would fade at the borders
    features = torch.randn(1, 4, 25, 30).double()
    near = F.conv2d(features, gate.conv0.weight, padding=2, groups=4)
    scales = near
    for horizontal, vertical in zip(gate.horizontal, gate.vertical, strict=True):
        kernel = vertical.weight * horizontal.weight  # (C, 1, k, 1) * (C, 1, 1, k)
        scales = scales + F.conv2d(near, kernel, padding=kernel.shape[-1] // 2, groups=4)
    expected = gate.mix(scales) * features
    torch.testing.assert_close(gate(features), expected)
    assert [h.weight.shape[-1] for h in gate.horizontal] == [7, 11, 21]


def test_attention_adds_its_own_input():
    attention = SpatialAttention(8)
    nn.init.zeros_(attention.proj_2.weight)
    nn.init.zeros_(attention.proj_2.bias)
    features = torch.randn(1, 8, 5, 5)
    assert torch.equal(attention(features), features)


def test_block_adds_its_branches_at_their_scales():
    block = Block(8, 4, 0.0).eval()
    features = torch.randn(1, 8, 5, 5)
    middle = features + 0.01 * block.attn(block.norm1(features))
    expected = middle + 0.01 * block.mlp(block.norm2(middle))
    torch.testing.assert_close(block(features), expected)


def test_image_does_not_depend_on_its_batch():
    backbone = MSCAN(variant="t").eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        together = backbone(images)
        alone = backbone(images[1:])
    for name in together:
        # Unit-variance features after a quadratic gate: rounding only.
        torch.testing.assert_close(alone[name][0], together[name][1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("variant", "largest"), [("t", 0.1), ("l", 0.3)])
def test_drop_path_grows_linearly_over_all_blocks(variant, largest):
    with torch.device("meta"):
        backbone = MSCAN(variant=variant)
    rates = [m.rate for m in backbone.modules() if isinstance(m, DropPath)]
    last = len(rates) - 1
    assert rates == pytest.approx([largest * i / last for i in range(last + 1)])


def test_weights_start_as_published():
    torch.manual_seed(0)
    backbone = MSCAN(variant="t")
    block = backbone.stages[3].blocks[0]
    # fan_out of a depth-wise kernel: the positions of one channel's window
    assert block.attn.gate.horizontal[2].weight.std().item() == pytest.approx(
        math.sqrt(2 / 21), rel=0.03
    )
    assert block.mlp.fc1.weight.std().item() == pytest.approx(math.sqrt(2 / 1024), rel=0.03)
    assert block.layer_scale_1.tolist() == pytest.approx([0.01] * 256)
    assert not backbone.stem[0].conv.bias.any()


def test_config_chooses_variant_and_drop_path():
    opts = ["MODEL.BACKBONE.NAME", "MSCAN", "MODEL.MSCAN.VARIANT", "s"]
    backbone = build_backbone(load_config("", [*opts, "MODEL.MSCAN.DROP_PATH_RATE", "0.2"]))
    assert backbone.output_shape()["res5"].channels == 512
    assert max(m.rate for m in backbone.modules() if isinstance(m, DropPath)) == 0.2


def test_unknown_variant_is_refused():
    with pytest.raises(ValueError, match=r"`MODEL.MSCAN.VARIANT` must be one of .* but is 'x'"):
        MSCAN(variant="x")
