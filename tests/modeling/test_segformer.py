"""The SegFormer host: pixel decoder, and the whole model from its configuration."""

from pathlib import Path

import pytest
import torch
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import build_model
from torch import nn
from torch.nn import functional as F

import offseg_d2.modeling  # noqa: F401  (registers the models)
from offseg_d2.config import load_config
from offseg_d2.modeling.pixel_decoder import SegFormerPixelDecoder
from offseg_d2.modeling.pixel_decoder.level_fusion import LevelFusion

CONFIG = str(Path(__file__).parents[2] / "configs/base/models/segformer_b0.yaml")
SHAPES = {
    f"res{i + 2}": ShapeSpec(channels=c, stride=4 * 2**i) for i, c in enumerate((8, 16, 24, 32))
}


def pyramid(height: int, width: int, batch: int = 2) -> dict[str, torch.Tensor]:
    """Levels of an image of ``height`` x ``width``, sizes rounded up."""
    return {
        name: torch.randn(batch, s.channels, -(-height // s.stride), -(-width // s.stride))
        for name, s in SHAPES.items()
    }


def build(*opts: object) -> nn.Module:
    return build_model(load_config(CONFIG, ["MODEL.DEVICE", "cpu", *opts]))


@pytest.mark.parametrize("size", [(64, 64), (61, 93)])
@pytest.mark.parametrize("pool", [False, True])
def test_result_is_at_the_announced_stride(size, pool):
    decoder = SegFormerPixelDecoder(SHAPES, out_channels=32, pool=pool).eval()
    features = pyramid(*size)
    (result,) = decoder(features)
    finest = features["res2"].shape[-2:]
    assert decoder.out_stride == (8 if pool else 4)
    assert result.shape == (2, 32, *((x // 2 if pool else x) for x in finest))


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


def test_gradients_reach_every_parameter():
    decoder = SegFormerPixelDecoder(SHAPES, out_channels=32).train()
    decoder(pyramid(64, 64))[0].square().sum().backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


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
    assert build(*opts).sem_seg_head.pixel_decoder.out_stride == stride


def test_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match=r"`MODEL.SEGFORMER.POOL` must be one of .*'maybe'"):
        build("MODEL.SEGFORMER.POOL", "maybe")


def test_plain_and_offset_models_differ_only_in_the_classifier():
    def rest(classifier: str) -> dict[str, torch.Size]:
        state = build("MODEL.SEM_SEG_HEAD.CLASSIFIER", classifier).state_dict()
        return {k: v.shape for k, v in state.items() if ".classifier." not in k}

    assert rest("plain") == rest("offset")


@pytest.mark.parametrize("classifier", ["plain", "offset"])
def test_model_trains_and_predicts_at_the_size_asked_for(classifier):
    model = build("MODEL.SEM_SEG_HEAD.CLASSIFIER", classifier, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 5)
    image = torch.randint(0, 256, (3, 64, 80)).byte()
    batch = [{"image": image, "sem_seg": torch.randint(0, 5, (64, 80))} for _ in range(2)]
    model.train()(batch)["loss_sem_seg"].backward()
    assert all(p.grad is not None for p in model.parameters())
    with torch.no_grad():
        result = model.eval()([{"image": image, "height": 50, "width": 70}])[0]["sem_seg"]
    assert result.shape == (5, 50, 70) and result.isfinite().all()
