"""The adapter of Detectron2's Swin Transformer: the same network, our levels and sizes."""

import sys

import pytest
import torch
from detectron2.modeling.backbone.swin import SwinTransformer

from offseg_d2.layers import DropPath
from offseg_d2.modeling import Swin
from tests.common import offseg_config, spread_weights


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


def test_stochastic_depth_needs_no_timm(monkeypatch):
    for name in ("timm", "timm.models", "timm.models.layers", "timm.layers"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    with torch.device("meta"):
        network = Swin(variant="t")
    assert sum(isinstance(module, DropPath) for module in network.modules()) == 11


def test_configuration_sets_the_size_of_the_windows():
    cfg = offseg_config("MODEL.SWIN.WINDOW_SIZE", 4, model="mask2former_swin_t")
    with torch.device("meta"):
        network = Swin(cfg, None)
    assert network.layers[0].blocks[0].window_size == 4
    assert network.size_divisibility == 32
    message = r"^`MODEL.SWIN.WINDOW_SIZE` must not be negative, but is -1\.$"
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        Swin(window_size=-1)
