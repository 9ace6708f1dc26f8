"""Parameter groups, clipping and schedule of mask-query models."""

import gzip
import json
import re

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from offseg_d2.checkpoint.mask_query_tables import MASK2FORMER_OFFSET
from offseg_d2.config import load_config
from offseg_d2.engine import TrainLoop
from offseg_d2.solver import (
    MASK_QUERY_RULES,
    assign_rules,
    build_gradient_clipper,
    build_lr_scheduler,
    build_optimizer,
    rules_of,
)
from tests.common import ROOT
from tests.golden.make import FOLDER, MASK_QUERY_GROUPS

RUN = "mask2former_swin_t_ade20k"
BASE = ROOT / "configs/base"


def model_config(model: str, *opts: object) -> CfgNode:
    opts = (*opts, "MODEL.DEVICE", "meta", "SOLVER.PARAM_GROUPS", "mask_query")
    return load_config(str(BASE / f"models/{model}.yaml"), opts)


def build_on_meta(cfg: CfgNode) -> nn.Module:
    with torch.device("meta"):
        return build_model(cfg)


@pytest.fixture(scope="module")
def swin() -> tuple[CfgNode, nn.Module]:
    cfg = model_config(
        "mask2former_swin_t",
        *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 150, "SOLVER.BASE_LR", 1e-4),
        *("SOLVER.WEIGHT_DECAY", 0.05),
    )
    return cfg, build_on_meta(cfg)


def test_groups_are_exactly_those_of_the_authors_run(swin):
    cfg, model = swin
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    ours: dict[str, set[str]] = {key: set() for key in MASK_QUERY_GROUPS}
    for group in build_optimizer(cfg, model).param_groups:
        rate, decay = group["lr"], group["weight_decay"]
        key = f"lr={rate:.5g} wd={decay:g}"
        theirs = {MASK2FORMER_OFFSET.name_to_theirs(names[id(p)]) for p in group["params"]}
        ours[key] |= theirs
    manifest = json.loads(gzip.decompress((FOLDER / "manifest_names.json.gz").read_bytes()))[RUN]
    trainable = [name for name, _, is_trainable in manifest if is_trainable]
    digits = json.loads((FOLDER / "optim_groups.json").read_text())[RUN]
    expected: dict[str, set[str]] = {key: set() for key in MASK_QUERY_GROUPS}
    for name, digit in zip(trainable, digits, strict=True):
        expected[MASK_QUERY_GROUPS[int(digit)]].add(name)
    assert ours == expected
    assert [len(ours[key]) for key in MASK_QUERY_GROUPS] == [101, 76, 201, 93]


@pytest.mark.parametrize("model", ["mask2former_offseg_t", "mask2former_r50"])
@pytest.mark.parametrize("classifier", ["offset", "plain"])
def test_norms_and_embeddings_of_every_backbone_have_no_weight_decay(model, classifier):
    cfg = model_config(model, "MODEL.SEM_SEG_HEAD.CLASSIFIER", classifier)
    network = build_on_meta(cfg)
    decided = assign_rules((name for name, _ in network.named_parameters()), MASK_QUERY_RULES)
    undecayed = {name for name, rule in decided.items() if rule and rule.weight_decay == 0.0}
    norm_types = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d)
    expected = {
        f"{prefix}.{name}"
        for prefix, module in network.named_modules()
        if isinstance(module, norm_types)
        for name, _ in module.named_parameters()
    }
    expected |= {
        name for name in decided if re.search(r"predictor\.\w+_(feat|embed)\.weight", name)
    }
    expected -= {name for name in decided if "class_embed" in name}
    expected |= {name for name in decided if name.endswith("bias.table")}
    assert undecayed == expected
    slow = {name for name, rule in decided.items() if rule and rule.lr_factor != 1.0}
    assert slow == {name for name in decided if name.startswith("backbone.")}


@pytest.mark.parametrize(
    "backbone",
    [
        ["TorchvisionMobileNetV2"],
        *(["build_timm_backbone", name] for name in ("convnext_atto", "resnet18")),
    ],
    ids=lambda backbone: backbone[-1],
)
def test_norms_of_external_backbones_have_no_weight_decay_whatever_their_names(backbone):
    opts = ["MODEL.BACKBONE.NAME", backbone[0]]
    if len(backbone) > 1:
        pytest.importorskip("timm", reason="timm's networks need timm")
        opts += ["MODEL.TIMM.NAME", backbone[1]]
    cfg = model_config("mask2former_offseg_t", *opts)
    network = build_on_meta(cfg)
    undecayed = {
        id(p)
        for group in build_optimizer(cfg, network).param_groups
        for p in group["params"]
        if group["weight_decay"] == 0.0
    }
    norms = {
        name
        for prefix, module in network.backbone.named_modules()
        if re.search("norm", type(module).__name__, re.IGNORECASE)
        for name, _ in module.named_parameters(prefix, recurse=False)
    }
    assert len(norms) > 30
    assert {n for n, p in network.backbone.named_parameters() if id(p) in undecayed} == norms


