"""The SegNeXt host: pixel decoder, and the whole model from its configuration."""

from pathlib import Path

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from torch import nn

import offseg_d2.modeling  # noqa: F401  (registers the models)
from offseg_d2.config import load_config
from offseg_d2.modeling.pixel_decoder import LightHamPixelDecoder

CONFIG = str(Path(__file__).parents[2] / "configs/base/models/segnext_t.yaml")
SHAPES = {f"res{i + 3}": ShapeSpec(channels=c, stride=8 * 2**i) for i, c in enumerate((16, 24, 32))}


def pyramid(height: int, width: int, batch: int = 2) -> dict[str, torch.Tensor]:
    """Levels of an image of ``height`` x ``width``, sizes rounded up."""
    return {
        name: torch.randn(batch, s.channels, -(-height // s.stride), -(-width // s.stride))
        for name, s in SHAPES.items()
    }


def build(*opts: object) -> nn.Module:
    return build_model(load_config(CONFIG, ["MODEL.DEVICE", "cpu", *opts]))


def predict(model: nn.Module, images: list[torch.Tensor]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [x["sem_seg"] for x in model.eval()([{"image": image} for image in images])]


@pytest.mark.parametrize("size", [(64, 64), (61, 93)])
def test_result_is_at_the_announced_stride(size):
    decoder = LightHamPixelDecoder(SHAPES, ham_channels=32, out_channels=64).eval()
    features = pyramid(*size)
    (result,) = decoder(features)
    assert decoder.out_stride == 8
    assert result.shape == (2, 64, *features["res3"].shape[-2:])


def test_gradients_reach_every_parameter():
    decoder = LightHamPixelDecoder(SHAPES, ham_channels=32, out_channels=64).train()
    decoder(pyramid(64, 64))[0].square().sum().backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_channels_that_do_not_fit_the_norm_are_refused():
    with pytest.raises(ValueError, match=r"`MODEL.LIGHT_HAM.CHANNELS` must be a multiple of 32"):
        build("MODEL.LIGHT_HAM.CHANNELS", 100)


def test_config_sets_the_widths():
    decoder = build("MODEL.LIGHT_HAM.CHANNELS", 64).sem_seg_head.pixel_decoder
    assert decoder.hamburger.ham_in.weight.shape == (64, 64, 1, 1)
    assert decoder.align.weight.shape == (256, 64, 1, 1)
    assert decoder.squeeze.weight.shape == (64, 64 + 160 + 256, 1, 1)  # without res2


def test_evaluation_repeats_to_the_bit():
    image = torch.randint(0, 256, (3, 64, 96)).byte()
    model = build()
    torch.manual_seed(1)
    (first,) = predict(model, [image])
    torch.manual_seed(2)
    (second,) = predict(model, [image])
    assert torch.equal(first, second)


def test_prediction_of_an_image_does_not_depend_on_its_batch():
    images = [torch.randint(0, 256, (3, 64, 96)).byte() for _ in range(2)]
    model = build()
    together = predict(model, images)
    (alone,) = predict(model, images[1:])
    # Logits of unit variance after many layers: rounding only.
    torch.testing.assert_close(alone, together[1], rtol=1e-4, atol=1e-4)


def test_random_bases_change_predictions_from_call_to_call():
    image = torch.randint(0, 256, (3, 64, 96)).byte()
    model = build("MODEL.LIGHT_HAM.RANDOM_BASES", True)
    (first,), (second,) = predict(model, [image]), predict(model, [image])
    assert not torch.equal(first, second)


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
