"""A folder of the user's own, trained on and predicted with by name alone."""

import argparse
from pathlib import Path

import cv2
import numpy as np
import pytest

from offseg_d2.engine import Trainer, setup_run
from offseg_d2.inference.predictor import Predictor
from tests.common import SMALL_OFFSEG, offseg_config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, four images of 64 x 64 to train with and one to validate with."""
    root = tmp_path / "own data"
    for split, number in (("train", 4), ("val", 1)):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for i in range(number):
            label = np.zeros((64, 64), np.uint8)
            label[:, 16 * (i % 3) + 8 :] = 1
            cv2.imwrite(str(root / f"images/{split}/{i}.png"), cv2.merge([label * 200] * 3))
            cv2.imwrite(str(root / f"annotations/{split}/{i}.png"), label)
    (root / "classes.txt").write_text("dark\nlight\n")
    return root


def test_folder_is_trained_and_evaluated_with_its_own_classes(folder, tmp_path):
    cfg = offseg_config(
        *SMALL_OFFSEG,
        *("DATASETS.TRAIN", (f"folder:{folder}:train",), "DATASETS.TEST", ("camvid_test",)),
        *("INPUT.CROP.SIZE", [64, 64], "INPUT.RESIZE.SCALE", [64, 64]),
        *("INPUT.RESIZE.SCALE_TEST", [64, 64], "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2),
        *("DATALOADER.NUM_WORKERS", 0, "OUTPUT_DIR", str(tmp_path / "run"), "SEED", 1),
        *("SOLVER.LR_SCHEDULER_NAME", "WarmupPoly", "SOLVER.WARMUP_ITERS", 0),
    )
    cfg = setup_run(cfg, argparse.Namespace(eval_only=False))
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 2
    assert (f"folder:{folder}:val",) == cfg.DATASETS.TEST
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    results = trainer.train()
    assert {"IoU-dark", "IoU-light"} <= results["sem_seg"].keys()

    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(tmp_path / "run" / "model_final.pth")
    assert Predictor(cfg).metadata.stuff_classes == ["dark", "light"]

    # a model may travel without its data
    folder.rename(tmp_path / "elsewhere")
    cfg.DATASETS.TEST = (f"folder:{tmp_path}/gone:val",)
    predictor = Predictor(cfg)
    assert predictor.metadata.stuff_classes == ["class 0", "class 1"]
    assert predictor.label_map(np.zeros((64, 64, 3), np.uint8)).shape == (64, 64)
