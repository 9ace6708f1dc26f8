"""The commands of docs/GETTING_STARTED.md, run one after another as a reader would."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision

from tests.common import ROOT
from tests.data.datasets import common
from tests.docs.pages import blocks

PAGE = ROOT / "docs/GETTING_STARTED.md"
# What is not run here: it makes the environment, in which this test runs, the demo's model, and the
# ImageNet weights, in whose place a file with random ones is made.
LEFT_OUT = ("make demo", "source .venv", "pip install", "mkdir -p weights", 'cp "$(python')
pytestmark = pytest.mark.slow


def script() -> str:
    """All commands of the page in their order, the trainings shortened."""
    text = "".join(blocks(PAGE, ("bash",)))
    lines = [line for line in text.splitlines() if not line.startswith(LEFT_OUT)]
    shortened = "\n".join(lines).replace("SOLVER.MAX_ITER 200", "SOLVER.MAX_ITER 40")
    assert shortened.count("SOLVER.MAX_ITER 40") == 2
    return "set -e\n" + re.sub(r"^python ", f"{sys.executable} ", shortened, flags=re.MULTILINE)


def test_commands_of_the_page_run(tmp_path: Path):
    for name in ("configs", "tools", "offseg_d2", "datasets"):
        os.symlink(ROOT / name, tmp_path / name) if name != "datasets" else (
            tmp_path / name
        ).mkdir()
    common.write_own(tmp_path / "mydata")
    (tmp_path / "weights").mkdir()
    weights = torchvision.models.mobilenet_v2(weights=None).state_dict()
    torch.save(weights, tmp_path / "weights/mobilenet_v2-b0353104.pth")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("DETECTRON2_DATASETS", None)
    demo = [sys.executable, str(ROOT / "tools/make_demo.py")]
    subprocess.run(demo, cwd=tmp_path, env=environment, check=True, capture_output=True)
    ran = subprocess.run(
        ["bash", "-c", script()], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    for made in ("pictures", "offsets.png", "mine/model_final.pth", "curves", "onnx"):
        assert list((tmp_path / "output").glob(f"{made}*")), made
    (snippet,) = blocks(PAGE, ("python",))
    ran = subprocess.run(
        [sys.executable, "-c", snippet],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert (tmp_path / "output/overlay.png").is_file()
    shutil.rmtree(tmp_path / "output")