def test_table_that_does_not_fit_the_model_is_one_error_naming_key_and_value(swin):
    cfg, model = swin
    cfg = cfg.clone()
    cfg.SOLVER.PARAM_GROUPS = "per_pixel"
    message = r"^`SOLVER.PARAM_GROUPS` must be 'mask_query' for a mask-query .* is 'per_pixel'\.$"
    with pytest.raises(ValueError, match=message):
        build_optimizer(cfg, model)
    cfg = model_config("offseg_t")
    message = r"^`SOLVER.PARAM_GROUPS` must fit the model .*'PerPixelSegmentor', but is "
    message += r"'mask_query': Parameter group rule 'embeddings' must decide"
    with pytest.raises(ValueError, match=message):
        build_optimizer(cfg, build_on_meta(cfg))


def test_names_alone_still_tell_the_norms():
    rules = rules_of("mask_query", "Swin")[:3]
    names = ["backbone.norm0.weight", "backbone.features.0.1.weight", "sem_seg_head.x.1.weight"]
    by_name = assign_rules(names, rules)
    assert [rule and rule.name for rule in by_name.values()] == ["backbone_norms", "backbone", None]
    by_type = assign_rules([*names, "backbone.conv.weight"], rules, norm_names=set(names))
    rule_names = ["backbone_norms", "backbone_norms", None, "backbone"]
    assert [rule and rule.name for rule in by_type.values()] == rule_names


def test_per_pixel_models_do_not_fit_the_table(swin):
    names = ["backbone.conv.weight", "sem_seg_head.classifier.norm.weight"]
    with pytest.raises(ValueError, match="'embeddings' must decide for at least one parameter"):
        assign_rules(names, MASK_QUERY_RULES)


def test_unknown_table_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"must be one of \['mask_query', 'per_pixel'\], but is"):
        rules_of("mask2former", "Swin")
    assert rules_of("mask_query", "Swin") == rules_of("mask_query", "MiT") == MASK_QUERY_RULES
    assert rules_of("per_pixel", "Swin") != MASK_QUERY_RULES


# ---------------------------------------------------------------- the recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> CfgNode:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    parts = ["runtime", "recipes/mask_query", "schedules/mask_query_160k"]
    path.write_text(f"_BASE_: [{', '.join(f'{BASE}/{part}.yaml' for part in parts)}]\n")
    return load_config(str(path))


def test_recipe_has_the_authors_optimizer_and_input(recipe):
    solver, given = recipe.SOLVER, recipe.INPUT
    assert (solver.OPTIMIZER, solver.BASE_LR, solver.WEIGHT_DECAY) == ("ADAMW", 1e-4, 0.05)
    assert (solver.PARAM_GROUPS, solver.BACKBONE_LR_FACTOR) == ("mask_query", 0.1)
    assert (solver.WARMUP_ITERS, solver.POLY_LR_POWER, solver.POLY_END_ITER) == (0, 0.9, 0)
    assert (solver.MAX_ITER, solver.IMS_PER_BATCH, solver.AMP.ENABLED) == (160_000, 16, False)
    assert recipe.TEST.EVAL_PERIOD == 5000
    assert (given.DATASET_MAPPER_NAME, given.RESIZE.TYPE_TRAIN) == ("instances", "shortest_edge")
    assert list(given.MIN_SIZE_TRAIN) == [int(512 * (0.5 + i / 10)) for i in range(16)]
    assert (given.MAX_SIZE_TRAIN, given.MIN_SIZE_TRAIN_SAMPLING) == (2048, "choice")


def test_rate_falls_without_warm_up_as_in_the_authors_run(recipe):
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=recipe.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(recipe, optimizer)
    expected = {0: 1e-4, 1: 9.999943749630858e-05, 120000: 2.8716974264323826e-05, 159999: 0.0}
    for iteration, rate in expected.items():
        scheduler.last_epoch = iteration
        assert scheduler.get_lr() == [pytest.approx(rate, rel=1e-7, abs=1e-16)]


def test_gradients_are_clipped_to_a_joint_norm_of_one_hundredth(recipe):
    clip = build_gradient_clipper(recipe)
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([-4.0])
    clip(parameters)
    norm = torch.cat([parameter.grad for parameter in parameters]).norm()
    assert float(norm) == pytest.approx(0.01, rel=1e-4)


class Scaled(nn.Module):
    """Loss with the gradient 30 in each of 4 entries."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))

    def forward(self, batch: list[dict]) -> dict[str, torch.Tensor]:
        return {"loss": 30.0 * self.weight.sum() * len(batch)}


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "scaled"])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_accumulated_and_unscaled_gradients_are_what_is_clipped(recipe, precision, accumulation):
    model = Scaled()
    loop = TrainLoop(
        model,
        torch.optim.SGD(model.parameters(), lr=1.0),
        [[{}]] * accumulation,
        device=torch.device("cpu"),
        amp_dtype=torch.bfloat16 if precision == "bfloat16" else None,
        accumulation_steps=accumulation,
        clip_gradients=build_gradient_clipper(recipe),
    )
    if precision == "scaled":  # as with float16 on CUDA
        loop.grad_scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    loop.train(0, 1)
    assert loop.storage.latest()["gradient_norm"][0] == pytest.approx(60.0)
    assert float(model.weight.detach().norm()) == pytest.approx(0.01, rel=1e-4)
