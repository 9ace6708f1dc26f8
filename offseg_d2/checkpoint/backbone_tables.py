"""The tables of the key maps: backbones pre-trained on ImageNet, and Hugging Face's SegFormer.

==========================  ======================================================================
map                         names as in
==========================  ======================================================================
EFFICIENTFORMER_V2          the authors' ``eformer_*_450.pth``: OffSeg's, without ``backbone.``
TIMM_EFFICIENTFORMER_V2     timm's ``efficientformerv2_*``
MIT, MSCAN                  OpenMMLab's files: SegFormer's, SegNeXt's, without ``backbone.``
NESTED_MSCAN                MSCAN's, but for ``mlp.dwconv.dwconv`` in place of ``mlp.dwconv``
NVIDIA_MIT                  the original ``mit_b*.pth``
HF_MIT, HF_SEGFORMER        transformers' ``Segformer...`` classes, as they are saved
TORCHVISION_MOBILENET_V2    torchvision's ``mobilenet_v2``
==========================  ======================================================================
"""

from collections.abc import Sequence
from dataclasses import replace

from offseg_d2.checkpoint.key_maps import Drop, KeyMap, Packing, Rule
from offseg_d2.checkpoint.key_tables import efficientformer_v2_rules, mit_rules, mscan_rules

_CLASSIFICATION = "belongs to the ImageNet classifier"
_CLASSIFIER_DROP = Drop(r"(norm|head|dist_head|head_dist|classifier)\..*", _CLASSIFICATION)
_BIAS_DROPS = (
    Drop(r".*\.attention_biases", "is for 224 x 224 pixels; the biases of this model start at 0"),
    Drop(r".*\.attention_bias_idxs", "is derived from the architecture, not learned"),
)


