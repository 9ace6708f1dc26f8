"""The tables of the key maps: the authors' released checkpoints; all of them in ``KEY_MAPS``.

The authors' names are those of their checkpoint files (``backbone.*``, ``decode_head.*``).
"""

from offseg_d2.checkpoint.key_maps import Drop, KeyMap, Rule
from offseg_d2.checkpoint.mask_query_tables import MASK2FORMER_OFFSET, MASK2FORMER_PLAIN


def conv_bn(theirs: str, ours: str, conv: int = 0) -> list[Rule]:
    """A Sequential whose entries ``conv`` and ``conv + 1`` are a convolution and its norm."""
    return [
        Rule(f"{theirs}.{conv}.{{rest}}", f"{ours}.conv.{{rest}}"),
        Rule(f"{theirs}.{conv + 1}.{{rest}}", f"{ours}.bn.{{rest}}"),
    ]


def efficientformer_v2_rules() -> list[Rule]:
    rules = [
        *conv_bn("backbone.patch_embed", "backbone.stem.0"),
        *conv_bn("backbone.patch_embed", "backbone.stem.2", conv=3),
    ]
    for stage in range(4):
        # The authors' list alternates stages and down-samplers.
        theirs, ours = f"backbone.network.{2 * stage}.{{b}}", f"backbone.stages.{stage}.{{b}}"
        mixer, our_mixer = f"{theirs}.token_mixer", f"{ours}.token_mixer"
        for name in ("stride_conv", "q", "k", "v", "v_local"):
            rules += conv_bn(f"{mixer}.{name}", f"{our_mixer}.{name}")
        rules += conv_bn(f"{mixer}.proj", f"{our_mixer}.proj", conv=1)
        rules += [
            Rule(f"{mixer}.attention_biases_seg", f"{our_mixer}.bias.table"),
            Rule(f"{mixer}.talking_head{{i}}.{{rest}}", f"{our_mixer}.talking_head{{i}}.{{rest}}"),
            Rule(f"{theirs}.mlp.{{rest}}", f"{ours}.mlp.{{rest}}"),
            Rule(f"{theirs}.layer_scale_{{i}}", f"{ours}.layer_scale_{{i}}"),
        ]
    for index in range(2):
        theirs, ours = f"backbone.network.{2 * index + 1}", f"backbone.downsamples.{index}"
        rules += [
            Rule(f"{theirs}.proj.{{rest}}", f"{ours}.proj.{{rest}}"),
            Rule(f"{theirs}.norm.{{rest}}", f"{ours}.norm.{{rest}}"),
        ]
    theirs, ours = "backbone.network.5", "backbone.downsamples.2"
    rules += [
        Rule(f"{theirs}.conv.{{rest}}", f"{ours}.conv.{{rest}}"),
        Rule(f"{theirs}.bn.{{rest}}", f"{ours}.bn.{{rest}}"),
        Rule(f"{theirs}.attn.q.local.0.{{rest}}", f"{ours}.attn.q_local.{{rest}}"),
        Rule(f"{theirs}.attn.attention_biases_seg", f"{ours}.attn.bias.table"),
        *conv_bn(f"{theirs}.attn.q.proj", f"{ours}.attn.q"),
    ]
    for name in ("k", "v", "v_local"):
        rules += conv_bn(f"{theirs}.attn.{name}", f"{ours}.attn.{name}")
    rules += conv_bn(f"{theirs}.attn.proj", f"{ours}.attn.proj", conv=1)
    return rules


def _conv_module(theirs: str, ours: str, norm: str) -> list[Rule]:
    """The authors' convolution-with-norm module, Detectron2's Conv2d with norm here."""
    # The norm goes first: "{ours}.{rest}" would also match "{ours}.norm.weight".
    return [
        Rule(f"{theirs}.{norm}.{{rest}}", f"{ours}.norm.{{rest}}"),
        Rule(f"{theirs}.conv.{{rest}}", f"{ours}.{{rest}}"),
    ]


_DECODER = "sem_seg_head.pixel_decoder"
_SAMPLER_NAMES = {
    "offset": "lr_offset",
    "direct_scale": "lr_scale",
    "hr_offset": "hr_offset",
    "hr_direct_scale": "hr_scale",
    "norm_hr": "hr_norm",
    "norm_lr": "lr_norm",
}
_FUSION_NAMES = {
    "hr_channel_compressor": "hr_channel_compressor",
    "lr_channel_compressor": "lr_channel_compressor",
    "content_encoder": "low_pass_encoder",
    "content_encoder2": "high_pass_encoder",
}


