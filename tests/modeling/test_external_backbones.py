"""Backbones of timm and torchvision; those of timm by a stand-in, and for real where installed."""

import sys
import types

import pytest
import torch
from detectron2.modeling import build_backbone, build_model
from torch import nn
from torchvision.models import mobilenet_v2

from offseg_d2.config import load_config
from offseg_d2.modeling import TimmBackbone, TorchvisionMobileNetV2
from offseg_d2.solver import build_optimizer
from tests.common import ROOT, random_batch

NUM_CLASSES = 5


class FakePyramid(nn.Module):
    """Stand-in with the interface of timm's `features_only` networks."""

    def __init__(self, reductions, channels_last=False) -> None:
        super().__init__()
        self.reductions = reductions
        self.output_fmt = "NHWC" if channels_last else "NCHW"
        self.feature_info = types.SimpleNamespace(
            reduction=lambda: reductions, channels=lambda: [8 + i for i in range(len(reductions))]
        )
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, image):
        outputs = []
        for index, stride in enumerate(self.reductions):
            x = self.scale * image.mean(1, keepdim=True)[..., ::stride, ::stride]
            x = x.expand(-1, 8 + index, -1, -1)
            outputs.append(x.movedim(1, -1) if self.output_fmt == "NHWC" else x)
        return outputs


FAKES = {
    "plain": lambda: FakePyramid([2, 4, 8, 16, 32]),
    "doubled": lambda: FakePyramid([4, 4, 8, 16, 16, 32]),
    "channels_last": lambda: FakePyramid([4, 8, 16, 32], channels_last=True),
    "flat": lambda: FakePyramid([16, 16, 16]),
}


@pytest.fixture
def timm_calls(monkeypatch):
    """Puts a stand-in for timm and records how networks are asked for."""
    calls = []
    fake = types.ModuleType("timm")
    fake.is_model = lambda name: name in FAKES
    fake.list_models = lambda pattern: [n for n in FAKES if pattern.strip("*") in n]

    def create_model(name, **options):
        # The weights are read while the network is built, as timm does.
        overlay = options.get("pretrained_cfg_overlay", {}).get("state_dict", {})
        calls.append((name, options, dict(overlay)))
        return FAKES[name]()

    fake.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", fake)
    return calls


@pytest.mark.parametrize("name, indices", [("plain", [1, 2, 3, 4]), ("doubled", [1, 2, 4, 5])])
def test_levels_are_the_deepest_features_of_their_strides(timm_calls, name, indices):
    backbone = TimmBackbone(name)
    shapes = backbone.output_shape()
    assert [(k, s.stride, s.channels) for k, s in shapes.items()] == [
        (f"res{i + 2}", 4 * 2**i, 8 + index) for i, index in enumerate(indices)
    ]
    features = backbone(torch.randn(2, 3, 64, 96))
    for key, shape in shapes.items():
        assert features[key].shape == (2, shape.channels, 64 // shape.stride, 96 // shape.stride)


def test_channels_last_networks_give_the_same_layout(timm_calls):
    image = torch.randn(1, 3, 64, 96)
    last = TimmBackbone("channels_last")(image)
    assert last["res3"].shape == (1, 9, 8, 12)
    torch.testing.assert_close(last["res3"][0, 4], image.mean(1)[0, ::8, ::8])


def test_network_without_the_four_strides_is_refused(timm_calls):
    with pytest.raises(ValueError, match=r"strides \[4, 8, 16, 32\], but 'flat' has them at \[16"):
        TimmBackbone("flat")


def test_unknown_network_is_refused_with_similar_names(timm_calls):
    with pytest.raises(
        ValueError, match=r"must be a network of timm, but is 'last'.*channels_last"
    ):
        TimmBackbone("last")
    with pytest.raises(ValueError, match=r"`MODEL.TIMM.NAME` must be .* but is ''"):
        TimmBackbone("")


def test_absent_timm_is_one_sentence_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"needs the package timm: pip install timm\."):
        TimmBackbone("resnet18")


