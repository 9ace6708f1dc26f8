"""Whatever moment SIGKILL comes at: no checkpoint is broken and resuming loses little."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.kill_runner import MOMENTS, PERIOD

ROOT = Path(__file__).resolve().parents[2]


def run_kills(directory: Path, kills: int) -> dict[str, dict]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.engine.kill_runner", str(directory), str(kills)]
    finished = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    lines = [json.loads(line) for line in finished.stdout.splitlines() if line.startswith("{")]
    return {line["case"]: line for line in lines}


def check(case: dict) -> None:
    assert case["damaged"] == []
    assert case["temporary"] == []
    assert case["lost"] <= PERIOD
    assert case["statuses"][-1] == 0
    assert case["same_weights"]


def test_killed_runs_resume_from_a_whole_checkpoint_and_end_with_the_same_weights(tmp_path):
    cases = run_kills(tmp_path, kills=4)
    assert cases.keys() == {moment.__name__ for moment in MOMENTS} | {"random"}
    for name, case in cases.items():
        check(case)
        if name != "random":
            assert case["statuses"][0] == -signal.SIGKILL


@pytest.mark.slow
def test_run_killed_many_times_ends_with_the_same_weights(tmp_path):
    check(run_kills(tmp_path, kills=60)["random"])