def _offseg_decoder_rules() -> list[Rule]:
    fusion = "decode_head.freqfusions.{i}"
    return [
        *_conv_module("decode_head.pre.{i}", f"{_DECODER}.reduce.{{i}}", "gn"),
        *_conv_module("decode_head.align", f"{_DECODER}.align", "gn"),
        *(
            Rule(f"{fusion}.{theirs}.{{rest}}", f"{_DECODER}.fusions.{{i}}.{ours}.{{rest}}")
            for theirs, ours in _FUSION_NAMES.items()
        ),
        *(
            Rule(
                f"{fusion}.dysampler.{theirs}.{{rest}}",
                f"{_DECODER}.fusions.{{i}}.sampler.{ours}.{{rest}}",
            )
            for theirs, ours in _SAMPLER_NAMES.items()
        ),
    ]


def mit_rules() -> list[Rule]:
    stage, our_stage = "backbone.layers.{i}", "backbone.stages.{i}"
    block, our_block = f"{stage}.1.{{b}}", f"{our_stage}.blocks.{{b}}"
    feed_forward = {"0": "fc1", "1": "dwconv", "4": "fc2"}
    return [
        Rule(f"{stage}.0.projection.{{rest}}", f"{our_stage}.patch_embed.proj.{{rest}}"),
        Rule(f"{stage}.0.norm.{{rest}}", f"{our_stage}.patch_embed.norm.{{rest}}"),
        Rule(f"{block}.norm{{n}}.{{rest}}", f"{our_block}.norm{{n}}.{{rest}}"),
        Rule(f"{block}.attn.attn.in_proj_weight", f"{our_block}.attn.in_proj_weight"),
        Rule(f"{block}.attn.attn.in_proj_bias", f"{our_block}.attn.in_proj_bias"),
        Rule(f"{block}.attn.attn.out_proj.{{rest}}", f"{our_block}.attn.out_proj.{{rest}}"),
        Rule(f"{block}.attn.sr.{{rest}}", f"{our_block}.attn.sr.{{rest}}"),
        Rule(f"{block}.attn.norm.{{rest}}", f"{our_block}.attn.norm.{{rest}}"),
        *(
            Rule(f"{block}.ffn.layers.{theirs}.{{rest}}", f"{our_block}.ffn.{ours}.{{rest}}")
            for theirs, ours in feed_forward.items()
        ),
        Rule(f"{stage}.2.{{rest}}", f"{our_stage}.out_ln.{{rest}}"),
    ]


def _segformer_decoder_rules() -> list[Rule]:
    return [
        *_conv_module("decode_head.convs.{i}", f"{_DECODER}.reduce.{{i}}", "bn"),
        *_conv_module("decode_head.fusion_conv", f"{_DECODER}.fuse", "bn"),
    ]


_GATE_NAMES = {
    "conv0": "conv0",
    **{f"conv{i}_1": f"horizontal.{i}" for i in range(3)},
    **{f"conv{i}_2": f"vertical.{i}" for i in range(3)},
    "conv3": "mix",
}


def mscan_rules(*, nested: bool = False) -> list[Rule]:
    """MSCAN.

    Args:
        nested: whether the depth-wise convolution of the MLP is a module of its own there,
            ``mlp.dwconv.dwconv``.
    """
    rules = [
        *conv_bn("backbone.patch_embed1.proj", "backbone.stem.0"),
        *conv_bn("backbone.patch_embed1.proj", "backbone.stem.2", conv=3),
    ]
    for index in range(3):
        theirs, ours = f"backbone.patch_embed{index + 2}", f"backbone.downsamples.{index}"
        rules += [
            Rule(f"{theirs}.proj.{{rest}}", f"{ours}.proj.{{rest}}"),
            Rule(f"{theirs}.norm.{{rest}}", f"{ours}.norm.{{rest}}"),
        ]
    for stage in range(4):
        theirs, ours = f"backbone.block{stage + 1}.{{b}}", f"backbone.stages.{stage}.blocks.{{b}}"
        gate, our_gate = f"{theirs}.attn.spatial_gating_unit", f"{ours}.attn.gate"
        rules += [
            Rule(f"backbone.norm{stage + 1}.{{rest}}", f"backbone.stages.{stage}.norm.{{rest}}"),
            Rule(f"{theirs}.norm{{n}}.{{rest}}", f"{ours}.norm{{n}}.{{rest}}"),
            Rule(f"{theirs}.layer_scale_{{n}}", f"{ours}.layer_scale_{{n}}"),
            Rule(f"{theirs}.attn.proj_{{n}}.{{rest}}", f"{ours}.attn.proj_{{n}}.{{rest}}"),
            # Before the rule of the whole MLP, which would also match it.
            *[Rule(f"{theirs}.mlp.dwconv.dwconv.{{rest}}", f"{ours}.mlp.dwconv.{{rest}}")] * nested,
            Rule(f"{theirs}.mlp.{{rest}}", f"{ours}.mlp.{{rest}}"),
            *(
                Rule(f"{gate}.{name}.{{rest}}", f"{our_gate}.{our_name}.{{rest}}")
                for name, our_name in _GATE_NAMES.items()
            ),
        ]
    return rules


