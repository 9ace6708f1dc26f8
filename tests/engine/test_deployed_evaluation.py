"""Evaluation with ``TEST.DEPLOY``: the same label maps and the same scores."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from offseg_d2.config import ConfigError
from offseg_d2.deploy.from_config import deployed
from offseg_d2.engine import evaluate
from tests.common import SMALL_OFFSEG, offseg_config, seed_all, spread_weights


@pytest.fixture
def cfg(tmp_path: Path) -> CfgNode:
    """A test set of three images with labels of five classes."""
    root, random = tmp_path / "own", np.random.default_rng(0)
    for kind in ("images", "annotations"):
        (root / kind / "val").mkdir(parents=True)
    for i in range(3):
        pixels = random.integers(0, 256, (8, 12, 3), dtype=np.uint8)
        image = cv2.resize(pixels, (96, 64), interpolation=cv2.INTER_LINEAR)
        labels = np.kron(random.integers(0, 5, (4, 6), dtype=np.uint8), np.ones((16, 16), np.uint8))
        cv2.imwrite(str(root / f"images/val/{i}.png"), image)
        cv2.imwrite(str(root / f"annotations/val/{i}.png"), labels)
    (root / "classes.txt").write_text("a\nb\nc\nd\ne\n")
    return offseg_config(
        *SMALL_OFFSEG,
        *("DATASETS.TEST", (f"folder:{root}:val",), "INPUT.RESIZE.SCALE_TEST", [96, 64]),
        *("DATALOADER.NUM_WORKERS", 0, "OUTPUT_DIR", str(tmp_path / "run")),
    )


def test_scores_and_label_maps_are_those_of_the_model(cfg, tmp_path):
    seed_all()
    model = spread_weights(build_model(cfg)).train()
    plain = evaluate(cfg, model, predictions_dir=str(tmp_path / "plain"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cfg.TEST.DEPLOY = True
    fast = evaluate(cfg, model, predictions_dir=str(tmp_path / "fast"))
    assert fast["sem_seg"]["mIoU"] == pytest.approx(plain["sem_seg"]["mIoU"], abs=0.02)
    assert plain["sem_seg"]["mIoU"] > 0
    paths = [*(tmp_path / "plain").rglob("*.png")]
    assert len(paths) == 3
    for path in paths:
        same = tmp_path / "fast" / path.relative_to(tmp_path / "plain")
        labels = cv2.imread(str(path))
        assert len(np.unique(labels)) > 1
        assert np.mean(labels == cv2.imread(str(same))) > 0.999
    # The model itself stays as it was, to be trained further.
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    (report,) = (tmp_path / "run").rglob("metrics.json")
    assert "optimized" in json.dumps(json.loads(report.read_text())["run"])


def test_models_without_a_deployed_form_are_refused(cfg):
    cfg.TEST.DEPLOY = True
    with pytest.raises(ConfigError, match=r"`TEST.DEPLOY` must be False for .* only OffSeg"):
        evaluate(cfg, torch.nn.Linear(1, 1))
    cfg.TEST.DEPLOY = False
    model = torch.nn.Linear(1, 1)
    assert deployed(cfg, model) is model
