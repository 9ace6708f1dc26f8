"""The table of parameter groups: its rules, and the groups of the authors' training runs."""

import json
from pathlib import Path

import pytest
from detectron2.modeling import build_model
from torch import nn

import offseg_d2.modeling  # noqa: F401  (registers the models)
from offseg_d2.checkpoint.key_tables import KEY_MAPS
from offseg_d2.config import load_config
from offseg_d2.solver import (
    ParamGroupRule,
    assign_rules,
    build_optimizer,
    build_param_groups,
    rules_for_backbone,
)

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = json.loads((ROOT / "tests/golden/param_groups.json").read_text())


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"conv": nn.Conv2d(1, 2, 1), "norm": nn.BatchNorm2d(2)})
        self.sem_seg_head = nn.ModuleDict({"conv": nn.Conv2d(2, 3, 1), "norm": nn.GroupNorm(1, 3)})


RULES = (
    ParamGroupRule("head", r"sem_seg_head\..+", lr_factor=10.0),
    ParamGroupRule("norms", r".+\.norm\.(weight|bias)", weight_decay=0.0),
)


def groups_of(model: nn.Module, rules=RULES) -> dict[str, dict]:
    groups = build_param_groups(model, rules, base_lr=0.1, weight_decay=0.5)
    return {group["name"]: group for group in groups}


def test_every_parameter_is_in_exactly_one_group():
    model = Tiny()
    grouped = [id(p) for group in groups_of(model).values() for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


def test_first_matching_rule_decides_alone():
    assigned = assign_rules(["sem_seg_head.norm.weight", "backbone.norm.bias"], RULES)
    assert assigned["sem_seg_head.norm.weight"].name == "head"
    assert assigned["backbone.norm.bias"].name == "norms"


def test_pattern_must_match_the_whole_name():
    names = ["xsem_seg_head.conv.weight", "sem_seg_head.a", "b.norm.weight", "b.norm.weight.x"]
    assigned = assign_rules(names, RULES)
    assert [name for name in names if assigned[name] is None] == [names[0], names[3]]


def test_rates_and_decays_are_those_of_the_rules():
    values = {name: (g["lr"], g["weight_decay"]) for name, g in groups_of(Tiny()).items()}
    assert values == {"base": (0.1, 0.5), "head": (1.0, 0.5), "norms": (0.1, 0.0)}


def test_rule_that_decides_for_nothing_is_an_error_unless_it_is_optional():
    misspelt = ParamGroupRule("talking", r"backbone\.talkin_head\..+")
    shadowed = ParamGroupRule("late", r"sem_seg_head\.conv\..+")
    for rule in (misspelt, shadowed):
        with pytest.raises(ValueError, match=f"'{rule.name}' must decide for at least one"):
            groups_of(Tiny(), (*RULES, rule))
    optional = ParamGroupRule("talking", r"backbone\.talkin_head\..+", optional=True)
    assert "talking" not in groups_of(Tiny(), (*RULES, optional))


def test_frozen_parameters_are_in_no_group_but_satisfy_their_rule():
    model = Tiny()
    model.sem_seg_head.requires_grad_(False)
    assert set(groups_of(model)) == {"base", "norms"}


def test_factor_of_an_unknown_key_is_refused():
    rule = ParamGroupRule("head", r"sem_seg_head\..+", lr_factor="HEAD_FACTOR")
    with pytest.raises(ValueError, match="'HEAD_FACTOR'"):
        groups_of(Tiny(), (rule,))


@pytest.fixture(scope="module", params=sorted(GOLDEN))
def golden_model(request):
    config = ROOT / f"configs/base/models/{request.param}.yaml"
    options = ["MODEL.DEVICE", "cpu", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 150]
    options += ["SOLVER.BASE_LR", 6e-5, "SOLVER.WEIGHT_DECAY", 0.01]
    cfg = load_config(str(config), options)
    return request.param, cfg, build_model(cfg)


def test_groups_equal_those_of_the_authors_runs(golden_model):
    name, cfg, model = golden_model
    rules = rules_for_backbone(cfg.MODEL.BACKBONE.NAME)
    names = [parameter for parameter, _ in model.named_parameters()]
    assigned = assign_rules(names, rules)
    key_map = KEY_MAPS[cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME, "offset"]
    theirs = {key_map.name_to_theirs(parameter): rule for parameter, rule in assigned.items()}
    undecayed = {key for key, rule in theirs.items() if rule and rule.weight_decay == 0.0}
    fast = {key for key, rule in theirs.items() if rule and rule.lr_factor == "HEAD_LR_FACTOR"}
    assert undecayed == set(GOLDEN[name]["no_weight_decay"])
    assert fast == set(GOLDEN[name]["fast"])
    assert len(names) - len(undecayed) - len(fast) == GOLDEN[name]["base_tensors"]


def test_optimizer_has_the_authors_rates_and_decays(golden_model):
    _, cfg, model = golden_model
    optimizer = build_optimizer(cfg, model)
    values = {
        group["name"]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups
    }
    expected = {"base": (6e-5, 0.01), "head": (6e-4, 0.01), "backbone_norm": (6e-5, 0.0)}
    if "talking_heads" in values:
        expected["talking_heads"] = (6e-4, 0.01)
    assert values.keys() == expected.keys()
    for name, pair in expected.items():
        assert values[name] == pytest.approx(pair), name
    defaults = optimizer.defaults
    assert (defaults["betas"], defaults["eps"]) == ((0.9, 0.999), 1e-8)
