"""State dicts of Swin transformers, ResNets and Mask2Former in the layouts of other projects.

Made without our key maps, as those of ``external.py``: from Detectron2's own networks and from the
authors' names, renamed here line by line. They are large: each is made once, and not to be changed.
"""

import re
from functools import cache

import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_resnet_backbone
from detectron2.modeling.backbone.swin import SwinTransformer
from torch import Tensor

from tests.checkpoint.external import authors_state, other_state

SWIN_T = "mask2former_swin_t_ade20k"
R50_OPTIONS = ("mask2former_r50", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 150)

# After `decode_head.` in the authors' files -> after `sem_seg_head.` in Mask2Former's.
_LAYER = r"transformer_decoder\.layers\.(\d)\."
_HEAD_NAMES = [
    (r"pixel_decoder\.input_convs\.(\d)\.conv\.(.*)", "pixel_decoder.input_proj.{0}.0.{1}"),
    (r"pixel_decoder\.input_convs\.(\d)\.gn\.(.*)", "pixel_decoder.input_proj.{0}.1.{1}"),
    (r"pixel_decoder\.level_encoding\.weight", "pixel_decoder.transformer.level_embed"),
    (
        r"pixel_decoder\.(encoder\.layers\.\d\.self_attn\..*)",
        "pixel_decoder.transformer.{0}",
    ),
    (
        r"pixel_decoder\.(encoder\.layers\.\d)\.norms\.0\.(.*)",
        "pixel_decoder.transformer.{0}.norm1.{1}",
    ),
    (
        r"pixel_decoder\.(encoder\.layers\.\d)\.norms\.1\.(.*)",
        "pixel_decoder.transformer.{0}.norm2.{1}",
    ),
    (
        r"pixel_decoder\.(encoder\.layers\.\d)\.ffn\.layers\.0\.0\.(.*)",
        "pixel_decoder.transformer.{0}.linear1.{1}",
    ),
    (
        r"pixel_decoder\.(encoder\.layers\.\d)\.ffn\.layers\.1\.(.*)",
        "pixel_decoder.transformer.{0}.linear2.{1}",
    ),
    (r"pixel_decoder\.lateral_convs\.0\.conv\.weight", "pixel_decoder.adapter_1.weight"),
    (r"pixel_decoder\.lateral_convs\.0\.gn\.(.*)", "pixel_decoder.adapter_1.norm.{0}"),
    (r"pixel_decoder\.output_convs\.0\.conv\.weight", "pixel_decoder.layer_1.weight"),
    (r"pixel_decoder\.output_convs\.0\.gn\.(.*)", "pixel_decoder.layer_1.norm.{0}"),
    (r"pixel_decoder\.mask_feature\.(.*)", "pixel_decoder.mask_features.{0}"),
    (
        _LAYER + r"cross_attn\.attn\.(.*)",
        "predictor.transformer_cross_attention_layers.{0}.multihead_attn.{1}",
    ),
    (
        _LAYER + r"self_attn\.attn\.(.*)",
        "predictor.transformer_self_attention_layers.{0}.self_attn.{1}",
    ),
    (_LAYER + r"norms\.0\.(.*)", "predictor.transformer_cross_attention_layers.{0}.norm.{1}"),
    (_LAYER + r"norms\.1\.(.*)", "predictor.transformer_self_attention_layers.{0}.norm.{1}"),
    (_LAYER + r"norms\.2\.(.*)", "predictor.transformer_ffn_layers.{0}.norm.{1}"),
    (_LAYER + r"ffn\.layers\.0\.0\.(.*)", "predictor.transformer_ffn_layers.{0}.linear1.{1}"),
    (_LAYER + r"ffn\.layers\.1\.(.*)", "predictor.transformer_ffn_layers.{0}.linear2.{1}"),
    (r"transformer_decoder\.post_norm\.(.*)", "predictor.decoder_norm.{0}"),
    (r"((query_embed|query_feat|level_embed)\.weight)", "predictor.{0}"),
    (r"cls_embed\.(.*)", "predictor.class_embed.{0}"),
    (r"mask_embed\.0\.(.*)", "predictor.mask_embed.layers.0.{0}"),
    (r"mask_embed\.2\.(.*)", "predictor.mask_embed.layers.1.{0}"),
    (r"mask_embed\.4\.(.*)", "predictor.mask_embed.layers.2.{0}"),
]
_SWIN_NAMES = [
    (r"patch_embed\.projection\.(.*)", "patch_embed.proj.{0}"),
    (r"(patch_embed\.norm\..*)", "{0}"),
    (r"stages\.(\d)\.blocks\.(\d)\.(norm[12]\..*)", "layers.{0}.blocks.{1}.{2}"),
    (r"stages\.(\d)\.blocks\.(\d)\.attn\.w_msa\.(.*)", "layers.{0}.blocks.{1}.attn.{2}"),
    (r"stages\.(\d)\.blocks\.(\d)\.ffn\.layers\.0\.0\.(.*)", "layers.{0}.blocks.{1}.mlp.fc1.{2}"),
    (r"stages\.(\d)\.blocks\.(\d)\.ffn\.layers\.1\.(.*)", "layers.{0}.blocks.{1}.mlp.fc2.{2}"),
    (r"stages\.(\d)\.downsample\.(.*)", "layers.{0}.downsample.{1}"),
    (r"(norm\d\..*)", "{0}"),
]