def test_config_keys_reach_timm(timm_calls, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": {"a.weight": torch.ones(2)}}, path)
    opts = ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "plain"]
    build_backbone(load_config("", [*opts, "MODEL.TIMM.PRETRAINED", "True"]))
    opts += ["MODEL.TIMM.CHECKPOINT", str(path), "MODEL.TIMM.IMAGE_SIZE", "[64, 96]"]
    backbone = build_backbone(load_config("", opts))
    assert backbone.size_divisibility == 32
    (_, first, _), (_, second, weights) = timm_calls
    assert first == {"pretrained": True, "features_only": True}
    assert second["pretrained"] and second["img_size"] == (64, 96)
    assert torch.equal(weights["a.weight"], torch.ones(2))
    with pytest.raises(ValueError, match=r"`MODEL.TIMM.PRETRAINED` must be False"):
        build_backbone(load_config("", [*opts, "MODEL.TIMM.PRETRAINED", "True"]))


def test_mobilenet_levels_are_the_last_layers_of_their_strides():
    backbone = TorchvisionMobileNetV2().eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        features = backbone(image)
        sizes, x = {}, image
        for index, layer in enumerate(backbone.features):
            x = layer(x)
            sizes[64 // x.shape[2]] = (index, x)
    for name, shape in backbone.output_shape().items():
        expected = sizes[shape.stride][1]
        assert expected.shape[1] == shape.channels
        assert torch.equal(features[name], expected), name


def test_mobilenet_is_torchvisions_without_the_classifier():
    whole = mobilenet_v2().eval()
    backbone = TorchvisionMobileNetV2().eval()
    backbone.features.load_state_dict(whole.features.state_dict())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        pooled = backbone(image)["res5"].mean((2, 3))
        torch.testing.assert_close(whole.classifier(pooled), whole(image))


@pytest.mark.parametrize("classifier", ["offset", "plain"])
def test_offseg_trains_on_mobilenet_by_config_alone(classifier):
    opts = ["MODEL.DEVICE", "cpu", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", NUM_CLASSES]
    opts += ["MODEL.SEM_SEG_HEAD.CLASSIFIER", classifier]
    cfg = load_config(str(ROOT / "configs/base/models/offseg_mobilenetv2.yaml"), opts)
    model = build_model(cfg).train()
    build_optimizer(cfg, model)  # its rules must fit the names
    # 90 x 61 is no multiple of 32: the padding is the model's.
    model(random_batch([(90, 61)] * 2, NUM_CLASSES))["loss_sem_seg"].backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert not without
    with torch.no_grad():
        assert model.eval()(random_batch([(90, 61)]))[0]["sem_seg"].shape == (NUM_CLASSES, 90, 61)


# One of each kind that timm has: plain list, wrapped, hooks, channels last, fixed input size.
TIMM_NETWORKS = {
    "resnet18": [],
    "convnextv2_atto": [],
    "tf_efficientnet_b0": [],
    "mobilenetv3_small_050": [],
    "hrnet_w18_small": [],
    "mambaout_femto": [],
    "swin_tiny_patch4_window7_224": [64, 96],
    "efficientformerv2_s0": [64, 96],
}


@pytest.mark.peers
@pytest.mark.parametrize("name", sorted(TIMM_NETWORKS))
def test_networks_of_timm_train_under_the_offseg_decoder(name):
    pytest.importorskip("timm")
    opts = ["MODEL.DEVICE", "cpu", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", NUM_CLASSES]
    opts += ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", name]
    opts += ["MODEL.TIMM.IMAGE_SIZE", TIMM_NETWORKS[name]]
    cfg = load_config(str(ROOT / "configs/base/models/offseg_mobilenetv2.yaml"), opts)
    model = build_model(cfg).train()
    build_optimizer(cfg, model)
    model(random_batch([(64, 96)] * 2, NUM_CLASSES))["loss_sem_seg"].backward()
    gradients = [p.grad for p in model.backbone.parameters() if p.grad is not None]
    assert sum(g.abs().sum().item() for g in gradients) > 0


@pytest.mark.peers
def test_checkpoint_of_timm_fills_the_network(tmp_path):
    timm = pytest.importorskip("timm")
    source = timm.create_model("resnet18")
    torch.save(source.state_dict(), tmp_path / "resnet18.pth")
    backbone = TimmBackbone("resnet18", checkpoint=str(tmp_path / "resnet18.pth"))
    ours = backbone.network.state_dict()
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in ours.items())