def _light_ham_decoder_rules() -> list[Rule]:
    ham, our_ham = "decode_head.hamburger", f"{_DECODER}.hamburger"
    return [
        *_conv_module("decode_head.squeeze", f"{_DECODER}.squeeze", "gn"),
        *_conv_module("decode_head.align", f"{_DECODER}.align", "gn"),
        Rule(f"{ham}.ham_in.conv.{{rest}}", f"{our_ham}.ham_in.{{rest}}"),
        Rule(f"{ham}.ham_out.conv.{{rest}}", f"{our_ham}.ham_out.conv.{{rest}}"),
        Rule(f"{ham}.ham_out.gn.{{rest}}", f"{our_ham}.ham_out.norm.{{rest}}"),
    ]


_CLASSIFIER = "sem_seg_head.classifier"
_OFFSET_CLASSIFIER_RULES = (
    Rule(
        "decode_head.offset_learning.cls_repr",
        f"{_CLASSIFIER}.class_representations",
        leading_axis=True,
    ),
    Rule(
        "decode_head.offset_learning.cls_offset_proj.{rest}",
        f"{_CLASSIFIER}.offset_learning.class_offset_proj.{{rest}}",
    ),
    Rule(
        "decode_head.offset_learning.feat_offset_proj.{rest}",
        f"{_CLASSIFIER}.offset_learning.feature_offset_proj.{{rest}}",
    ),
    Rule("decode_head.offset_learning.mask_norm.{rest}", f"{_CLASSIFIER}.norm.{{rest}}"),
)
_PLAIN_CLASSIFIER_RULES = (
    Rule("decode_head.conv_seg.{rest}", f"{_CLASSIFIER}.predictor.{{rest}}"),
)

_DERIVED = "is derived from the architecture, not learned"
_EFFICIENTFORMER_V2_DROPS = (
    Drop(r"backbone\..*\.attention_biases", "ImageNet tables that the model never reads"),
    Drop(r"backbone\..*\.attention_bias_idxs(_seg)?", _DERIVED),
)
_OFFSEG_DROPS = (
    *_EFFICIENTFORMER_V2_DROPS,
    Drop(r"decode_head\.freqfusions\.\d+\.hamming_(low|high)pass", "is the constant 1"),
    Drop(r"decode_head\.freqfusions\.\d+\.dysampler\.init_pos", _DERIVED),
)
_UNUSED_CLASSIFIER = Drop(
    r"decode_head\.conv_seg\..*", "plain classifier that the authors' offset heads never use"
)


def _key_maps(name: str, rules: list[Rule], drops: tuple[Drop, ...] = ()) -> tuple[KeyMap, KeyMap]:
    """The maps of a family with the offset classifier and with the plain one."""
    return (
        KeyMap(name, (*rules, *_OFFSET_CLASSIFIER_RULES), (*drops, _UNUSED_CLASSIFIER)),
        KeyMap(f"{name} with a plain classifier", (*rules, *_PLAIN_CLASSIFIER_RULES), drops),
    )


OFFSEG_OFFSET, OFFSEG_PLAIN = _key_maps(
    "the authors' OffSeg",
    [*efficientformer_v2_rules(), *_offseg_decoder_rules()],
    _OFFSEG_DROPS,
)
SEGFORMER_OFFSET, SEGFORMER_PLAIN = _key_maps(
    "the authors' SegFormer", [*mit_rules(), *_segformer_decoder_rules()]
)
SEGNEXT_OFFSET, SEGNEXT_PLAIN = _key_maps(
    "the authors' SegNeXt", [*mscan_rules(), *_light_ham_decoder_rules()]
)

# By `MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME` and `MODEL.SEM_SEG_HEAD.CLASSIFIER`.
KEY_MAPS: dict[tuple[str, str], KeyMap] = {
    ("OffSegPixelDecoder", "offset"): OFFSEG_OFFSET,
    ("OffSegPixelDecoder", "plain"): OFFSEG_PLAIN,
    ("SegFormerPixelDecoder", "offset"): SEGFORMER_OFFSET,
    ("SegFormerPixelDecoder", "plain"): SEGFORMER_PLAIN,
    ("LightHamPixelDecoder", "offset"): SEGNEXT_OFFSET,
    ("LightHamPixelDecoder", "plain"): SEGNEXT_PLAIN,
    ("MSDeformAttnPixelDecoder", "offset"): MASK2FORMER_OFFSET,
    ("MSDeformAttnPixelDecoder", "plain"): MASK2FORMER_PLAIN,
}
