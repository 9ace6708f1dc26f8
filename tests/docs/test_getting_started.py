"""The commands of docs/GETTING_STARTED.md, run one after another as a reader would."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from offseg_d2.data.datasets.colors import distinct_colors
from offseg_d2.inference.video import VideoWriter
from tests.common import ROOT
from tests.docs.pages import blocks

PAGE = ROOT / "docs/GETTING_STARTED.md"
# What is not run here: it makes the environment, in which this test runs, the demo's model, and the
# ImageNet weights, in whose place a file with random ones is made.
LEFT_OUT = ("make demo", "source .venv", "pip install", "mkdir -p weights")
ASKS_FOR_CLASSES = "offseg check folder:mydata:train\n"
pytestmark = pytest.mark.slow


def script() -> tuple[str, str]:
    """All commands of the page before and after the one that asks for names of the classes.

    The trainings are shortened.
    """
    text = "".join(blocks(PAGE, ("bash",)))
    lines = [line for line in text.splitlines(keepends=True) if not line.startswith(LEFT_OUT)]
    shortened = "".join(lines).replace("MAX_ITER 200 TEST.EVAL_PERIOD 50", "MAX_ITER 10")
    assert shortened.count("MAX_ITER 10") == 2
    before, after = shortened.split(ASKS_FOR_CLASSES)
    return before, after


def run(commands: str, folder: Path) -> str:
    """Run commands in a folder in which the project is no clone; returns what they print."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("DETECTRON2_DATASETS", None)
    offseg = f"{sys.executable} -m offseg_d2"
    ran = subprocess.run(
        ["bash", "-e", "-c", re.sub(r"^offseg", offseg, commands, flags=re.MULTILINE)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
    assert "Traceback" not in ran.stdout + ran.stderr
    return ran.stdout


def write_photographs(folder: Path) -> None:
    """Drawn scenes as a user's photographs, coloured masks and film; class 0 is unlabelled."""
    colors = np.array([[0, 0, 0], *distinct_colors(8)[1:]], dtype=np.uint8)
    (drawn,) = (folder / "datasets/shapes").iterdir()
    for kind in ("images", "annotations"):
        (folder / "mydata" / kind).mkdir(parents=True)
    with VideoWriter(str(folder / "film.mp4"), 5) as film:
        for path in sorted((drawn / "images/train").iterdir())[:30]:
            shutil.copy(path, folder / "mydata/images")
            labels = np.array(Image.open(drawn / f"annotations/train/{path.stem}.png"))
            Image.fromarray(colors[labels]).save(folder / f"mydata/annotations/{path.stem}.png")
            film.write(np.array(Image.open(path))[..., ::-1])


def name_classes(printed: str, folder: Path) -> None:
    """Save the ``classes.json`` that was printed, as the page says it."""
    content = json.loads(printed[printed.index("{") : printed.rindex("}") + 1])
    content["ignore_label"] = [[0, 0, 0]]
    content["palette"].remove([0, 0, 0])
    content["classes"] = [f"thing {index}" for index in range(len(content["palette"]))]
    (folder / "mydata/classes.json").write_text(json.dumps(content))


def test_commands_of_the_page_run(tmp_path: Path):
    (tmp_path / "weights").mkdir()
    weights = torchvision.models.mobilenet_v2(weights=None).state_dict()
    torch.save(weights, tmp_path / "weights/mobilenet_v2-b0353104.pth")
    run("offseg make-demo", tmp_path)
    write_photographs(tmp_path)
    before, after = script()
    run(before, tmp_path)
    name_classes(run(f"{ASKS_FOR_CLASSES.strip()} || true", tmp_path), tmp_path)
    run(after, tmp_path)
    output = tmp_path / "output"
    for made in (
        *("pictures", "offsets.png", "mydata_pictures", "mine/model_best.pth", "mine/pictures"),
        *("film/film.mp4", "curves.png", "mine/model.onnx", "onnx/film.mp4"),
        "mine/inference/folder_mydata_val/report.html",
    ):
        assert (output / made).exists(), made
    assert "thing 6" in (output / "mine/inference/folder_mydata_val/report.html").read_text()
    (snippet,) = blocks(PAGE, ("python",))
    (tmp_path / "snippet.py").write_text(snippet)
    run(f"{sys.executable} snippet.py", tmp_path)
    assert (output / "overlay.png").is_file()
    shutil.rmtree(output)