def _renamed(name: str, table: list[tuple[str, str]]) -> str:
    found = [(re.fullmatch(pattern, name), ours) for pattern, ours in table]
    ((match, ours),) = [(match, ours) for match, ours in found if match]
    return ours.format(*match.groups())


def _with_original_merging(tensor: Tensor) -> Tensor:
    """Last axis 4 c + 2 row + column -> the four pixels of a patch in the original order."""
    channels = tensor.shape[-1] // 4
    result = torch.empty_like(tensor)
    for index, (row, column) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
        for channel in range(channels):
            source = tensor[..., 4 * channel + 2 * row + column]
            result[..., index * channels + channel] = source
    return result


@cache
def authors_plain_mask2former() -> dict[str, Tensor]:
    """mmsegmentation's: the authors' without the offsets."""
    state = authors_state(SWIN_T)
    return {key: value for key, value in state.items() if "offset_learning" not in key}


@cache
def fb_mask2former() -> dict[str, Tensor]:
    """Mask2Former with Swin-T for ADE20K, with the authors' values."""
    state: dict[str, Tensor] = {}
    for key, value in authors_plain_mask2former().items():
        part, _, name = key.partition(".")
        if part == "backbone":
            value = _with_original_merging(value) if "downsample" in name else value
            state[f"backbone.{_renamed(name, _SWIN_NAMES)}"] = value
        else:
            state[f"sem_seg_head.{_renamed(name, _HEAD_NAMES)}"] = value
    empty_weight = torch.ones(151)
    empty_weight[-1] = 0.1
    return state | {"criterion.empty_weight": empty_weight}


@cache
def resnet50(norm: str = "FrozenBN") -> dict[str, Tensor]:
    """Detectron2's ResNet-50, all four stages."""
    cfg = get_cfg()
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.NORM = norm
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    return build_resnet_backbone(cfg, ShapeSpec(channels=3)).state_dict()


def fb_mask2former_r50(norm: str = "FrozenBN") -> dict[str, Tensor]:
    """Mask2Former with ResNet-50 for ADE20K."""
    state = {k: v for k, v in fb_mask2former().items() if not k.startswith("backbone.")}
    pixels = "sem_seg_head.pixel_decoder"
    for index, channels in enumerate((2048, 1024, 512)):
        state[f"{pixels}.input_proj.{index}.0.weight"] = torch.randn(256, channels, 1, 1)
    state[f"{pixels}.adapter_1.weight"] = torch.randn(256, 256, 1, 1)
    return state | {f"backbone.{name}": value for name, value in resnet50(norm).items()}


def resnet50_imagenet() -> dict[str, Tensor]:
    """torchvision's ResNet-50 as Detectron2 has converted it."""
    return resnet50() | {
        "stem.fc.weight": torch.randn(1000, 2048),
        "stem.fc.bias": torch.randn(1000),
    }


def _imagenet_head(width: int) -> dict[str, Tensor]:
    return {
        "norm.weight": torch.randn(width),
        "norm.bias": torch.randn(width),
        "head.weight": torch.randn(1000, width),
        "head.bias": torch.randn(1000),
    }


@cache
def swin_imagenet() -> dict[str, Tensor]:
    """Swin-T as its authors have published it; shifted windows have masks for 224 x 224 pixels."""
    state = SwinTransformer(out_indices=(), drop_path_rate=0.0).state_dict()
    for index, windows in enumerate((64, 16, 4)):
        state[f"layers.{index}.blocks.1.attn_mask"] = torch.zeros(windows, 49, 49)
    return state | _imagenet_head(768)


@cache
def swin_openmmlab() -> dict[str, Tensor]:
    """Swin-T as OpenMMLab has converted it."""
    state = {
        key.removeprefix("backbone."): value
        for key, value in authors_state(SWIN_T).items()
        if key.startswith("backbone.") and not re.match(r"backbone\.norm\d", key)
    }
    return state | _imagenet_head(768)


@cache
def swin_timm() -> dict[str, Tensor]:
    """Swin-T of timm."""
    return other_state("timm_swin_t")


@cache
def hf_mask2former() -> dict[str, Tensor]:
    """Mask2Former with Swin-T for ADE20K, as transformers writes it."""
    return other_state("hf_mask2former_swin_t")
