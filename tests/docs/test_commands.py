"""Every command of the pages is run to its end, or is left out for a reason that stands here."""

import os
import pickle
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from offseg_d2.config import load_config
from offseg_d2.engine import Trainer
from offseg_d2.inference.video import VideoWriter
from tests.checkpoint import external, external_masks
from tests.common import ROOT
from tests.data.common import write_camvid
from tests.data.datasets.common import write_ade20k, write_own, write_pascal_context
from tests.docs.pages import PAGES, command_lines, name_of

# Beginning of a command, or page -> why it is not run here.
LEFT_OUT = {
    "docs/GETTING_STARTED.md": "run in test_getting_started.py",
    "docs/SLURM.md": "needs SLURM; run on a real one in tests/integration",
    "CONTRIBUTING.md": "these are the tests themselves",
    "make": "makes the environment in which this test runs",
    "pip install": "needs a network",
    "pip wheel": "needs a network",
    "python datasets/prepare_pascal": "needs a download; see test_pascal_context_json.py",
    "ssh": "needs another machine",
}
# What a page says -> what there is here.
SUBSTITUTES = {
    "output/demo/model_final.pth": "output/camvid/offseg_t_offset_cpu/model_final.pth",
    "/path/to/": "",
}
_SHORT_TRAINING = (
    *("SOLVER.MAX_ITER", "1", "SOLVER.WARMUP_ITERS", "0", "SOLVER.IMS_PER_BATCH", "2"),
    *("SOLVER.AMP.ENABLED", "False"),
    *("DATALOADER.NUM_WORKERS", "0", "MODEL.DEVICE", "cpu", "INPUT.CROP.SIZE", "[64,64]"),
    *("INPUT.RESIZE.SCALE", "[128,96]", "TEST.EVAL_PERIOD", "0", "MODEL.BATCH_NORM", "BN"),
)
# Command -> words that keep it short.
SHORT = {
    "offseg train": _SHORT_TRAINING,
    "offseg web": ("--port", "0"),
}
# Configuration and folder -> changes, of the models that the pages take for trained.
MODELS = {
    "configs/camvid/offseg_t_offset_cpu.yaml output/camvid/offseg_t_offset_cpu": [],
    "configs/camvid/offseg_t_offset_cpu.yaml output/mine": [],
    "configs/camvid/offseg_t_offset_cpu.yaml output/camvid/offseg_t_plain_cpu": [
        *("MODEL.SEM_SEG_HEAD.CLASSIFIER", "plain"),
    ],
    "configs/camvid/offseg_mobilenetv2_offset_cpu.yaml "
    "output/camvid/offseg_mobilenetv2_offset_cpu": ["MODEL.WEIGHTS", ""],
}
FOUND = [(name_of(page), line) for page in PAGES for line in command_lines(page)]
RUN = [pair for pair in FOUND if not any(pair[0] == x or pair[1].startswith(x) for x in LEFT_OUT)]
QUICK = [x for p, x in RUN if p == "README.md" and re.match(r"offseg (check|view) ", x)]


def test_tables_speak_of_commands_that_there_are():
    assert len(RUN) > 20 and len(QUICK) == 2
    for beginning in LEFT_OUT:
        assert any(page == beginning or line.startswith(beginning) for page, line in FOUND)
    assert all(any(text in line for _, line in RUN) for text in (*SUBSTITUTES, *SHORT))


@pytest.fixture
def camvid(tmp_path, monkeypatch) -> Path:
    write_camvid(tmp_path / "datasets")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("line", QUICK)
def test_quick_command_runs(camvid, monkeypatch, line):
    monkeypatch.setattr(sys, "argv", shlex.split(line))
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("offseg_d2", run_name="__main__")
    # The tiny data set has classes that do not fit everywhere: faults are found, and that is all.
    assert ended.value.code in (0, 1)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Iterator[Path]:
    """A folder as a reader's, with tiny data sets, untrained models and other projects' files."""
    folder = tmp_path_factory.mktemp("reader")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(folder / "datasets"))
        _fill(folder)
    yield folder
    shutil.rmtree(folder)


def _fill(folder: Path) -> None:
    for name in ("configs", "tools", "offseg_d2"):
        os.symlink(ROOT / name, folder / name)
    write_camvid(folder / "datasets")
    write_ade20k(folder / "datasets")
    write_pascal_context(folder / "datasets")
    write_own(folder / "ROOT")
    shutil.copytree(folder / "ROOT/images/val", folder / "ROOT/images/test")  # without labels
    (folder / "frames").mkdir()
    for index in range(3):
        image = np.random.default_rng(index).integers(0, 256, (60, 80, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"frames/{index}.jpg"), image)
    with VideoWriter(str(folder / "film.mp4"), 5) as film:
        film.write(image)
    for name, changes in MODELS.items():
        config, run = name.split()
        output = folder / run
        trainer = Trainer(load_config(str(ROOT / config), [*changes, "OUTPUT_DIR", str(output)]))
        trainer.iter = 0
        trainer.save_checkpoint("model_final")
        (output / "config.yaml").write_text(trainer.cfg.dump())
    for path, state in {
        "r50/model_final.pkl": external_masks.fb_mask2former_r50(),
        "swin_t/model_final.pkl": external_masks.fb_mask2former(),
        "offseg-t_ade20k.pth": external.authors_state("offseg_t_ade20k"),
    }.items():
        (folder / path).parent.mkdir(exist_ok=True)
        if path.endswith(".pkl"):
            arrays = {key: value.numpy() for key, value in state.items()}
            (folder / path).write_bytes(pickle.dumps({"model": arrays, "__author__": "x"}))
        else:
            torch.save({"state_dict": state}, folder / path)


@pytest.mark.slow
@pytest.mark.parametrize(("page", "line"), RUN, ids=[f"{p}:{n}" for n, (p, _) in enumerate(RUN)])
def test_command_runs_to_its_end(workspace, page, line):
    for text, here in SUBSTITUTES.items():
        line = line.replace(text, here)
    for script, words in SHORT.items():
        line += f" {shlex.join(words)}" if script in line else ""
    if "offseg train" in line and "MODEL.WEIGHTS" not in line:
        line += " MODEL.WEIGHTS ''"  # instead of a backbone's, which has to be downloaded
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    environment["DETECTRON2_DATASETS"] = str(workspace / "datasets")
    serves = line.startswith("offseg web")
    line = re.sub(r"^offseg", "python -m offseg_d2", line)
    process = subprocess.Popen(
        ["bash", "-c", "exec " + re.sub(r"^python", shlex.quote(sys.executable), line)],
        cwd=workspace,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = ""
    if serves:  # until Ctrl-C
        for said_now in process.stdout:
            said += said_now
            if "http://" in said_now:
                process.send_signal(signal.SIGINT)
                break
    said += process.communicate()[0]
    allowed = {0, 1} if "offseg_d2 check" in line else {0}
    assert process.returncode in allowed, f"{line}\n{said[-3000:]}"
    assert "Traceback" not in said, said[-3000:]
