"""Which project and model a checkpoint is of, told by its parameter names."""

from collections.abc import Iterable
from dataclasses import dataclass

from offseg_d2.checkpoint import backbone_tables as backbones
from offseg_d2.checkpoint import key_tables as models
from offseg_d2.checkpoint.key_maps import KeyMap, Rule


@dataclass(frozen=True)
class Format:
    """Naming of one family of models in one project.

    Attributes:
        key_map: to our names.
        markers: foreign names that every file of this format has.
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


def _backbone(key_map: KeyMap, name: str, *markers: str) -> Format:
    lacks = r"(?!backbone\.).*|.*\.num_batches_tracked|.*\.bias\.table"
    return Format(key_map, markers, f"`MODEL.BACKBONE.NAME` {name} of the same variant", lacks)


_OFFSET_MAPS = (models.OFFSEG_OFFSET, models.SEGFORMER_OFFSET, models.SEGNEXT_OFFSET)
_FUSION = "decode_head.freqfusions.0.content_encoder.weight"
_FUSE = "decode_head.fusion_conv.conv.weight"
_HAM = "decode_head.hamburger.ham_in.conv.weight"
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
    _backbone(backbones.HF_MIT, "MiT", f"segformer.{_HF_QUERY}"),
    _backbone(backbones.HF_MIT_ENCODER, "MiT", _HF_QUERY),
    _backbone(backbones.MIT, "MiT", "layers.0.0.projection.weight"),
    _backbone(backbones.NVIDIA_MIT, "MiT", "patch_embed1.proj.weight", "block1.0.attn.kv.weight"),
    _backbone(
        backbones.MSCAN,
        "MSCAN",
        *("patch_embed1.proj.0.weight", "block1.0.attn.spatial_gating_unit.conv0.weight"),
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
)
OWN = Format(KeyMap("offseg_d2", (Rule("{rest}", "{rest}"),)), (), "the configuration of its run")

# Families that no model of this package can load: marker -> name.
_UNSUPPORTED: dict[str, str] = {
    "decode_head.query_feat.weight": "Mask2Former of the authors of OffSeg",
    "sem_seg_head.predictor.query_feat.weight": "Mask2Former",
    "layers.0.blocks.0.attn.relative_position_bias_table": "a Swin transformer",
    "stages.0.blocks.0.attn.w_msa.relative_position_bias_table": "a Swin transformer of OpenMMLab",
}


def recognise(names: Iterable[str]) -> Format | None:
    """The format that these parameter names are of; None if it is unknown.

    Raises:
        ValueError: if it is one that no model of this package can load.
    """
    known = set(names)
    for marker, family in _UNSUPPORTED.items():
        if marker in known:
            raise ValueError(f"it holds {family}, which no model here can load.")
    for candidate in FORMATS:
        if known.issuperset(candidate.markers):
            return candidate
    is_own = known and all(name.startswith(("backbone.", "sem_seg_head.")) for name in known)
    return OWN if is_own else None