def _without_prefix(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """Names of the backbone alone; every rule is one of the backbone."""
    return tuple(replace(rule, theirs=rule.theirs.removeprefix("backbone.")) for rule in rules)


EFFICIENTFORMER_V2 = KeyMap(
    "ImageNet weights of EfficientFormerV2",
    _without_prefix(efficientformer_v2_rules()),
    (*_BIAS_DROPS, _CLASSIFIER_DROP),
)


def _timm_efficientformer_v2_rules() -> list[Rule]:
    rules = [
        Rule("stem.conv1.{rest}", "backbone.stem.0.{rest}"),
        Rule("stem.conv2.{rest}", "backbone.stem.2.{rest}"),
    ]
    for index, (conv, norm) in enumerate([("proj", "norm"), ("proj", "norm"), ("conv", "bn")]):
        theirs, ours = f"stages.{index + 1}.downsample", f"backbone.downsamples.{index}"
        rules += [
            Rule(f"{theirs}.conv.conv.{{rest}}", f"{ours}.{conv}.{{rest}}"),
            Rule(f"{theirs}.conv.bn.{{rest}}", f"{ours}.{norm}.{{rest}}"),
        ]
    attention, our_attention = "stages.3.downsample.attn", "backbone.downsamples.2.attn"
    rules += [
        Rule(f"{attention}.q.local.{{rest}}", f"{our_attention}.q_local.{{rest}}"),
        Rule(f"{attention}.q.proj.{{rest}}", f"{our_attention}.q.{{rest}}"),
    ]
    for name in ("k", "v", "v_local", "proj"):
        rules.append(Rule(f"{attention}.{name}.{{rest}}", f"{our_attention}.{name}.{{rest}}"))
    block, our_block = "stages.{i}.blocks.{b}", "backbone.stages.{i}.{b}"
    for name, norm in (("fc1", "norm1"), ("mid", "mid_norm"), ("fc2", "norm2")):
        rules += [
            Rule(f"{block}.mlp.{name}.conv.{{rest}}", f"{our_block}.mlp.{name}.{{rest}}"),
            Rule(f"{block}.mlp.{name}.bn.{{rest}}", f"{our_block}.mlp.{norm}.{{rest}}"),
        ]
    mixer, our_mixer = f"{block}.token_mixer", f"{our_block}.token_mixer"
    for name in ("stride_conv", "q", "k", "v", "v_local", "proj"):
        rules.append(Rule(f"{mixer}.{name}.{{rest}}", f"{our_mixer}.{name}.{{rest}}"))
    return [
        *rules,
        Rule(f"{mixer}.talking_head{{n}}.{{rest}}", f"{our_mixer}.talking_head{{n}}.{{rest}}"),
        Rule(f"{block}.ls{{n}}.gamma", f"{our_block}.layer_scale_{{n}}", trailing_axes=2),
    ]


TIMM_EFFICIENTFORMER_V2 = KeyMap(
    "timm's EfficientFormerV2",
    tuple(_timm_efficientformer_v2_rules()),
    (*_BIAS_DROPS, _CLASSIFIER_DROP),
)


RESIZABLE_BIASES = (EFFICIENTFORMER_V2, TIMM_EFFICIENTFORMER_V2)


def with_attention_biases(key_map: KeyMap) -> KeyMap:
    """The map of an EfficientFormerV2 that keeps the attention biases.

    Their tables are of another size than ours: see ``conversion.resize_bias_table``.
    """
    table = "attention_biases"
    if key_map is TIMM_EFFICIENTFORMER_V2:
        rules = [
            Rule(
                f"stages.{{i}}.blocks.{{b}}.token_mixer.{table}",
                "backbone.stages.{i}.{b}.token_mixer.bias.table",
            ),
            Rule(f"stages.3.downsample.attn.{table}", "backbone.downsamples.2.attn.bias.table"),
        ]
    else:
        # The map's rules for OffSeg's own tables, on the tables for ImageNet.
        rules = [
            replace(rule, theirs=rule.theirs.removesuffix("_seg"))
            for rule in key_map.rules
            if rule.theirs.endswith(f"{table}_seg")
        ]
    return replace(key_map, rules=(*rules, *key_map.rules))


MIT = KeyMap("ImageNet weights of MiT", _without_prefix(mit_rules()), (_CLASSIFIER_DROP,))
MSCAN = KeyMap("ImageNet weights of MSCAN", _without_prefix(mscan_rules()), (_CLASSIFIER_DROP,))
NESTED_MSCAN = KeyMap(
    "ImageNet weights of MSCAN with nested convolutions",
    _without_prefix(mscan_rules(nested=True)),
    (_CLASSIFIER_DROP,),
)


def _packings(prefix: str, packed: str, parts: dict[str, int]) -> list[Packing]:
    """Attention projections, weights and biases, that are packed into one matrix here."""
    return [
        Packing(
            tuple(f"{prefix}.{part}.{kind}" for part in parts),
            tuple(parts.values()),
            f"{packed}_{kind}",
        )
        for kind in ("weight", "bias")
    ]


def _mlp_rules(theirs: str, ours: str, names: dict[str, str]) -> list[Rule]:
    """Linear layers of the feed-forward network, 1x1 convolutions here."""
    rules = []
    for name, our_name in names.items():
        rules += [
            Rule(f"{theirs}.{name}.weight", f"{ours}.{our_name}.weight", trailing_axes=2),
            Rule(f"{theirs}.{name}.bias", f"{ours}.{our_name}.bias"),
        ]
    return [*rules, Rule(f"{theirs}.dwconv.dwconv.{{rest}}", f"{ours}.dwconv.{{rest}}")]


def _nvidia_mit_map() -> KeyMap:
    rules: list[Rule] = []
    packings: list[Packing] = []
    for stage in range(4):
        ours, embed = f"backbone.stages.{stage}", f"patch_embed{stage + 1}"
        block, our_block = f"block{stage + 1}.{{b}}", f"{ours}.blocks.{{b}}"
        attention, our_attention = f"{block}.attn", f"{our_block}.attn"
        packings += _packings(attention, f"{attention}.in_proj", {"q": 1, "kv": 2})
        rules += [
            Rule(f"{embed}.{{rest}}", f"{ours}.patch_embed.{{rest}}"),
            Rule(f"norm{stage + 1}.{{rest}}", f"{ours}.out_ln.{{rest}}"),
            Rule(f"{block}.norm{{n}}.{{rest}}", f"{our_block}.norm{{n}}.{{rest}}"),
            *(
                Rule(f"{attention}.in_proj_{kind}", f"{our_attention}.in_proj_{kind}")
                for kind in ("weight", "bias")
            ),
            Rule(f"{attention}.proj.{{rest}}", f"{our_attention}.out_proj.{{rest}}"),
            Rule(f"{attention}.sr.{{rest}}", f"{our_attention}.sr.{{rest}}"),
            Rule(f"{attention}.norm.{{rest}}", f"{our_attention}.norm.{{rest}}"),
            *_mlp_rules(f"{block}.mlp", f"{our_block}.ffn", {"fc1": "fc1", "fc2": "fc2"}),
        ]
    name = "NVIDIA's ImageNet weights of MiT"
    return KeyMap(name, tuple(rules), (_CLASSIFIER_DROP,), tuple(packings))


NVIDIA_MIT = _nvidia_mit_map()


def _hf_mit_map(prefix: str) -> KeyMap:
    ours, embed = "backbone.stages.{i}", f"{prefix}encoder.patch_embeddings.{{i}}"
    block, our_block = f"{prefix}encoder.block.{{i}}.{{b}}", f"{ours}.blocks.{{b}}"
    attention, our_attention = f"{block}.attention.self", f"{our_block}.attn"
    rules = [
        Rule(f"{embed}.proj.{{rest}}", f"{ours}.patch_embed.proj.{{rest}}"),
        Rule(f"{embed}.layer_norm.{{rest}}", f"{ours}.patch_embed.norm.{{rest}}"),
        Rule(f"{prefix}encoder.layer_norm.{{i}}.{{rest}}", f"{ours}.out_ln.{{rest}}"),
        Rule(f"{block}.layer_norm_{{n}}.{{rest}}", f"{our_block}.norm{{n}}.{{rest}}"),
        *(
            Rule(f"{attention}.in_proj_{kind}", f"{our_attention}.in_proj_{kind}")
            for kind in ("weight", "bias")
        ),
        Rule(f"{block}.attention.output.dense.{{rest}}", f"{our_attention}.out_proj.{{rest}}"),
        Rule(f"{attention}.sr.{{rest}}", f"{our_attention}.sr.{{rest}}"),
        Rule(f"{attention}.layer_norm.{{rest}}", f"{our_attention}.norm.{{rest}}"),
        *_mlp_rules(f"{block}.mlp", f"{our_block}.ffn", {"dense1": "fc1", "dense2": "fc2"}),
    ]
    parts = {"query": 1, "key": 1, "value": 1}
    packings = _packings(attention, f"{attention}.in_proj", parts)
    return KeyMap(
        "Hugging Face's MiT",
        tuple(rules),
        (Drop(r"classifier\..*", _CLASSIFICATION),),
        tuple(packings),
    )


HF_MIT = _hf_mit_map("segformer.")
HF_MIT_ENCODER = _hf_mit_map("")  # of the class SegformerModel


def _hf_segformer_map() -> KeyMap:
    decoder = "sem_seg_head.pixel_decoder"
    rules = (
        Rule(
            "decode_head.linear_c.{i}.proj.weight",
            f"{decoder}.reduce.{{i}}.weight",
            trailing_axes=2,
        ),
        Rule("decode_head.linear_c.{i}.proj.bias", f"{decoder}.reduce.{{i}}.bias"),
        # Their levels are concatenated from coarse to fine.
        Rule("decode_head.linear_fuse.weight", f"{decoder}.fuse.weight", reversed_chunks=4),
        Rule("decode_head.batch_norm.{rest}", f"{decoder}.fuse.norm.{{rest}}"),
        Rule("decode_head.classifier.{rest}", "sem_seg_head.classifier.predictor.{rest}"),
    )
    return replace(HF_MIT, name="Hugging Face's SegFormer", rules=(*rules, *HF_MIT.rules), drops=())


HF_SEGFORMER = _hf_segformer_map()

TORCHVISION_MOBILENET_V2 = KeyMap(
    "torchvision's ImageNet weights of MobileNetV2",
    (Rule("features.{rest}", "backbone.features.{rest}"),),
    (Drop(r"classifier\..*", _CLASSIFICATION),),
)
