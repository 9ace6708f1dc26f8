"""The project and model of a checkpoint, recognised by its parameter names."""

from collections.abc import Iterable
from dataclasses import dataclass

from offseg_d2.checkpoint import backbone_tables as backbones
from offseg_d2.checkpoint import key_tables as models
from offseg_d2.checkpoint import mask_query_tables as masks
from offseg_d2.checkpoint import swin_tables as swins
from offseg_d2.checkpoint.key_maps import KeyMap, Rule


@dataclass(frozen=True)
class Format:
    """Naming of one family of models in one project.

    Attributes:
        key_map: to our names.
        markers: external names that every file of this format has.
        fits: configuration of the models it fits, for messages.
        lacks: pattern of the model's entries that such a file does not hold.
    """

    key_map: KeyMap
    markers: tuple[str, ...]
    fits: str
    lacks: str = r".*\.num_batches_tracked"


def _whole(key_map: KeyMap, marker: str, decoder: str) -> Format:
    classifier = "offset" if key_map in _OFFSET_MAPS else "plain"
    markers = (marker, *(("decode_head.offset_learning.cls_repr",) * (classifier == "offset")))
    keys = f"`MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME` {decoder} and `CLASSIFIER` {classifier}"
    return Format(key_map, markers, keys)


def _mask_queries(key_map: KeyMap, classifier: str, backbone: str, *markers: str) -> Format:
    keys = f"`MODEL.META_ARCHITECTURE` MaskSegmentor, {backbone} and `CLASSIFIER` {classifier}"
    lacks = rf".*\.num_batches_tracked|{_SWIN_INDICES}"
    return Format(key_map, markers, keys, lacks)


def _backbone(key_map: KeyMap, name: str, *markers: str) -> Format:
    lacks = r"(?!backbone\.).*|.*\.num_batches_tracked|.*\.bias\.table"
    if name == "Swin":  # the classifier needs no norms of the levels
        lacks = rf"{lacks}|backbone\.norm\d\.(weight|bias)|{_SWIN_INDICES}"
    return Format(key_map, markers, f"`MODEL.BACKBONE.NAME` {name} of the same variant", lacks)


_OFFSET_MAPS = (models.OFFSEG_OFFSET, models.SEGFORMER_OFFSET, models.SEGNEXT_OFFSET)
# Constants of the architecture, which not all projects write.
_SWIN_INDICES = r"backbone\.layers\..*\.relative_position_index"
_FUSION = "decode_head.freqfusions.0.content_encoder.weight"
_FUSE = "decode_head.fusion_conv.conv.weight"
_HAM = "decode_head.hamburger.ham_in.conv.weight"
_MSCAN = ("patch_embed1.proj.0.weight", "block1.0.attn.spatial_gating_unit.conv0.weight")
_SWIN_TABLE = "layers.0.blocks.0.attn.relative_position_bias_table"
_HF_QUERY = "encoder.block.0.0.attention.self.query.weight"

# The first one whose markers are all there decides: the offset classifier before the plain one.
FORMATS: tuple[Format, ...] = (
    _whole(models.OFFSEG_OFFSET, _FUSION, "OffSegPixelDecoder"),
    _whole(models.OFFSEG_PLAIN, _FUSION, "OffSegPixelDecoder"),
    _whole(models.SEGFORMER_OFFSET, _FUSE, "SegFormerPixelDecoder"),
    _whole(models.SEGFORMER_PLAIN, _FUSE, "SegFormerPixelDecoder"),
    _whole(models.SEGNEXT_OFFSET, _HAM, "LightHamPixelDecoder"),
    _whole(models.SEGNEXT_PLAIN, _HAM, "LightHamPixelDecoder"),
    Format(
        backbones.HF_SEGFORMER,
        (f"segformer.{_HF_QUERY}", "decode_head.linear_c.0.proj.weight"),
        "`MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME` SegFormerPixelDecoder, `CLASSIFIER` plain and "
        "`MODEL.SEGFORMER.LINEAR_LEVELS` True",
    ),
    _mask_queries(
        masks.MASK2FORMER_OFFSET,
        "offset",
        "`BACKBONE.NAME` Swin of the same variant",
        *("decode_head.query_feat.weight", "decode_head.offset_learning.cls_offset_proj.weight"),
    ),
    _mask_queries(
        masks.MASK2FORMER_PLAIN,
        "plain",
        "`BACKBONE.NAME` Swin of the same variant",
        "decode_head.query_feat.weight",
    ),
    _mask_queries(
        masks.FB_MASK2FORMER,
        "plain",
        "the same backbone",
        *("sem_seg_head.predictor.query_feat.weight", "criterion.empty_weight"),
    ),
    _mask_queries(
        masks.HF_MASK2FORMER,
        "plain",
        "`BACKBONE.NAME` Swin of the same variant",
        "model.transformer_module.queries_features.weight",
    ),
    _backbone(backbones.HF_MIT, "MiT", f"segformer.{_HF_QUERY}"),
    _backbone(backbones.HF_MIT_ENCODER, "MiT", _HF_QUERY),
    _backbone(backbones.MIT, "MiT", "layers.0.0.projection.weight"),
    _backbone(backbones.NVIDIA_MIT, "MiT", "patch_embed1.proj.weight", "block1.0.attn.kv.weight"),
    _backbone(
        backbones.MSCAN,
        "MSCAN",
        *(*_MSCAN, "block1.0.mlp.dwconv.weight"),
    ),
    _backbone(
        backbones.NESTED_MSCAN,
        "MSCAN",
        *(*_MSCAN, "block1.0.mlp.dwconv.dwconv.weight"),
    ),
    _backbone(
        backbones.EFFICIENTFORMER_V2,
        "EfficientFormerV2",
        *("patch_embed.0.weight", "network.0.0.mlp.fc1.weight"),
    ),
    _backbone(
        backbones.TIMM_EFFICIENTFORMER_V2,
        "EfficientFormerV2",
        *("stem.conv1.conv.weight", "stages.3.downsample.attn.q.local.weight"),
    ),
    _backbone(
        backbones.TORCHVISION_MOBILENET_V2,
        "TorchvisionMobileNetV2",
        *("features.0.0.weight", "features.1.conv.0.0.weight", "features.18.0.weight"),
    ),
    # timm's Swin has the names of the original one too.
    _backbone(swins.TIMM_SWIN, "Swin", _SWIN_TABLE, "layers.3.downsample.reduction.weight"),
    _backbone(swins.SWIN, "Swin", _SWIN_TABLE, "patch_embed.proj.weight"),
    _backbone(
        swins.OPENMMLAB_SWIN,
        "Swin",
        *("patch_embed.projection.weight", "stages.0.blocks.0.attn.w_msa.qkv.weight"),
    ),
    _backbone(
        swins.RESNET,
        "build_resnet_backbone",
        *("stem.conv1.weight", "res2.0.conv1.weight"),
    ),
)
OWN = Format(KeyMap("offseg_d2", (Rule("{rest}", "{rest}"),)), (), "the configuration of its run")


def recognise(names: Iterable[str]) -> Format | None:
    """The format that these parameter names are of; None if it is unknown."""
    known = set(names)
    for candidate in FORMATS:
        if known.issuperset(candidate.markers):
            return candidate
    is_own = known and all(name.startswith(("backbone.", "sem_seg_head.")) for name in known)
    return OWN if is_own else None
