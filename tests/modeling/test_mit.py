"""MiT, the backbone of SegFormer."""

import math

import pytest
import torch
from detectron2.modeling import build_backbone
from torch import nn

from offseg_d2.config import load_config
from offseg_d2.layers import DropPath
from offseg_d2.modeling.backbone import MIT_VARIANTS, MiT
from offseg_d2.modeling.backbone.mit import EfficientAttention

# Without the classification head, as the authors' models count.
PARAMETERS = {
    "b0": 3_319_392,
    "b1": 13_151_424,
    "b2": 24_196_288,
    "b3": 44_072_128,
    "b4": 60_842_688,
    "b5": 81_443_008,
}


@pytest.mark.parametrize("variant", sorted(MIT_VARIANTS))
def test_variant_has_the_published_number_of_parameters(variant):
    with torch.device("meta"):
        backbone = MiT(variant=variant)
    assert sum(p.numel() for p in backbone.parameters()) == PARAMETERS[variant]


@pytest.mark.parametrize("size", [(64, 64), (61, 93), (29, 29)])
def test_levels_are_ceiled_halvings_whatever_the_size(size):
    backbone = MiT(variant="b0").eval()
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, *size))
    for name, shape in backbone.output_shape().items():
        expected = tuple(math.ceil(x / shape.stride) for x in size)
        assert features[name].shape == (1, shape.channels, *expected), name
    assert [s.stride for s in backbone.output_shape().values()] == [4, 8, 16, 32]


@pytest.mark.parametrize("variant", sorted(set(MIT_VARIANTS) - {"b0"}))
def test_larger_variants_have_their_output_shapes(variant):
    with torch.device("meta"):
        backbone = MiT(variant=variant)
        features = backbone(torch.empty(1, 3, 64, 64))
    shapes = [tuple(x.shape) for x in features.values()]
    assert shapes == [(1, 64, 16, 16), (1, 128, 8, 8), (1, 320, 4, 4), (1, 512, 2, 2)]


def test_gradients_reach_every_parameter():
    backbone = MiT(variant="b0", drop_path_rate=0.0).train()
    features = backbone(torch.randn(1, 3, 64, 64))
    sum((x * torch.randn_like(x)).sum() for x in features.values()).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("reduction", [1, 2])
def test_attention_equals_torch_multi_head_attention(reduction):
    torch.manual_seed(0)
    attention = EfficientAttention(32, 4, reduction)
    nn.init.normal_(attention.in_proj_bias)
    nn.init.normal_(attention.out_proj.bias)
    reference = nn.MultiheadAttention(32, 4, batch_first=True)
    packed = {k: v for k, v in attention.state_dict().items() if "proj" in k}
    reference.load_state_dict(packed)
    features = torch.randn(2, 32, 6, 8)
    source = features
    if reduction > 1:
        source = torch.conv2d(features, attention.sr.weight, attention.sr.bias, stride=reduction)
        normalised = torch.layer_norm(source.movedim(1, -1), [32], eps=1e-6)
        source = normalised.movedim(-1, 1)
    queries, keys = features.flatten(2).mT, source.flatten(2).mT
    expected = reference(queries, keys, keys, need_weights=False)[0].mT.reshape(features.shape)
    torch.testing.assert_close(attention(features), expected)


def test_image_does_not_depend_on_its_batch():
    backbone = MiT(variant="b0").eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        together = backbone(images)
        alone = backbone(images[1:])
    for name in together:
        # Layer norms after random attention: rounding only.
        torch.testing.assert_close(alone[name][0], together[name][1], rtol=1e-4, atol=1e-5)


def test_drop_path_grows_linearly_over_all_blocks():
    rates = [m.rate for m in MiT(variant="b0").modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.1 * i / 7 for i in range(8)])


def test_weights_start_as_published():
    torch.manual_seed(0)
    block = MiT(variant="b0").stages[3].blocks[0]
    # fan_out of a depth-wise kernel: 3 * 3 outputs of one channel
    assert block.ffn.dwconv.weight.std().item() == pytest.approx(math.sqrt(2 / 9), rel=0.03)
    assert block.ffn.fc1.weight.std().item() == pytest.approx(math.sqrt(2 / 1024), rel=0.03)
    limit = math.sqrt(6 / (256 + 3 * 256))  # Xavier over the packed matrix
    assert block.attn.in_proj_weight.abs().max().item() == pytest.approx(limit, rel=0.01)
    assert block.attn.out_proj.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert not block.ffn.fc2.bias.any() and not block.attn.in_proj_bias.any()


def test_config_chooses_variant_and_drop_path():
    opts = ["MODEL.BACKBONE.NAME", "MiT", "MODEL.MIT.VARIANT", "b1"]
    backbone = build_backbone(load_config("", [*opts, "MODEL.MIT.DROP_PATH_RATE", "0.2"]))
    assert backbone.output_shape()["res5"].channels == 512
    assert max(m.rate for m in backbone.modules() if isinstance(m, DropPath)) == 0.2


def test_unknown_variant_is_refused():
    with pytest.raises(ValueError, match=r"`MODEL.MIT.VARIANT` must be one of .* but is 'b6'"):
        MiT(variant="b6")


def test_too_small_image_is_refused():
    with pytest.raises(ValueError, match="at least 29 x 29"):
        MiT(variant="b0")(torch.zeros(1, 3, 28, 64))
