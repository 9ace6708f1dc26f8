"""The adapter of Detectron2's Swin Transformer: the same network, our levels and sizes."""

import sys

import pytest
import torch
from detectron2.modeling.backbone.swin import SwinTransformer

from offseg_d2.layers import DropPath
from offseg_d2.modeling import Swin
from offseg_d2.modeling.backbone.swin import SWIN_VARIANTS, SwinVariant
from tests.common import offseg_config, spread_weights

# Of the published networks: whole, the classifier of 1000 classes (and its norm of the last level).
PUBLISHED = {"t": 28_288_354, "s": 49_606_258, "b": 87_903_584, "l": 196_735_516}


def test_features_are_those_of_detectron2s_network_under_our_names():
    ours = spread_weights(Swin(variant="t")).eval()
    theirs = SwinTransformer(drop_path_rate=0.0).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        features, expected = ours(image), theirs(image)
    assert list(features) == ["res2", "res3", "res4", "res5"]
    for i, (name, feature) in enumerate(features.items()):
        assert torch.equal(feature, expected[f"p{i}"])
        spec = ours.output_shape()[name]
        assert feature.shape == (1, spec.channels, 64 // spec.stride, 96 // spec.stride)


def number_of_parameters(variant: SwinVariant) -> int:
    """Of the backbone with a norm on each level, from the sizes in the table."""
    dims = [variant.dim * 2**i for i in range(4)]
    count = 16 * 3 * dims[0] + 3 * dims[0]  # patches, their bias and norm
    biases = (2 * variant.window_size - 1) ** 2
    for dim, depth, heads in zip(dims, variant.depths, variant.num_heads, strict=True):
        count += depth * (12 * dim**2 + 13 * dim + biases * heads) + 2 * dim
    return count + sum(8 * dim**2 + 8 * dim for dim in dims[:3])  # patch merging


@pytest.mark.parametrize("name", sorted(SWIN_VARIANTS))
def test_sizes_are_those_of_the_published_networks(name):
    variant = SWIN_VARIANTS[name]
    norms = sum(2 * variant.dim * 2**i for i in range(3))  # of the levels that no classifier reads
    classifier = 1000 * 8 * variant.dim + 1000
    assert number_of_parameters(variant) - norms + classifier == PUBLISHED[name]


def test_network_has_the_parameters_of_its_variant():
    with torch.device("meta"):
        network = Swin(variant="t")
    assert all(p.is_meta for p in network.parameters())
    count = sum(p.numel() for p in network.parameters())
    assert count == number_of_parameters(SWIN_VARIANTS["t"]) == 27_520_698


def test_stochastic_depth_grows_to_the_rate_without_timm(monkeypatch):
    for name in ("timm", "timm.models", "timm.models.layers", "timm.layers"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    with torch.device("meta"):
        network = Swin(variant="t")
    rates = [m.rate for m in network.modules() if isinstance(m, DropPath)]
    assert len(rates) == 11 and rates == sorted(rates)  # the first block has none
    assert rates[-1] == pytest.approx(0.3)


def test_configuration_reaches_the_network():
    opts = ("MODEL.SWIN.VARIANT", "s", "MODEL.SWIN.WINDOW_SIZE", 4)
    cfg = offseg_config(*opts, "MODEL.SWIN.DROP_PATH_RATE", 0.1, model="mask2former_swin_t")
    with torch.device("meta"):
        network = Swin(cfg, None)
    assert len(network.layers[2].blocks) == 18
    assert network.layers[0].blocks[0].window_size == 4
    rates = [m.rate for m in network.modules() if isinstance(m, DropPath)]
    assert max(rates) == pytest.approx(0.1)
    assert network.size_divisibility == 32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"variant": "x"},
            r"^`MODEL.SWIN.VARIANT` must be one of \['b', 'l', 's', 't'\], but is 'x'\.$",
        ),
        ({"window_size": -1}, r"^`MODEL.SWIN.WINDOW_SIZE` must not be negative, but is -1\.$"),
        ({"drop_path_rate": 1.0}, r"must be in \[0, 1\), but is 1\.0\.$"),
    ],
)
def test_unusable_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        Swin(**settings)
