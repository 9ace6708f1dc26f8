"""A system that refuses to write (a full disk, a quota): one sentence from each command."""

import json
import resource
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from tests.common import ROOT, SMALL_OFFSEG, offseg_config

# Calls commands with a limit on the size of each file that is written.
SCRIPT = """
import json, resource, sys
from offseg_d2.__main__ import main

resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
for arguments in json.loads(sys.argv[1]):
    print("command", arguments[0], file=sys.stderr)
    try:
        main(arguments)
        print("status 0", file=sys.stderr)
    except SystemExit as stop:
        print("status", stop.code, file=sys.stderr)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no such limit on this system")
def test_each_command_says_in_one_sentence_that_a_write_was_refused(tmp_path):
    cfg = offseg_config(*SMALL_OFFSEG)
    weights, image = str(tmp_path / "weights.pth"), str(tmp_path / "image.png")
    torch.save({"model": build_model(cfg).state_dict()}, weights)
    cv2.imwrite(image, np.random.default_rng(0).integers(255, size=(64, 64, 3), dtype=np.uint8))
    (tmp_path / "config.yaml").write_text(cfg.dump())
    config = ["--config-file", str(tmp_path / "config.yaml")]
    out = {name: str(tmp_path / name) for name in ("a.pth", "a.safetensors", "drawn")}
    opts = ["--opts", "MODEL.WEIGHTS", weights, "MODEL.DEVICE", "cpu"]
    commands = {
        "a.pth": ["convert", weights, out["a.pth"], *config],
        "a.safetensors": ["convert", weights, out["a.safetensors"], *config],
        "drawn": ["demo", *config, "--input", image, "--output", out["drawn"], *opts],
    }
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(list(commands.values()))],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in result.stderr, result.stderr
    parts = result.stderr.split("command ")[1:]
    for (name, command), part in zip(commands.items(), parts, strict=True):
        assert part.startswith(command[0]) and part.rstrip().endswith("status 2"), part
        errors = [line for line in part.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and "File too large" in errors[0] and name in errors[0], part
    left = {path.name for path in tmp_path.iterdir()}
    assert left <= {"weights.pth", "image.png", "config.yaml", "drawn"}
