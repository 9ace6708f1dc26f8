"""The tables of the key maps: Mask2Former of the authors, of its own authors and of Hugging Face.

Below ``sem_seg_head.`` the names here are those of facebookresearch/Mask2Former, but for the
offset projections, which that model does not have.

==========================  ======================================================================
map                         names as in
==========================  ======================================================================
MASK2FORMER_OFFSET, _PLAIN  the authors' checkpoints; mmsegmentation's
FB_MASK2FORMER              facebookresearch/Mask2Former's, any backbone of Detectron2
HF_MASK2FORMER              transformers' ``Mask2FormerForUniversalSegmentation``, Swin, as saved
==========================  ======================================================================
"""

from offseg_d2.checkpoint.key_maps import Drop, KeyMap, Packing, Rule
from offseg_d2.checkpoint.swin_tables import openmmlab_swin_rules

_PIXELS, _PREDICTOR = "sem_seg_head.pixel_decoder", "sem_seg_head.predictor"
_ENCODER_LAYER = f"{_PIXELS}.transformer.encoder.layers.{{i}}"
# The parts of a decoder layer, each of which is a list of its own here.
_CROSS = f"{_PREDICTOR}.transformer_cross_attention_layers.{{i}}"
_SELF = f"{_PREDICTOR}.transformer_self_attention_layers.{{i}}"
_FEED_FORWARD = f"{_PREDICTOR}.transformer_ffn_layers.{{i}}"

_LOSS_DROPS = (
    Drop(r"criterion\.empty_weight", "is a weight of the loss, given by the configuration"),
    Drop(r"pixel_(mean|std)", "is given by the configuration"),
)


def _pairs(theirs: str, ours: str, names: dict[str, str]) -> list[Rule]:
    """Rules from their names to ours below two prefixes, whatever follows."""
    return [
        Rule(f"{theirs}.{name}.{{rest}}", f"{ours}.{our_name}.{{rest}}")
        for name, our_name in names.items()
    ]


def _authors_pixel_decoder_rules() -> list[Rule]:
    theirs = "decode_head.pixel_decoder"
    layer, feed_forward = f"{theirs}.encoder.layers.{{i}}", {"0.0": "linear1", "1": "linear2"}
    lateral, output = f"{theirs}.lateral_convs.0", f"{theirs}.output_convs.0"
    return [
        *_pairs(
            f"{theirs}.input_convs.{{i}}", f"{_PIXELS}.input_proj.{{i}}", {"conv": "0", "gn": "1"}
        ),
        Rule(f"{theirs}.level_encoding.weight", f"{_PIXELS}.transformer.level_embed"),
        Rule(f"{layer}.self_attn.{{rest}}", f"{_ENCODER_LAYER}.self_attn.{{rest}}"),
        *_pairs(f"{layer}.norms", _ENCODER_LAYER, {"0": "norm1", "1": "norm2"}),
        *_pairs(f"{layer}.ffn.layers", _ENCODER_LAYER, feed_forward),
        *_pairs(lateral, _PIXELS, {"gn": "adapter_1.norm", "conv": "adapter_1"}),
        *_pairs(output, _PIXELS, {"gn": "layer_1.norm", "conv": "layer_1"}),
        *_pairs(theirs, _PIXELS, {"mask_feature": "mask_features"}),
    ]


def _authors_predictor_rules() -> list[Rule]:
    head, decoder = "decode_head", "decode_head.transformer_decoder"
    layer, embed = f"{decoder}.layers.{{i}}", f"{_PREDICTOR}.mask_embed.layers"
    feed_forward = {"0.0": "linear1", "1": "linear2"}
    embeddings = ("query_embed", "query_feat", "level_embed")
    return [
        Rule(f"{layer}.cross_attn.attn.{{rest}}", f"{_CROSS}.multihead_attn.{{rest}}"),
        Rule(f"{layer}.self_attn.attn.{{rest}}", f"{_SELF}.self_attn.{{rest}}"),
        Rule(f"{layer}.norms.0.{{rest}}", f"{_CROSS}.norm.{{rest}}"),
        Rule(f"{layer}.norms.1.{{rest}}", f"{_SELF}.norm.{{rest}}"),
        Rule(f"{layer}.norms.2.{{rest}}", f"{_FEED_FORWARD}.norm.{{rest}}"),
        *_pairs(f"{layer}.ffn.layers", _FEED_FORWARD, feed_forward),
        *_pairs(decoder, _PREDICTOR, {"post_norm": "decoder_norm"}),
        *(Rule(f"{head}.{name}.weight", f"{_PREDICTOR}.{name}.weight") for name in embeddings),
        *_pairs(head, _PREDICTOR, {"cls_embed": "class_embed"}),
        *_pairs(f"{head}.mask_embed", embed, {"0": "0", "2": "1", "4": "2"}),
    ]


_OFFSETS = f"{_PREDICTOR}.mask_predictor.offset_learning"
_OFFSET_RULES = _pairs(
    "decode_head.offset_learning",
    _OFFSETS,
    {"cls_offset_proj": "class_offset_proj", "feat_offset_proj": "feature_offset_proj"},
)
_AUTHORS_RULES = (
    *openmmlab_swin_rules("backbone."),
    *_authors_pixel_decoder_rules(),
    *_authors_predictor_rules(),
)
MASK2FORMER_OFFSET = KeyMap("the authors' Mask2Former", (*_AUTHORS_RULES, *_OFFSET_RULES))
MASK2FORMER_PLAIN = KeyMap("mmsegmentation's Mask2Former", _AUTHORS_RULES)

