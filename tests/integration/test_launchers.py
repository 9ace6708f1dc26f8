"""The same script started in every way trains the same model, and a failure ends all processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.common import ROOT
from tests.engine.tiny import assert_same_weights, make_cfg
from tests.integration import tiny_train

pytestmark = pytest.mark.slow

MODULE = ["-m", "tests.integration.tiny_train"]
ONE = [sys.executable, *MODULE]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
WAYS = {
    "started here": [*ONE, "--num-gpus", "0", "--num-processes", "2"],
    "torchrun": [*TORCHRUN, *MODULE],
}


def start(way: list[str], directory: Path, *options: object, **environment: str):
    directory.mkdir(exist_ok=True)
    config = directory / "tiny.yaml"
    config.write_text(make_cfg(directory / "run", *options).dump())
    return subprocess.Popen(
        [*way, "--config-file", str(config)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def final_weights(directory: Path) -> dict[str, torch.Tensor]:
    return torch.load(directory / "run" / "model_final.pth", weights_only=True)["model"]


def wait_for(path: Path, process: subprocess.Popen) -> None:
    end = time.monotonic() + 240
    while not path.exists():
        assert time.monotonic() < end
        assert process.poll() is None, process.communicate()[0][-3000:]
        time.sleep(0.2)


def test_both_ways_of_starting_two_processes_give_the_same_weights(tmp_path):
    runs = {name: start(way, tmp_path / name) for name, way in WAYS.items()}
    for name, process in runs.items():
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, f"{name}: {output[-3000:]}"
        assert "Process 0 of 2" in output
    weights = [final_weights(tmp_path / name) for name in WAYS]
    assert_same_weights(*weights)


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize(
    ("failure", "cause"),
    [
        ("raise", "RuntimeError: process 1 was asked to fail"),
        ("SIGKILL", "SIGKILL"),
        ("SIGSTOP", "Process 1 has not responded for 40 s"),
    ],
)
def test_failure_of_one_process_ends_all_and_names_the_cause(tmp_path, name, failure, cause):
    environment = {tiny_train.FAIL_AT: "1:3", tiny_train.FAILURE: failure}
    process = start(WAYS[name], tmp_path, **environment)
    failed = tmp_path / "run" / tiny_train.FAILED
    wait_for(failed, process)
    output, _ = process.communicate(timeout=150)
    if failure == "SIGSTOP":  # the launcher needs a while to end the stopped process itself
        log = tmp_path / "run" / "log.txt"
        assert log.stat().st_mtime - failed.stat().st_mtime < 60
    by_parent = name == "started here" and failure == "SIGKILL"
    assert process.returncode == (128 + signal.SIGKILL if by_parent else 1)
    if name == "torchrun" and failure != "SIGSTOP":
        output = output[output.rindex("Root Cause") :]
    assert cause in output


def test_interrupt_of_the_program_that_started_them_makes_all_processes_save(tmp_path):
    way = WAYS["started here"]
    process = start(way, tmp_path, "SOLVER.MAX_ITER", 10_000, **{tiny_train.SECONDS: "0.2"})
    wait_for(tmp_path / "run" / tiny_train.LOSSES, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT, output[-3000:]
    last = (tmp_path / "run" / "last_checkpoint").read_text()
    assert f"Stopped by SIGINT after iteration {int(last[6:13])}" in output
