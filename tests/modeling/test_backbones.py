"""Tests of all backbones: sizes, counts, gradients, repeatability, configuration."""

import math

import pytest
import torch
from detectron2.modeling import Backbone, build_backbone
from torch import nn

from offseg_d2.config import load_config
from offseg_d2.layers import DropPath
from offseg_d2.modeling import EfficientFormerV2, MiT, Swin, TorchvisionMobileNetV2
from offseg_d2.modeling.backbone import (
    EFFICIENTFORMER_V2_VARIANTS,
    MIT_VARIANTS,
    MSCAN,
    MSCAN_VARIANTS,
    SWIN_VARIANTS,
)
from tests.common import assert_close, spread_norms

LARGE = (64, 128, 320, 512)
# Family -> variant -> channels of the levels, parameters as published (None: not published),
# without the ImageNet classifier. Swin has a norm on each level here.
VARIANTS = {
    "EfficientFormerV2": {
        "s0": ((32, 48, 96, 176), 3_259_152),
        "s1": ((32, 48, 120, 224), 5_748_360),
        "s2": ((32, 64, 144, 288), 12_151_408),
        "l": ((40, 80, 192, 384), 25_578_016),
    },
    "MiT": {
        "b0": ((32, 64, 160, 256), 3_319_392),
        "b1": (LARGE, 13_151_424),
        "b2": (LARGE, 24_196_288),
        "b3": (LARGE, 44_072_128),
        "b4": (LARGE, 60_842_688),
        "b5": (LARGE, 81_443_008),
    },
    "MSCAN": {
        "t": ((32, 64, 160, 256), 3_903_584),
        "s": (LARGE, 13_450_176),
        "b": (LARGE, 26_277_824),
        "l": (LARGE, None),
    },
    "Swin": {
        "t": ((96, 192, 384, 768), 28_288_354 - 769_000 + 1344),
        "s": ((96, 192, 384, 768), 49_606_258 - 769_000 + 1344),
        "b": ((128, 256, 512, 1024), 87_903_584 - 1_025_000 + 1792),
        "l": ((192, 384, 768, 1536), 196_735_516 - 1_537_000 + 2688),
    },
}
CLASSES = {"EfficientFormerV2": EfficientFormerV2, "MiT": MiT, "MSCAN": MSCAN, "Swin": Swin}
TABLES = {
    "EfficientFormerV2": EFFICIENTFORMER_V2_VARIANTS,
    "MiT": MIT_VARIANTS,
    "MSCAN": MSCAN_VARIANTS,
    "Swin": SWIN_VARIANTS,
}
SECTIONS = {"EfficientFormerV2": "EFFICIENTFORMER_V2"}  # of the configuration, else the name
ALL = [(family, variant) for family, variants in VARIANTS.items() for variant in variants]
FAMILIES = [*VARIANTS, "MobileNetV2"]
# Added to all keys of a softmax alike, these change nothing.
WITHOUT_INFLUENCE = (".k.conv.bias", ".k.bn.bias", "talking_head1.bias")


def smallest(family: str) -> Backbone:
    if family == "MobileNetV2":
        return TorchvisionMobileNetV2()
    return CLASSES[family](variant=next(iter(VARIANTS[family])))


def sound(family: str) -> Backbone:
    """The smallest variant in float64 and evaluation mode, its weights off their first values."""
    if family == "MSCAN":  # its many products overflow with other weights than its first
        return smallest(family).double().eval()
    return spread_norms(smallest(family))


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def test_every_variant_is_tested():
    assert {f: set(t) for f, t in TABLES.items()} == {f: set(v) for f, v in VARIANTS.items()}


LARGE_SWIN = (("Swin", "b"), ("Swin", "l"))  # some seconds even without memory


@pytest.mark.parametrize(
    ("family", "variant"),
    [pytest.param(*x, marks=[pytest.mark.slow] if x in LARGE_SWIN else []) for x in ALL],
)
def test_variant_has_the_published_widths_and_number_of_parameters(family, variant):
    channels, parameters = VARIANTS[family][variant]
    with torch.device("meta"):
        backbone = CLASSES[family](variant=variant)
    shapes = backbone.output_shape()
    assert [(s.channels, s.stride) for s in shapes.values()] == list(
        zip(channels, (4, 8, 16, 32), strict=True)
    )
    assert list(shapes) == ["res2", "res3", "res4", "res5"]
    assert parameters in (None, sum(p.numel() for p in backbone.parameters()))


@pytest.mark.parametrize(("family", "variant"), [x for x in ALL if x[0] != "Swin"])
def test_features_of_every_variant_have_its_output_shape(family, variant):
    # Attention in float32 needs a device that autocast knows.
    with torch.device("cpu" if family == "EfficientFormerV2" else "meta"), torch.no_grad():
        features = CLASSES[family](variant=variant).eval()(torch.zeros(1, 3, 32, 64))
    widths = VARIANTS[family][variant][0]
    shapes = [(1, width, 8 >> i, 16 >> i) for i, width in enumerate(widths)]
    assert [tuple(x.shape) for x in features.values()] == shapes