FB_MASK2FORMER = KeyMap(
    "Mask2Former",
    tuple(
        Rule(f"{part}.{{rest}}", f"{part}.{{rest}}") for part in ("backbone", _PIXELS, _PREDICTOR)
    ),
    _LOSS_DROPS,
)


def _hf_packings(attention: str, names: tuple[str, str, str], packed: str) -> list[Packing]:
    """Query, key and value projections, weights and biases, which are one matrix here."""
    return [
        Packing(
            tuple(f"{attention}.{name}.{kind}" for name in names),
            (1, 1, 1),
            f"{attention}.{packed}{kind}",
        )
        for kind in ("weight", "bias")
    ]


_HF_PIXELS = "model.pixel_level_module"
_HF_ATTENTION = f"{_HF_PIXELS}.encoder.encoder.layers.{{i}}.blocks.{{j}}.attention.self"
_HF_LAYER = "model.transformer_module.decoder.layers.{i}"


def _hf_swin_rules() -> list[Rule]:
    theirs = f"{_HF_PIXELS}.encoder"
    layer = f"{theirs}.encoder.layers.{{i}}"
    block, our_block = f"{layer}.blocks.{{j}}", "backbone.layers.{i}.blocks.{j}"
    parts = {
        "attention.output.dense": "attn.proj",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    }
    norms = {f"hidden_states_norms.stage{i + 1}": f"norm{i}" for i in range(4)}
    embeddings = {"patch_embeddings.projection": "proj", "norm": "norm"}
    return [
        *_pairs(f"{theirs}.embeddings", "backbone.patch_embed", embeddings),
        *_pairs(block, our_block, parts),
        # qkv.weight, qkv.bias, relative_position_bias_table, relative_position_index
        Rule(f"{_HF_ATTENTION}.{{rest}}", f"{our_block}.attn.{{rest}}"),
        Rule(f"{layer}.downsample.{{rest}}", "backbone.layers.{i}.downsample.{rest}"),
        *_pairs(theirs, "backbone", norms),
    ]


def _hf_pixel_decoder_rules() -> list[Rule]:
    theirs = f"{_HF_PIXELS}.decoder"
    layer = {
        "self_attn": "self_attn",
        "self_attn_layer_norm": "norm1",
        "fc1": "linear1",
        "fc2": "linear2",
        "final_layer_norm": "norm2",
    }
    convs = {
        **{"adapter_1.1": "adapter_1.norm", "adapter_1.0": "adapter_1"},
        **{"layer_1.1": "layer_1.norm", "layer_1.0": "layer_1"},
        "mask_projection": "mask_features",
    }
    return [
        Rule(f"{theirs}.level_embed", f"{_PIXELS}.transformer.level_embed"),
        Rule(f"{theirs}.input_projections.{{i}}.{{rest}}", f"{_PIXELS}.input_proj.{{i}}.{{rest}}"),
        *_pairs(f"{theirs}.encoder.layers.{{i}}", _ENCODER_LAYER, layer),
        *_pairs(theirs, _PIXELS, convs),
    ]


def _hf_predictor_rules() -> list[Rule]:
    theirs = "model.transformer_module"
    embeddings = {"queries_embedder": "query_embed", "queries_features": "query_feat"}
    embedder = f"{theirs}.decoder.mask_predictor.mask_embedder.{{i}}.0"
    return [
        *_pairs(theirs, _PREDICTOR, {**embeddings, "level_embed": "level_embed"}),
        *_pairs(f"{theirs}.decoder", _PREDICTOR, {"layernorm": "decoder_norm"}),
        Rule(f"{embedder}.{{rest}}", f"{_PREDICTOR}.mask_embed.layers.{{i}}.{{rest}}"),
        Rule("class_predictor.{rest}", f"{_PREDICTOR}.class_embed.{{rest}}"),
        Rule(f"{_HF_LAYER}.cross_attn.{{rest}}", f"{_CROSS}.multihead_attn.{{rest}}"),
        Rule(f"{_HF_LAYER}.self_attn.{{rest}}", f"{_SELF}.self_attn.{{rest}}"),
        *_pairs(_HF_LAYER, _CROSS, {"cross_attn_layer_norm": "norm"}),
        *_pairs(_HF_LAYER, _SELF, {"self_attn_layer_norm": "norm"}),
        *_pairs(
            _HF_LAYER,
            _FEED_FORWARD,
            {"fc1": "linear1", "fc2": "linear2", "final_layer_norm": "norm"},
        ),
    ]


HF_MASK2FORMER = KeyMap(
    "Hugging Face's Mask2Former",
    (*_hf_swin_rules(), *_hf_pixel_decoder_rules(), *_hf_predictor_rules()),
    (
        *_LOSS_DROPS,
        Drop(
            r"model\.pixel_level_module\.encoder\.(swin\.)?layernorm\..*",
            "belongs to the ImageNet classifier",
        ),
    ),
    (
        *_hf_packings(_HF_ATTENTION, ("query", "key", "value"), "qkv."),
        *_hf_packings(f"{_HF_LAYER}.self_attn", ("q_proj", "k_proj", "v_proj"), "in_proj_"),
    ),
)
