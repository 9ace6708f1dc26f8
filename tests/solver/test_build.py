"""Optimizer, schedule and gradient clipping from the configuration."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from offseg_d2.config import load_config
from offseg_d2.modeling import OffsetClassifier, PlainClassifier
from offseg_d2.solver import (
    WarmupPolyLR,
    build_gradient_clipper,
    build_lr_scheduler,
    build_optimizer,
)

ROOT = Path(__file__).resolve().parents[2]


def make_cfg(*options):
    cfg = load_config("", ["MODEL.DEVICE", "cpu"])
    cfg.merge_from_list(["SOLVER.LR_SCHEDULER_NAME", "WarmupPoly", *options])
    return cfg


def make_model() -> nn.Module:
    model = nn.Module()
    model.backbone = nn.ModuleDict({"norm": nn.BatchNorm2d(2)})
    model.sem_seg_head = nn.Linear(2, 2)
    return model


def parameters_with_gradients() -> list[nn.Parameter]:
    first, second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    first.grad, second.grad = torch.tensor([3.0, 0.0]), torch.tensor([-4.0])
    return [first, second]


def test_clipping_is_off_by_default():
    assert build_gradient_clipper(make_cfg()) is None


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("full_model", ([0.6, 0.0], [-0.8])),  # the joint norm 5 becomes 1
        ("norm", ([1.0, 0.0], [-1.0])),  # each tensor's own norm becomes 1
        ("value", ([1.0, 0.0], [-1.0])),
    ],
)
def test_gradients_are_clipped_as_the_type_says(kind, expected):
    clip = "SOLVER.CLIP_GRADIENTS"
    cfg = make_cfg(f"{clip}.ENABLED", True, f"{clip}.CLIP_TYPE", kind, f"{clip}.CLIP_VALUE", 1.0)
    parameters = parameters_with_gradients()
    norm = build_gradient_clipper(cfg)(iter(parameters))
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, torch.tensor(gradient), rtol=0, atol=1e-5)
    if kind == "full_model":
        assert float(norm) == pytest.approx(5.0)


def test_gradients_below_the_limit_are_left_alone():
    clip = "SOLVER.CLIP_GRADIENTS"
    cfg = make_cfg(
        f"{clip}.ENABLED", True, f"{clip}.CLIP_TYPE", "full_model", f"{clip}.CLIP_VALUE", 100.0
    )
    parameters = parameters_with_gradients()
    build_gradient_clipper(cfg)(parameters)
    assert parameters[0].grad.tolist() == [3.0, 0.0]


@pytest.mark.parametrize(
    ("options", "key"),
    [
        (["SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "total"], "SOLVER.CLIP_GRADIENTS.CLIP_TYPE"),
        (["SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.0], "SOLVER.CLIP_GRADIENTS.CLIP_VALUE"),
    ],
)
def test_impossible_clipping_is_refused_naming_the_key(options, key):
    cfg = make_cfg("SOLVER.CLIP_GRADIENTS.ENABLED", True, *options)
    with pytest.raises(ValueError, match=f"`{key}` must be"):
        build_gradient_clipper(cfg)


def test_unknown_optimizer_is_refused_naming_the_known_ones():
    cfg = make_cfg("SOLVER.OPTIMIZER", "SGD", "MODEL.BACKBONE.NAME", "other")
    with pytest.raises(ValueError, match=r"`SOLVER.OPTIMIZER` must be one of \['ADAMW'\].*'SGD'"):
        build_optimizer(cfg, make_model())


def test_scheduler_takes_its_numbers_from_the_configuration():
    cfg = make_cfg("MODEL.BACKBONE.NAME", "other", "SOLVER.BASE_LR", 1.0)
    cfg.merge_from_list(["SOLVER.MAX_ITER", 11, "SOLVER.WARMUP_ITERS", 0])
    cfg.merge_from_list(["SOLVER.HEAD_LR_FACTOR", 1.0])
    cfg.merge_from_list(["SOLVER.POLY_END_ITER", 5, "SOLVER.POLY_LR_POWER", 2.0])
    optimizer = build_optimizer(cfg, make_model())
    scheduler = build_lr_scheduler(cfg, optimizer)
    assert isinstance(scheduler, WarmupPolyLR)
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == [1.0, 0.75**2, 0.5**2, 0.25**2, 0.0, 0.0]


def test_schedulers_of_detectron2_stay_available():
    cfg = make_cfg("MODEL.BACKBONE.NAME", "other", "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR")
    scheduler = build_lr_scheduler(cfg, build_optimizer(cfg, make_model()))
    assert not isinstance(scheduler, WarmupPolyLR)


class OffsetHead(nn.Module):
    def __init__(self, *, offsets=True):
        super().__init__()
        self.backbone = nn.ModuleDict({"norm": nn.BatchNorm2d(2)})
        kind = OffsetClassifier if offsets else PlainClassifier
        self.sem_seg_head = nn.ModuleDict({"classifier": kind(4, 3)})


def rates_of(cfg, model):
    return {group["name"]: group["lr"] for group in build_optimizer(cfg, model).param_groups}


def test_projections_of_the_offsets_learn_at_their_factor_of_the_heads_rate():
    options = ["MODEL.BACKBONE.NAME", "other", "SOLVER.BASE_LR", 1.0]
    model = OffsetHead()
    assert "offsets" not in rates_of(make_cfg(*options), model)  # the authors' groups
    cfg = make_cfg(*options, "SOLVER.HEAD_LR_FACTOR", 10.0, "SOLVER.OFFSET_LR_FACTOR", 0.05)
    rates = rates_of(cfg, model)
    assert (rates["head"], rates["offsets"]) == pytest.approx((10.0, 0.5))
    optimizer = build_optimizer(cfg, model)
    group = next(g for g in optimizer.param_groups if g["name"] == "offsets")
    learning = model.sem_seg_head["classifier"].offset_learning
    assert {id(p) for p in group["params"]} == {id(p) for p in learning.parameters()}
    # The switch to the plain classifier needs no other configuration.
    assert "offsets" not in rates_of(cfg, OffsetHead(offsets=False))


def test_offsets_of_mask_query_models_have_their_factor_of_the_base_rate():
    config = str(ROOT / "configs/base/models/mask2former_offseg_t.yaml")
    options = ["MODEL.DEVICE", "cpu", "SOLVER.PARAM_GROUPS", "mask_query", "SOLVER.BASE_LR", 1.0]
    cfg = load_config(config, [*options, "SOLVER.OFFSET_LR_FACTOR", 0.25])
    assert rates_of(cfg, build_model(cfg))["offsets"] == pytest.approx(0.25)


def test_negative_factor_of_the_offsets_is_refused():
    cfg = make_cfg("MODEL.BACKBONE.NAME", "other", "SOLVER.OFFSET_LR_FACTOR", -1.0)
    with pytest.raises(ValueError, match=r"`SOLVER\.OFFSET_LR_FACTOR` must be at least 0"):
        build_optimizer(cfg, OffsetHead())
