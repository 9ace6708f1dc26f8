"""The optimizer settings that all recipes are composed of, as the authors' runs had them."""

from pathlib import Path

import pytest
from detectron2.config import CfgNode

from offseg_d2.config import load_config

BASE = Path(__file__).resolve().parents[2] / "configs/base"


def load(schedule: str, tmp_path) -> CfgNode:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"_BASE_: [{BASE}/runtime.yaml, {BASE}/schedules/{schedule}.yaml]\n")
    return load_config(str(path))


@pytest.mark.parametrize(("schedule", "max_iter"), [("160k", 160_000), ("80k", 80_000)])
def test_schedules_have_ten_checkpoints_and_evaluations(schedule, max_iter, tmp_path):
    cfg = load(schedule, tmp_path)
    assert max_iter == cfg.SOLVER.MAX_ITER
    assert max_iter == 10 * cfg.SOLVER.CHECKPOINT_PERIOD == 10 * cfg.TEST.EVAL_PERIOD


def test_runtime_has_the_authors_optimizer_and_input(tmp_path):
    cfg = load("160k", tmp_path)
    solver = cfg.SOLVER
    assert (solver.OPTIMIZER, solver.BASE_LR, solver.WEIGHT_DECAY) == ("ADAMW", 6e-5, 0.01)
    assert (solver.LR_SCHEDULER_NAME, solver.POLY_LR_POWER) == ("WarmupPoly", 1.0)
    assert (solver.WARMUP_ITERS, solver.WARMUP_FACTOR) == (1500, 1e-6)
    assert (solver.HEAD_LR_FACTOR, list(solver.BETAS)) == (10.0, [0.9, 0.999])
    assert not solver.CLIP_GRADIENTS.ENABLED
    assert not solver.AMP.ENABLED
    assert cfg.INPUT.FORMAT == "RGB"
    assert cfg.MODEL.PIXEL_MEAN == [123.675, 116.28, 103.53]
    assert cfg.MODEL.PIXEL_STD == [58.395, 57.12, 57.375]
    crop = cfg.INPUT.CROP
    assert (crop.ENABLED, crop.TYPE, crop.SINGLE_CATEGORY_MAX_AREA) == (True, "absolute", 0.75)
