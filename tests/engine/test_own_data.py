"""A folder of the user's own, trained on and predicted with by name alone."""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from offseg_d2.config import load_config
from offseg_d2.engine import Trainer, evaluate, setup_run
from offseg_d2.inference.predictor import Predictor
from tests.common import ROOT, SMALL_OFFSEG, offseg_config

pytestmark = pytest.mark.usefixtures("loggers")


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


# ---------------------------------------------------------------------- from pictures to a report

RECIPE = ROOT / "configs/own_data/offseg_t_offset_cpu.yaml"
SIZE = 64


def picture(index: int) -> tuple[np.ndarray, tuple[int, int]]:
    """A dark image (64, 64, 3) with a light field, and the field's columns."""
    left, right = 8 * (index % 3) + 8, 8 * (index % 3) + 40
    image = np.full((SIZE, SIZE, 3), 30, np.uint8)
    image[:, left:right] = 200
    return image, (left, right)


def write_coloured_masks(root: Path) -> None:
    """Without folders of splits."""
    content = {"classes": ["dark", "light"], "palette": [[0, 0, 0], [250, 20, 20]]}
    for kind in ("images", "annotations"):
        (root / kind).mkdir(parents=True)
    (root / "classes.json").write_text(json.dumps(content))
    for index in range(6):
        image, (left, right) = picture(index)
        mask = np.zeros_like(image)
        mask[:, left:right] = (20, 20, 250)  # BGR
        cv2.imwrite(str(root / f"images/{index}.png"), image)
        cv2.imwrite(str(root / f"annotations/{index}.png"), mask)


def write_polygons(root: Path) -> None:
    """As Roboflow exports them."""
    for split, indices in (("train", range(5)), ("valid", range(5, 6))):
        (root / split).mkdir(parents=True)
        images, annotations = [], []
        for index in indices:
            image, (left, right) = picture(index)
            cv2.imwrite(str(root / split / f"{index}.png"), image)
            entry = {"id": index, "file_name": f"{index}.png", "height": SIZE, "width": SIZE}
            images.append(entry)
            polygon = [left, 0, right, 0, right, SIZE, left, SIZE]
            annotation = {"image_id": index, "category_id": 1, "segmentation": [polygon]}
            annotations.append({"id": index, **annotation})
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [
                {"id": 0, "name": "fields", "supercategory": "none"},
                {"id": 1, "name": "light", "supercategory": "fields"},
            ],
        }
        (root / split / "_annotations.coco.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("write", "dark", "validation"),
    [(write_coloured_masks, "dark", "val"), (write_polygons, "background", "valid")],
)
def test_pictures_become_a_model_and_a_report(tmp_path, write, dark, validation):
    root, run = tmp_path / "own", tmp_path / "run"
    write(root)
    options = [
        *(*SMALL_OFFSEG[:-2], "DATASETS.TRAIN", f"('folder:{root}:train',)"),
        *("INPUT.CROP.SIZE", [SIZE, SIZE], "INPUT.RESIZE.SCALE", [SIZE, SIZE]),
        *("INPUT.RESIZE.SCALE_TEST", [SIZE, SIZE], "SOLVER.IMS_PER_BATCH", 5),
        *("SOLVER.MAX_EPOCHS", 2, "DATALOADER.NUM_WORKERS", 0, "OUTPUT_DIR", str(run)),
        *("MODEL.SEM_SEG_HEAD.LOSS.CLASS_WEIGHTS", "balanced", "SOLVER.AMP.ENABLED", False),
    ]
    cfg = setup_run(load_config(str(RECIPE), options), argparse.Namespace(eval_only=False))
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS, cfg.TEST.EVAL_PERIOD) == (2, 1, 1)
    assert (f"folder:{root}:{validation}",) == cfg.DATASETS.TEST
    # half of each image is light
    assert cfg.MODEL.SEM_SEG_HEAD.LOSS.CLASS_WEIGHTS == [1.0, 1.0]
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trained = trainer.train()["sem_seg"]
    assert {f"IoU-{dark}", "IoU-light"} <= trained.keys()

    again = load_config(str(run / "config.yaml"), ["MODEL.WEIGHTS", str(run / "model_final.pth")])
    again = setup_run(again, argparse.Namespace(eval_only=True))
    model = Trainer.build_model(again)
    Trainer.build_checkpointer(again, model).load(again.MODEL.WEIGHTS, checkpointables=[])
    results = evaluate(again, model, pictures_dir=str(tmp_path / "pictures"))
    assert results["sem_seg"] == trained
    assert (run / f"inference/own_{validation}/report.html").is_file()
    assert len(list((tmp_path / f"pictures/own_{validation}").iterdir())) >= 1
