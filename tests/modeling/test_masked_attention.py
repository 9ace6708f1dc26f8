"""The masked-attention decoder: its attention, its order of steps, its invariants."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offseg_d2.layers import sine_position_encoding
from offseg_d2.modeling import MaskedAttentionDecoder, build_mask_predictor
from offseg_d2.modeling.transformer_decoder.masked_attention import (
    MultiheadAttention,
    allowed_pixels,
)
from tests.common import assert_close, spread_weights

DIM, QUERIES, CLASSES = 16, 5, 3
SIZES = [(2, 3), (4, 6), (8, 12)]


def make(classifier: str = "offset", **settings) -> MaskedAttentionDecoder:
    """A narrow decoder of four layers in float64, all weights sizeable, evaluation mode."""
    decoder = MaskedAttentionDecoder(
        dim=DIM,
        num_classes=CLASSES,
        mask_predictor=build_mask_predictor(classifier, DIM),
        **{
            "num_queries": QUERIES,
            "num_layers": 4,
            "num_heads": 4,
            "feedforward_dim": 24,
            **settings,
        },
    )
    return spread_weights(decoder).double().eval()


def inputs(batch: int = 2) -> tuple[Tensor, list[Tensor]]:
    """Mask features at twice the finest level's size, and the levels."""
    features = torch.randn(batch, DIM, 16, 24, dtype=torch.float64)
    return features, [torch.randn(batch, DIM, *size, dtype=torch.float64) for size in SIZES]


# ------------------------------------------------------------------ attention


@pytest.mark.parametrize("masked", [True, False])
def test_attention_equals_pytorchs_with_a_mask_for_each_head(masked):
    ours = MultiheadAttention(DIM, 4).double()
    nn.init.normal_(ours.in_proj_bias)
    theirs = nn.MultiheadAttention(DIM, 4, batch_first=True).double()
    theirs.load_state_dict(ours.state_dict())
    queries, keys, values = (torch.randn(2, n, DIM, dtype=torch.float64) for n in (5, 7, 7))
    allowed = torch.rand(2, 5, 7) > 0.4
    allowed[..., 0] = True
    blocked = ~allowed.repeat_interleave(4, dim=0) if masked else None
    expected = theirs(queries, keys, values, attn_mask=blocked, need_weights=True)[0]
    assert_close(ours(queries, keys, values, allowed if masked else None), expected, 1e-12)


def test_a_pixel_is_allowed_where_the_resized_logit_is_not_negative():
    logits = torch.tensor([[[[-1.0, 0.0, 1.0, -1e-9]]]])
    assert allowed_pixels(logits, (1, 4)).tolist() == [[[False, True, True, False]]]
    # halves: means of two neighbours
    logits = torch.tensor([[[[-3.0, 1.0, -1.0, 1.0]]]])
    assert allowed_pixels(logits, (1, 2)).tolist() == [[[False, True]]]


def test_a_query_whose_mask_is_empty_may_read_everything():
    logits = torch.full((2, 3, 4, 4), -1.0)
    logits[0, 1, 0, 0] = 1.0
    allowed = allowed_pixels(logits, (4, 4))
    assert allowed[0, 1].sum() == 1 and allowed[0, 1, 0]
    allowed[0, 1] = True
    assert allowed.all()


def test_masks_guide_the_next_layer_but_get_no_gradient_from_it():
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    assert not allowed_pixels(logits, (2, 2)).requires_grad


# ------------------------------------------------------------------ the decoder


def slow_decoder(decoder: MaskedAttentionDecoder, features: Tensor, levels: list[Tensor]):
    """The decoder step by step, for one image, with PyTorch's own attention."""
    state = decoder.state_dict()

    def attention(prefix: str, q: Tensor, k: Tensor, v: Tensor, blocked: Tensor | None) -> Tensor:
        layer = nn.MultiheadAttention(DIM, 4, batch_first=True).double()
        layer.load_state_dict(
            {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
        )
        if blocked is not None:
            blocked = blocked.expand(4, -1, -1)
        return layer(q[None], k[None], v[None], attn_mask=blocked)[0][0]

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (DIM,), state[f"{name}.weight"], state[f"{name}.bias"])

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def predict(x: Tensor) -> tuple[Tensor, Tensor]:
        y = norm("decoder_norm", x)
        e = linear("mask_embed.layers.0", y).relu()
        e = linear("mask_embed.layers.2", linear("mask_embed.layers.1", e).relu())
        return linear("class_embed", y), decoder.mask_predictor(e[None], features[None])[0]

    x, position = state["query_feat.weight"], state["query_embed.weight"]
    predictions = [predict(x)]
    for i in range(4):
        level, size = levels[i % 3], SIZES[i % 3]
        memory = level.flatten(1).T + state["level_embed.weight"][i % 3]
        code = sine_position_encoding(*size, DIM, dtype=torch.float64).flatten(1).T
        resized = F.interpolate(predictions[-1][1][None], size=size, mode="bilinear")[0]
        blocked = resized.flatten(1) < 0
        blocked[blocked.all(1)] = False
        name = f"transformer_cross_attention_layers.{i}"
        read = attention(f"{name}.multihead_attn.", x + position, memory + code, memory, blocked)
        x = norm(f"{name}.norm", x + read)
        name = f"transformer_self_attention_layers.{i}"
        read = attention(f"{name}.self_attn.", x + position, x + position, x, None)
        x = norm(f"{name}.norm", x + read)
        name = f"transformer_ffn_layers.{i}"
        x = norm(f"{name}.norm", x + linear(f"{name}.linear2", linear(f"{name}.linear1", x).relu()))
        predictions.append(predict(x))
    return predictions


