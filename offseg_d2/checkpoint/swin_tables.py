"""The tables of the key maps: Swin transformers, and Detectron2's ResNets.

Here a Swin transformer has Detectron2's names, which are those of the original weights.

==================  ==============================================================================
map                 names as in
==================  ==============================================================================
SWIN                the original ``swin_*_patch4_window*.pth``
TIMM_SWIN           timm's ``swin_*``
OPENMMLAB_SWIN      OpenMMLab's files; their patches are merged in another order
RESNET              Detectron2's ``ImageNetPretrained/torchvision/R-*.pkl``
==================  ==============================================================================
"""

from offseg_d2.checkpoint.key_maps import Drop, KeyMap, Rule

_DROPS = (
    Drop(r"(norm|head)\..*", "belongs to the ImageNet classifier"),
    Drop(r"layers\.\d+\.blocks\.\d+\.attn_mask", "is derived from the size of the image"),
)


def openmmlab_swin_rules(prefix: str) -> list[Rule]:
    """OpenMMLab's names, after ``prefix``."""
    block, our_block = f"{prefix}stages.{{i}}.blocks.{{j}}", "backbone.layers.{i}.blocks.{j}"
    merge, our_merge = f"{prefix}stages.{{i}}.downsample", "backbone.layers.{i}.downsample"
    return [
        Rule(f"{prefix}patch_embed.projection.{{rest}}", "backbone.patch_embed.proj.{rest}"),
        Rule(f"{prefix}patch_embed.norm.{{rest}}", "backbone.patch_embed.norm.{rest}"),
        Rule(f"{block}.attn.w_msa.{{rest}}", f"{our_block}.attn.{{rest}}"),
        Rule(f"{block}.norm{{n}}.{{rest}}", f"{our_block}.norm{{n}}.{{rest}}"),
        Rule(f"{block}.ffn.layers.0.0.{{rest}}", f"{our_block}.mlp.fc1.{{rest}}"),
        Rule(f"{block}.ffn.layers.1.{{rest}}", f"{our_block}.mlp.fc2.{{rest}}"),
        Rule(f"{merge}.norm.{{rest}}", f"{our_merge}.norm.{{rest}}", patch_order=True),
        Rule(f"{merge}.reduction.weight", f"{our_merge}.reduction.weight", patch_order=True),
        Rule(f"{prefix}norm{{n}}.{{rest}}", "backbone.norm{n}.{rest}"),
    ]


def _swin_rules() -> tuple[Rule, ...]:
    names = [
        "patch_embed.{rest}",
        *("layers.{i}.blocks.{j}.attn.{rest}", "layers.{i}.blocks.{j}.mlp.{rest}"),
        *("layers.{i}.blocks.{j}.norm{n}.{rest}", "layers.{i}.downsample.{rest}"),
    ]
    return tuple(Rule(name, f"backbone.{name}") for name in names)


def _timm_swin_rules() -> tuple[Rule, ...]:
    # There a stage begins with the merging of patches, here it ends with it.
    merges = [
        Rule(f"layers.{i + 1}.downsample.{{rest}}", f"backbone.layers.{i}.downsample.{{rest}}")
        for i in range(3)
    ]
    return (*merges, *(rule for rule in _swin_rules() if "downsample" not in rule.theirs))


SWIN = KeyMap("ImageNet weights of Swin", _swin_rules(), _DROPS)
TIMM_SWIN = KeyMap("timm's Swin", _timm_swin_rules(), _DROPS)
OPENMMLAB_SWIN = KeyMap(
    "OpenMMLab's ImageNet weights of Swin", tuple(openmmlab_swin_rules("")), _DROPS
)
RESNET = KeyMap(
    "Detectron2's ImageNet weights of a ResNet",
    (
        Rule("stem.conv{n}.{rest}", "backbone.stem.conv{n}.{rest}"),
        Rule("res{n}.{rest}", "backbone.res{n}.{rest}"),
    ),
    (Drop(r"stem\.fc\..*", "belongs to the ImageNet classifier"),),
)
