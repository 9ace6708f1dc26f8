"""Small models of every kind for the tests of exports, and their exported forms."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, ShapeSpec, build_model
from torch import nn

from offseg_d2.export import ModelDescription, SegmentationGraph, prepare_export
from offseg_d2.modeling.backbone.efficientformer_v2 import (
    EFFICIENTFORMER_V2_VARIANTS,
    EfficientFormerV2Variant,
)
from offseg_d2.modeling.backbone.mit import MIT_VARIANTS, MiTVariant
from tests.common import offseg_config, seed_all, spread_weights


class TinyConvs(Backbone):
    """Four strided convolutions, "res2".."res5"; its export takes a second."""

    def __init__(self, cfg: CfgNode, input_shape: ShapeSpec) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(before, 8, stride + 1, stride=stride, padding=stride // 2)
            for before, stride in ((3, 4), (8, 2), (8, 2), (8, 2))
        )
        self._out_features = ["res2", "res3", "res4", "res5"]
        self._out_feature_channels = dict.fromkeys(self._out_features, 8)
        self._out_feature_strides = {f"res{level}": 2**level for level in range(2, 6)}

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = {}
        for name, conv in zip(self._out_features, self.convs, strict=True):
            image = conv(image).relu()
            outputs[name] = image
        return outputs


if "TinyConvs" not in BACKBONE_REGISTRY:
    BACKBONE_REGISTRY.register(TinyConvs)

CLASSES = ("sky", "road", "tree", "car", "sign")
COLORS = ((10, 20, 30), (40, 50, 60), (70, 80, 90), (1, 2, 3), (4, 5, 6))
METADATA = Metadata(name="tiny", stuff_classes=list(CLASSES), stuff_colors=list(COLORS))
COMMON = (
    *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", len(CLASSES)),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", 32),
    *("INPUT.RESIZE.SCALE_TEST", [96, 64]),
    *("TEST.SEM_SEG.MODE", "whole"),
)
MODELS = {
    "convs": ("segformer_b0", "MODEL.BACKBONE.NAME", "TinyConvs"),
    "offseg": (
        "offseg_t",
        *("MODEL.EFFICIENTFORMER_V2.VARIANT", "tiny"),
        *("MODEL.OFFSEG.LEVEL_CHANNELS", [32, 32, 32, 32]),
    ),
    "segformer": ("segformer_b0", "MODEL.MIT.VARIANT", "tiny"),
    "mask_query": (
        "mask2former_offseg_t",
        *("MODEL.EFFICIENTFORMER_V2.VARIANT", "tiny"),
        *("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 10),
        *("MODEL.MASK_FORMER.ENC_LAYERS", 1),
        *("MODEL.MASK_FORMER.DEC_LAYERS", 2),
        *("MODEL.MASK_FORMER.DIM_FEEDFORWARD", 32),
        *("MODEL.MASK_FORMER.ENC_DIM_FEEDFORWARD", 32),
    ),
    "mobilenet_v2": ("offseg_mobilenetv2",),
    "segnext": ("segnext_t", "MODEL.LIGHT_HAM.CHANNELS", 32),
    "swin": (
        "mask2former_swin_t",
        *("MODEL.MASK_FORMER.ENC_LAYERS", 1),
        *("MODEL.MASK_FORMER.DEC_LAYERS", 2),
    ),
}


@contextmanager
def tiny_variants() -> Iterator[None]:
    """Backbones of one block per stage, under the name "tiny"."""
    EFFICIENTFORMER_V2_VARIANTS["tiny"] = EfficientFormerV2Variant(
        widths=(8, 8, 16, 16), mlp_ratios=((1,),) * 4, num_attention_blocks=1
    )
    MIT_VARIANTS["tiny"] = MiTVariant(dims=(8, 16, 20, 16), depths=(1, 1, 1, 1))
    try:
        yield
    finally:
        del EFFICIENTFORMER_V2_VARIANTS["tiny"], MIT_VARIANTS["tiny"]


def tiny(name: str, *opts: object) -> tuple[nn.Module, CfgNode]:
    """A model of ``MODELS`` with weights that matter, in evaluation mode; and its configuration."""
    base, *own = MODELS[name]
    seed_all()
    with tiny_variants():
        cfg = offseg_config(*COMMON, *own, *opts, model=base)
        model = build_model(cfg).eval()
    # Without trained norms, its many multiplications overflow with other weights than its first.
    return model if name == "segnext" else spread_weights(model), cfg


def prepared(
    name: str, *opts: object, **options: object
) -> tuple[nn.Module, SegmentationGraph, ModelDescription]:
    """The model and what the writers of files take."""
    model, cfg = tiny(name, *opts)
    return model, *prepare_export(model, cfg, METADATA, **options)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth (height, width, 3) uint8 BGR image."""
    coarse = np.random.default_rng(seed).integers(0, 256, (1, 3, 4, 5)).astype(np.float32)
    smooth = torch.nn.functional.interpolate(
        torch.from_numpy(coarse), size=(height, width), mode="bilinear"
    )
    return smooth[0].permute(1, 2, 0).numpy().astype(np.uint8)


def sample(image: np.ndarray) -> dict[str, object]:
    """Model input for an image (H, W, 3) BGR that is not resized."""
    planes = torch.from_numpy(np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1)))
    return {"image": planes, "height": image.shape[0], "width": image.shape[1]}