@pytest.mark.parametrize("classifier", ["offset", "plain"])
def test_all_predictions_equal_those_of_the_specification_step_by_step(classifier):
    decoder, (features, levels) = make(classifier).train(), inputs(2)
    outputs = decoder(features, levels)
    ours = [*outputs["aux_outputs"], outputs]
    assert len(ours) == 5  # one more than layers
    for b in range(2):
        with torch.no_grad():
            expected = slow_decoder(decoder, features[b], [level[b] for level in levels])
        for prediction, (logits, masks) in zip(ours, expected, strict=True):
            assert_close(prediction["pred_logits"][b], logits, 1e-10)
            assert_close(prediction["pred_masks"][b], masks, 1e-10)


def test_masks_do_guide_the_layers():
    decoder, (features, levels) = make(), inputs(1)
    allowed = allowed_pixels(decoder(features, levels)["pred_masks"], SIZES[0])
    assert 0.1 < allowed.float().mean() < 0.9  # or the comparison above would prove little


def test_shapes_and_keys_of_the_output():
    decoder, (features, levels) = make(), inputs(2)
    outputs = decoder(features, levels)
    assert set(outputs) == {"pred_logits", "pred_masks", "aux_outputs"}
    assert outputs["pred_logits"].shape == (2, QUERIES, CLASSES + 1)
    assert outputs["pred_masks"].shape == (2, QUERIES, 16, 24)


def test_earlier_predictions_are_kept_only_for_training_with_deep_supervision():
    features, levels = inputs(1)
    assert make()(features, levels)["aux_outputs"] == []
    assert len(make().train()(features, levels)["aux_outputs"]) == 4
    shallow = make(deep_supervision=False)
    expected = shallow(features, levels)
    outputs = shallow.train()(features, levels)
    assert outputs["aux_outputs"] == []
    assert_close(outputs["pred_masks"], expected["pred_masks"], 1e-12)


@pytest.mark.parametrize("classifier", ["offset", "plain"])
def test_queries_permute_with_their_embeddings(classifier):
    decoder, (features, levels) = make(classifier), inputs()
    expected = decoder(features, levels)
    order = torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad():
        for embedding in (decoder.query_feat, decoder.query_embed):
            embedding.weight.copy_(embedding.weight[order])
    outputs = decoder(features, levels)
    for key in ("pred_logits", "pred_masks"):
        assert_close(outputs[key], expected[key][:, order], 1e-10)


def test_names_are_those_of_mask2formers_checkpoints():
    names = {
        name.replace(".3.", ".{i}.") for name in make("plain").state_dict() if ".3." in name
    } | {name for name in make("plain").state_dict() if "transformer_" not in name}
    attention = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
    cross, own = "transformer_cross_attention_layers.{i}", "transformer_self_attention_layers.{i}"
    ends = ("weight", "bias")
    assert names == {
        *(f"{cross}.multihead_attn.{end}" for end in attention),
        *(f"{own}.self_attn.{end}" for end in attention),
        *(f"{layer}.norm.{end}" for layer in (cross, own) for end in ends),
        *(
            f"transformer_ffn_layers.{{i}}.{part}.{end}"
            for part in ("linear1", "linear2", "norm")
            for end in ends
        ),
        *(f"mask_embed.layers.{i}.{end}" for i in range(3) for end in ends),
        *(f"{part}.{end}" for part in ("decoder_norm", "class_embed") for end in ends),
        *(f"{part}.weight" for part in ("query_feat", "query_embed", "level_embed")),
    }


def test_weights_start_as_published():
    decoder = MaskedAttentionDecoder(
        dim=256, num_classes=150, mask_predictor=build_mask_predictor("offset", 256), num_layers=1
    )
    expected = {
        "query_feat.weight": 1.0,
        "query_embed.weight": 1.0,
        "level_embed.weight": 1.0,
        "transformer_cross_attention_layers.0.multihead_attn.in_proj_weight": math.sqrt(2 / 1024),
        "transformer_self_attention_layers.0.self_attn.in_proj_weight": math.sqrt(2 / 1024),
        "transformer_self_attention_layers.0.self_attn.out_proj.weight": math.sqrt(2 / 512),
        "transformer_ffn_layers.0.linear1.weight": math.sqrt(2 / (256 + 2048)),
        "transformer_ffn_layers.0.linear2.weight": math.sqrt(2 / (256 + 2048)),
        "class_embed.weight": 1 / math.sqrt(3 * 256),  # uniform within 1 / sqrt(256)
        "mask_embed.layers.0.weight": 1 / math.sqrt(3 * 256),
        "mask_predictor.offset_learning.class_offset_proj.weight": 0.02,
        "mask_predictor.offset_learning.feature_offset_proj.weight": 0.02,
        "transformer_ffn_layers.0.linear1.bias": 1 / math.sqrt(3 * 256),
    }
    parameters = dict(decoder.named_parameters())
    for name, std in expected.items():
        assert parameters[name].std().item() == pytest.approx(std, rel=0.06), name
    # normal, not uniform: beyond sqrt(3) standard deviations
    for name in ("in_proj_weight", "out_proj.weight"):
        weight = parameters[f"transformer_self_attention_layers.0.self_attn.{name}"]
        assert weight.abs().max() > 3 * weight.std()
    for name, parameter in parameters.items():
        if "attn" in name and name.endswith("bias"):
            assert not parameter.any(), name


@pytest.mark.parametrize("key", ["num_queries", "num_layers", "feedforward_dim"])
def test_none_is_refused(key):
    name = {
        "num_queries": "NUM_OBJECT_QUERIES",
        "num_layers": "DEC_LAYERS",
        "feedforward_dim": "DIM_FEEDFORWARD",
    }[key]
    with pytest.raises(ValueError, match=rf"^`MODEL.MASK_FORMER.{name}` must be at least 1, but"):
        make(**{key: 0})
