"""Pixel decoders: sizes of their maps, and what SegFormer's and SegNeXt's have of their own.

Those of OffSeg and Mask2Former have files of their own.
"""

from typing import Any

import pytest
import torch
from detectron2.layers import Conv2d, ShapeSpec
from torch import Tensor, nn
from torch.nn import functional as F

from offseg_d2.modeling import MSDeformAttnPixelDecoder, OffSegPixelDecoder
from offseg_d2.modeling.pixel_decoder import LightHamPixelDecoder, SegFormerPixelDecoder
from offseg_d2.modeling.pixel_decoder.level_fusion import LevelFusion
from tests.common import build_offseg, random_batch

SHAPES = {
    f"res{i + 2}": ShapeSpec(channels=c, stride=4 * 2**i) for i, c in enumerate((8, 16, 24, 32))
}


def pyramid(height: int, width: int) -> dict[str, Tensor]:
    """Levels of two images of ``height`` x ``width``, sizes rounded up."""
    return {
        name: torch.randn(2, s.channels, -(-height // s.stride), -(-width // s.stride))
        for name, s in SHAPES.items()
    }


WITHOUT_RES2 = {name: shape for name, shape in SHAPES.items() if name != "res2"}
DECODERS = {
    "SegFormer": (lambda: SegFormerPixelDecoder(SHAPES, out_channels=32, pool=False), 4),
    "SegFormer, pooled": (lambda: SegFormerPixelDecoder(SHAPES, out_channels=32, pool=True), 8),
    "SegNeXt": (lambda: LightHamPixelDecoder(WITHOUT_RES2, ham_channels=32, out_channels=32), 8),
    "Mask2Former": (lambda: MSDeformAttnPixelDecoder(SHAPES, out_channels=32, num_layers=1), 4),
    "OffSeg": (
        lambda: OffSegPixelDecoder(SHAPES, level_channels=(32,) * 4, out_channels=32),
        4,
    ),
}


@pytest.mark.parametrize("name", DECODERS)
def test_first_map_has_the_announced_stride_and_channels(name):
    make, stride = DECODERS[name]
    decoder = make().eval()
    assert (decoder.out_stride, decoder.out_channels) == (stride, 32)
    odd = [] if name == "OffSeg" else [(61, 93)]  # its levels must halve exactly
    for size in [(64, 64), *odd]:
        features = pyramid(*size)
        finest = features["res2"].shape[-2:]
        expected = [x // 2 for x in finest] if name == "SegFormer, pooled" else finest
        expected = features["res3"].shape[-2:] if name == "SegNeXt" else expected
        assert decoder(features)[0].shape == (2, 32, *expected)


# ------------------------------------------------------------------ SegFormer


def test_pooling_takes_the_largest_of_four():
    decoder = SegFormerPixelDecoder(SHAPES, out_channels=32, pool=True).eval()
    features = pyramid(64, 64)
    (pooled,) = decoder(features)
    decoder.pool = nn.Identity()
    (full,) = decoder(features)
    cells = full.unflatten(3, (8, 2)).unflatten(2, (8, 2))
    assert torch.equal(pooled, cells.amax(dim=(3, 5)))


def test_level_fusion_equals_convolving_the_concatenated_levels():
    fusion = LevelFusion([8, 16, 24], 32, nn.BatchNorm2d(32)).double()
    levels = [torch.randn(2, c, n, n + 1).double() for c, n in ((8, 13), (16, 7), (24, 4))]
    resized = [F.interpolate(x, size=(13, 14), mode="bilinear") for x in levels]
    expected = Conv2d.forward(fusion, torch.cat(resized, dim=1))
    torch.testing.assert_close(fusion(levels), expected)


@pytest.mark.parametrize(
    ("choice", "classifier", "stride"),
    [
        ("auto", "offset", 8),
        ("auto", "plain", 4),
        ("always", "plain", 8),
        ("never", "offset", 4),
    ],
)
def test_pooling_follows_classifier_and_key(choice, classifier, stride):
    opts = ["MODEL.SEM_SEG_HEAD.CLASSIFIER", classifier, "MODEL.SEGFORMER.POOL", choice]
    model = build_offseg(*opts, model="segformer_b0")
    assert model.sem_seg_head.pixel_decoder.out_stride == stride


# ------------------------------------------------------------------ SegNeXt


def test_config_sets_the_widths():
    model = build_offseg("MODEL.LIGHT_HAM.CHANNELS", 64, model="segnext_t")
    decoder = model.sem_seg_head.pixel_decoder
    assert decoder.hamburger.ham_in.weight.shape == (64, 64, 1, 1)
    assert decoder.align.weight.shape == (256, 64, 1, 1)
    assert decoder.squeeze.weight.shape == (64, 64 + 160 + 256, 1, 1)  # without res2


def test_random_bases_change_predictions_from_call_to_call():
    model = build_offseg("MODEL.LIGHT_HAM.RANDOM_BASES", True, model="segnext_t")
    batch = random_batch([(64, 96)])
    with torch.no_grad():
        first, second = model(batch)[0]["sem_seg"], model(batch)[0]["sem_seg"]
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("model", "key", "value", "rule"),
    [
        ("segformer_b0", "MODEL.SEGFORMER.POOL", "maybe", "must be one of .*'maybe'"),
        ("segnext_t", "MODEL.LIGHT_HAM.CHANNELS", 100, "must be a multiple of 32"),
    ],
)
def test_unusable_settings_are_refused(model: str, key: str, value: Any, rule: str):
    with pytest.raises(ValueError, match=f"`{key}` {rule}"):
        build_offseg(key, value, model=model)
