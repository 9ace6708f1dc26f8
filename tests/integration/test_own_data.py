"""Polygons in a COCO file become a model, a report, pictures and an ONNX file, by commands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from offseg_d2.config.find import config_names
from tests.common import ROOT

RECIPES = [name for name in config_names() if name.startswith("own_data/")]
HEIGHT, WIDTH = 72, 96
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder as CVAT exports it: images without splits, boats and birds as polygons."""
    root = tmp_path_factory.mktemp("harbour")
    (root / "views/images").mkdir(parents=True)
    (root / "views/annotations").mkdir()
    images, annotations = [], []
    for index in range(12):
        x, y = 5 + 3 * index, 40 - 2 * index
        boat = np.array([[x, y], [x + 30, y], [x + 24, y + 14], [x + 6, y + 14]])
        bird = np.array([[70, 10], [76, 4], [82, 10], [76, 7]])
        bird[:, 1] += index
        image = np.random.default_rng(index).integers(90, 120, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        for category, polygon, color in ((1, boat, (30, 30, 200)), (2, bird, (240, 240, 240))):
            cv2.fillPoly(image, [polygon.astype(np.int32)], color)
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": index,
                    "category_id": category,
                    "segmentation": [polygon.ravel().tolist()],
                }
            )
        name = f"view_{index}.png"
        cv2.imwrite(str(root / "views/images" / name), image)
        images.append({"id": index, "file_name": name, "height": HEIGHT, "width": WIDTH})
    categories = [{"id": 1, "name": "boat"}, {"id": 2, "name": "bird"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "views/annotations/instances_default.json").write_text(json.dumps(content))
    return root


def offseg(folder: Path, *words: str) -> str:
    """Run a command in the folder; returns what it prints."""
    ran = subprocess.run(
        [sys.executable, "-m", "offseg_d2", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0 and "Traceback" not in ran.stderr, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_from_polygons_to_files(folder, recipe):
    """The recipes for GPUs, too: their schedule and precision are those of a CPU here."""
    output = f"output/{recipe}"
    offseg(
        *(folder, "train", "--config-file", recipe, "DATASETS.TRAIN", "('folder:views:train',)"),
        *("SOLVER.MAX_ITER", "2", "SOLVER.MAX_EPOCHS", "0", "SOLVER.IMS_PER_BATCH", "2"),
        *("MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", "False"),
        *("DATALOADER.NUM_WORKERS", "0", "INPUT.CROP.SIZE", "[96, 96]"),
        *("INPUT.RESIZE.SCALE", "[256, 96]", "INPUT.RESIZE.SCALE_TEST", "[256, 96]"),
        *("OUTPUT_DIR", output),
    )
    config, weights = f"{output}/config.yaml", f"{output}/model_best.pth"
    pictures = f"{output}/pictures"
    words = ("--eval-only", "--show-dir", pictures, "MODEL.WEIGHTS", weights)
    printed = offseg(folder, "train", "--config-file", config, *words)
    assert all(name in printed for name in ("background", "boat", "bird", "Evaluation of 2 images"))
    assert len(list((folder / pictures).rglob("*.jpg"))) == 2
    report = folder / output / "inference/folder_views_val/report.html"
    assert "boat" in report.read_text(encoding="utf-8")
    drawn = ("--input", "views/images", "--output", f"{output}/drawn")
    assert "12 pictures lie" in offseg(folder, "demo", "--weights", weights, *drawn)
    model = f"{output}/model.onnx"
    size = ("--size", "96", "128", "--batch", "1", "--output", model)
    offseg(folder, "export", "--config-file", config, *size, "--opts", "MODEL.WEIGHTS", weights)
    drawn = ("--input", "views/images", "--output", f"{output}/onnx")
    assert "12 pictures lie" in offseg(folder, "demo", "--onnx", model, *drawn)


def test_there_are_recipes_for_processors_and_graphics_cards():
    assert len(RECIPES) == 6 and sum(name.endswith("_gpu") for name in RECIPES) == 3