SIZES = {
    "EfficientFormerV2": [(32, 32), (93, 93), (160, 32)],
    "MiT": [(29, 29)],
    "MSCAN": [(5, 7)],
    "Swin": [(29, 40)],
    "MobileNetV2": [(29, 40)],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_levels_are_ceiled_halvings_whatever_the_size(family):
    backbone = smallest(family).eval()
    odd = [] if family == "EfficientFormerV2" else [(61, 93)]
    for size in [(64, 96), *odd, *SIZES[family]]:
        with torch.no_grad():
            features = backbone(torch.randn(1, 3, *size))
        assert list(features) == list(backbone.output_shape())
        for name, shape in backbone.output_shape().items():
            expected = tuple(math.ceil(x / shape.stride) for x in size)
            assert features[name].shape == (1, shape.channels, *expected), (name, size)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_every_parameter_that_can_matter(family):
    backbone = sound(family)  # batch norms in evaluation: biases before them matter
    features = backbone(images(1, 3, 64, 64))
    sum((x * torch.randn_like(x)).sum() for x in features.values()).backward()
    largest = max(p.grad.norm() for p in backbone.parameters() if p.grad is not None)
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name
        relative = parameter.grad.norm() / largest
        is_inert = name.endswith(WITHOUT_INFLUENCE)
        assert relative < 1e-13 if is_inert else relative > 1e-13, (name, relative)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_from_fresh_weights_reaches_all_parameters_and_statistics(family):
    backbone = smallest(family).train()
    before = {n: b.clone() for n, b in backbone.named_buffers() if "running_mean" in n}
    features = backbone(torch.randn(2, 3, 64, 64))
    sum(x.square().sum() for x in features.values()).backward()
    assert not [n for n, p in backbone.named_parameters() if p.grad is None]
    after = dict(backbone.named_buffers())
    assert not [n for n, value in before.items() if torch.equal(value, after[n])]


@pytest.mark.parametrize("family", FAMILIES)
def test_evaluation_is_repeatable_and_an_image_does_not_depend_on_its_batch(family):
    backbone, batch = sound(family), images(3, 3, 64, 32)
    with torch.no_grad():
        together, again, alone = backbone(batch), backbone(batch), backbone(batch[1:2])
    for name, level in together.items():
        assert torch.equal(again[name], level)
        assert_close(level[1:2], alone[name], 1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_autocast_stays_close_to_float32(family, dtype):
    backbone = sound(family).float()
    batch = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = backbone(batch)["res5"]
        with torch.autocast("cpu", dtype):
            actual = backbone(batch)["res5"]
    assert (actual.float() - expected).abs().mean() < 0.05 * expected.abs().mean()


def drop_path_rates(backbone: nn.Module) -> list[float]:
    return [m.rate for m in backbone.modules() if isinstance(m, DropPath)]


@pytest.mark.parametrize(
    ("family", "variant", "largest", "blocks"),
    [
        ("EfficientFormerV2", "s1", 0.0, 21),
        ("EfficientFormerV2", "s2", 0.02, 28),
        ("EfficientFormerV2", "l", 0.1, 35),
        ("MiT", "b0", 0.1, 8),
        ("MSCAN", "t", 0.1, 13),
        ("MSCAN", "l", 0.3, 38),
        ("Swin", "t", 0.3, 12),
    ],
)
def test_drop_path_grows_linearly_over_all_blocks(family, variant, largest, blocks):
    with torch.device("meta"):
        rates = drop_path_rates(CLASSES[family](variant=variant))
    expected = [largest * i / (blocks - 1) for i in range(blocks)]
    # The first block of Swin has none instead of one of rate 0.
    assert rates == pytest.approx(expected[1:] if family == "Swin" else expected)


@pytest.mark.parametrize(
    ("family", "variant", "largest"),
    [
        ("EfficientFormerV2", "s2", 0.02),
        ("MiT", "b1", 0.1),
        ("MSCAN", "s", 0.1),
        ("Swin", "s", 0.3),
    ],
)
def test_configuration_chooses_variant_and_drop_path(family, variant, largest):
    section = f"MODEL.{SECTIONS.get(family, family.upper())}"
    opts = ["MODEL.BACKBONE.NAME", family, f"{section}.VARIANT", variant, "MODEL.DEVICE", "meta"]
    with torch.device("meta"):
        own = build_backbone(load_config("", opts))
        given = build_backbone(load_config("", [*opts, f"{section}.DROP_PATH_RATE", "0.2"]))
    assert max(drop_path_rates(own)) == pytest.approx(largest)
    assert max(drop_path_rates(given)) == pytest.approx(0.2)
    assert [s.channels for s in own.output_shape().values()] == list(VARIANTS[family][variant][0])


@pytest.mark.parametrize("family", sorted(VARIANTS))
def test_unknown_variant_and_rate_are_refused(family):
    section, known = SECTIONS.get(family, family.upper()), sorted(VARIANTS[family])
    message = rf"^`MODEL.{section}.VARIANT` must be one of \[.*{known[0]}.*\], but is 'x'\.$"
    with pytest.raises(ValueError, match=message):
        CLASSES[family](variant="x")
    with pytest.raises(ValueError, match=r"must be in \[0, 1\), but is 1"), torch.device("meta"):
        CLASSES[family](variant=next(iter(VARIANTS[family])), drop_path_rate=1.0)
