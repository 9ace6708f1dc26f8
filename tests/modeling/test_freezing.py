"""Tests of `MODEL.BACKBONE.FREEZE_AT`: the stem, then the stages, of every backbone."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_backbone
from detectron2.modeling.backbone import Backbone
from torch import nn

from offseg_d2.config import load_config
from offseg_d2.engine import Trainer
from offseg_d2.modeling import build_model as build_offseg_model
from offseg_d2.modeling.backbone.freezing import FreezableBackbone
from offseg_d2.solver import build_optimizer
from tests.common import ROOT, random_batch

MODELS = {
    "EfficientFormerV2": "offseg_t",
    "MiT": "segformer_b0",
    "MSCAN": "segnext_t",
    "Swin": "mask2former_swin_t",
    "MobileNetV2": "offseg_mobilenetv2",
    "ResNet": "mask2former_r50",
}


def config(name, *changes):
    file = ROOT / "configs" / "base" / "models" / f"{MODELS[name]}.yaml"
    return load_config(str(file), ["MODEL.DEVICE", "cpu", "MODEL.BATCH_NORM", "BN", *changes])


def frozen(backbone):
    return {name for name, p in backbone.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize("name", MODELS)
def test_each_number_freezes_one_part_more(name):
    before = set()
    image = torch.rand(1, 3, 64, 64)
    for number in range(6):
        backbone = build_backbone(config(name, "MODEL.BACKBONE.FREEZE_AT", number)).train()
        now = frozen(backbone)
        assert now > before or (number == 0 and not now)
        outputs = backbone(image)
        levels = [f"res{level}" for level in range(2, 6)]
        # Levels of frozen stages depend on nothing that is trained, the others do.
        assert [outputs[x].requires_grad for x in levels] == [i >= number - 1 for i in range(4)]
        before = now


@pytest.mark.parametrize("name", [name for name in MODELS if name != "ResNet"])
def test_frozen_parts_stay_in_evaluation_mode(name):
    backbone = build_backbone(config(name, "MODEL.BACKBONE.FREEZE_AT", 2)).train()
    statistics = {k: v.clone() for k, v in backbone.state_dict().items() if "running" in k}
    backbone(torch.rand(2, 3, 64, 64))
    frozen_modules = [m for part in backbone.parts()[:2] for root in part for m in root.modules()]
    assert frozen_modules and not any(m.training for m in frozen_modules)
    assert backbone.training
    norms = {k for k, m in backbone.named_modules() if isinstance(m, nn.BatchNorm2d)}
    kept = {k for k, m in backbone.named_modules() if k in norms and not m.training}
    for key, value in statistics.items():
        assert torch.equal(value, backbone.state_dict()[key]) == (key.rpartition(".")[0] in kept)
    assert not any(m.training for m in backbone.eval().modules())


def test_frozen_parameters_are_not_trained():
    cfg = config("MobileNetV2", "MODEL.BACKBONE.FREEZE_AT", "3")
    model = Trainer.build_model(cfg).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = build_optimizer(cfg, model)
    batch = random_batch([(64, 64)] * 2)
    sum(model(batch).values()).backward()
    optimizer.step()
    moved = {
        name
        for name, value in model.backbone.named_parameters()
        if not torch.equal(value, before[f"backbone.{name}"])
    }
    assert moved and not moved & frozen(model.backbone)


@pytest.mark.parametrize("number", [-1, 6, 100])
@pytest.mark.parametrize("name", MODELS)
def test_impossible_numbers(name, number):
    cfg = config(name, "MODEL.BACKBONE.FREEZE_AT", str(number))
    with pytest.raises(ValueError, match=r"`MODEL.BACKBONE.FREEZE_AT` must be from 0 .* but is"):
        build_offseg_model(cfg)


class WithoutStages(Backbone):
    """A user's backbone that does not know the key."""

    def __init__(self, cfg, input_shape) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 3, 4, 1)

    def forward(self, image):
        x = self.layer(image)
        return {f"res{i + 2}": x[..., :: 2**i, :: 2**i] for i in range(4)}

    def output_shape(self):
        return {f"res{i + 2}": ShapeSpec(channels=8, stride=4 * 2**i) for i in range(4)}


def test_backbone_that_cannot_freeze():
    if "WithoutStages" not in BACKBONE_REGISTRY:
        BACKBONE_REGISTRY.register(WithoutStages)
    cfg = config("MiT", "MODEL.BACKBONE.NAME", "WithoutStages", "MODEL.BACKBONE.FREEZE_AT", "1")
    with pytest.raises(ValueError, match=r"`MODEL.BACKBONE.FREEZE_AT` must be 0 .*WithoutStages"):
        build_offseg_model(cfg)
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    assert not frozen(build_offseg_model(cfg).backbone)


def test_networks_of_timm():
    timm = pytest.importorskip("timm")
    for name in ("resnet18", "mobilenetv3_small_100", "convnext_atto"):
        assert timm.is_model(name)
        for number in (1, 2, 3, 5):
            cfg = config("MobileNetV2")
            cfg.defrost()
            cfg.MODEL.BACKBONE.NAME, cfg.MODEL.TIMM.NAME = "build_timm_backbone", name
            cfg.MODEL.BACKBONE.FREEZE_AT = number
            backbone = build_backbone(cfg).train()
            assert isinstance(backbone, FreezableBackbone)
            outputs = backbone(torch.rand(2, 3, 64, 64))
            levels = [outputs[f"res{level}"].requires_grad for level in range(2, 6)]
            assert levels == [i >= number - 1 for i in range(4)], (name, number)
