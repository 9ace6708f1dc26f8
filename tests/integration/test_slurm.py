"""Jobs on a real SLURM: two nodes train and evaluate, are preempted, fail and are cancelled."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import submitit
import torch
from submitit.core.utils import FailedJobError, UncompletedJobError

from offseg_d2.distributed.slurm import Resources, follow, submit
from offseg_d2.distributed.slurm_job import TrainingJob, make_job_folder
from tests.common import ROOT
from tests.engine.tiny import assert_same_weights, make_cfg
from tests.integration import tiny_train

pytestmark = pytest.mark.slurm

TIMEOUT = 240.0
LAST = 19  # index of the last iteration
TWO_NODES = Resources(nodes=2, gpus_per_node=0, cpus_per_task=1, time="60")


SCRIPT = Path(__file__).with_name("slurm_local.sh")
PACKAGES = "munge slurm-client slurmctld slurmd slurmdbd mariadb-server-core"
# Where this variable is set, absent programs are a failure instead of a reason to skip.
REQUIRED = "OFFSEG_REQUIRE_SLURM"


def slurm_local(command: str, directory: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "SLURM_LOCAL_DIR": directory}
    return subprocess.run(
        [str(SCRIPT), command], env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster of two nodes on this machine, stopped in the end."""
    # /tmp: the path of a socket may not be long
    with tempfile.TemporaryDirectory(
        prefix="slurm-", dir="/tmp", ignore_cleanup_errors=True
    ) as root:
        if slurm_local("missing", root).returncode:
            absent = pytest.fail if os.environ.get(REQUIRED) else pytest.skip
            absent(f"SLURM is missing: apt-get install -y --no-install-recommends {PACKAGES}")
        with pytest.MonkeyPatch.context() as patch:
            try:
                started = slurm_local("start", root)
                assert started.returncode == 0, f"SLURM did not start:\n{started.stderr[-4000:]}"
                for line in started.stdout.splitlines():
                    patch.setenv(*line.removeprefix("export ").split("=", 1))
                patch.setenv("OMP_NUM_THREADS", "1")
                patch.setattr(submitit.SlurmJob, "_results_timeout_s", 3)
                yield
            finally:
                slurm_local("stop", root)


Submit = Callable[..., submitit.Job]


@pytest.fixture(scope="module")
def submit_tiny(cluster, tmp_path_factory) -> Submit:
    """Submits a training of the tiny model on two nodes."""

    def submit_with(directory: Path, *options: Any, **environment: str) -> submitit.Job:
        cfg = make_cfg(directory, "SOLVER.MAX_ITER", LAST + 1, *options)
        folder = make_job_folder(str(directory), cfg, sys.argv)
        arguments = ("--config-file", str(folder / "config.yaml"))
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            (job,) = submit(folder, TWO_NODES, [TrainingJob(tiny_train.__file__, arguments)])
        return job

    return submit_with


@pytest.fixture(scope="module")
def runs(submit_tiny, tmp_path_factory) -> dict[str, tuple[Path, submitit.Job]]:
    """Jobs of all tests, which run side by side because starting them takes longest.

    One begins after the other: slurmd 22.05 may end when several steps are launched at one moment.
    """
    root = tmp_path_factory.mktemp("runs")
    slow = {tiny_train.SECONDS: "1"}
    endless = ("SOLVER.MAX_ITER", 10_000)
    kinds: dict[str, tuple[tuple, dict[str, str]]] = {
        "preempted": ((), slow),
        "whole": ((), {}),
        "cancelled": (endless, slow),
        "failing": ((), {tiny_train.FAIL_AT: "1:3"}),
    }
    jobs = {}
    for kind, (options, environment) in kinds.items():
        job = submit_tiny(root / kind, *options, **environment)
        wait_until(partial(has_begun, root / kind, job), f"job {job.job_id} on both nodes")
        jobs[kind] = root / kind, job
    return jobs


def has_begun(directory: Path, job: submitit.Job) -> bool:
    """Return True if both tasks of a job write their logs."""
    names = {path.name for path in directory.glob(f"jobs/*/{job.job_id}_*_log.out")}
    return names == {f"{job.job_id}_{task}_log.out" for task in range(2)}


def result_of(job: submitit.Job) -> Any:
    """Return a job's result, with its log in the test's output; fails after a while."""
    end = time.monotonic() + TIMEOUT

    def write(text: str) -> None:
        print(text, end="")
        assert time.monotonic() < end, f"job {job.job_id} did not end"

    return follow(job, write, seconds=0.5)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.3)


def losses_in(directory: Path) -> list[str]:
    """Lines of iteration and loss, in the order in which they were run."""
    path = directory / tiny_train.LOSSES
    return path.read_text().splitlines() if path.exists() else []


def wait_for_iteration(directory: Path, iteration: int) -> None:
    wait_until(lambda: len(losses_in(directory)) > iteration, f"iteration {iteration}")


def final_weights(directory: Path) -> dict[str, torch.Tensor]:
    return torch.load(directory / "model_final.pth", weights_only=True)["model"]


def test_preempted_job_is_queued_again_and_ends_like_the_undisturbed_one(runs):
    directory, job = runs["preempted"]
    wait_for_iteration(directory, 3)
    subprocess.run(["scancel", "--signal=USR2", job.job_id], check=True)
    result = result_of(job)
    undisturbed, other = runs["whole"]
    assert result == result_of(other)
    log = (directory / "log.txt").read_text()
    assert log.count("Stopped by SIGUSR2 after iteration") == 1
    assert log.count("Continuing at iteration") == 1
    assert losses_in(directory) == losses_in(undisturbed)
    assert_same_weights(final_weights(directory), final_weights(undisturbed))
    ranks = [(directory / f"log.txt{suffix}").read_text() for suffix in ("", ".rank1")]
    stops = [line.split("after iteration ")[1] for log in ranks for line in log.splitlines()
             if "Stopped by" in line]  # fmt: skip
    assert len(stops) == 2
    assert stops[0] == stops[1]


def test_two_nodes_train_and_evaluate(runs):
    directory, job = runs["whole"]
    assert result_of(job)["sem_seg"]["mIoU"] > 0
    assert len(losses_in(directory)) == LAST + 1
    assert "Process 1 of 2" in (directory / "log.txt.rank1").read_text()
    assert all(job.task(rank).paths.stdout.exists() for rank in range(2))
    kept = {path.name for path in job.paths.folder.iterdir()}
    assert {"config.yaml", "command.txt", "revision.txt", "environment.txt"} <= kept


def test_evaluation_on_two_nodes_repeats_the_result_of_the_training(runs, tmp_path):
    directory, job = runs["whole"]
    expected = result_of(job)["sem_seg"]
    config = job.paths.folder / "config.yaml"
    command = [sys.executable, str(ROOT / "tools" / "submit_slurm.py"), "--config-file", config]
    command += ["--script", tiny_train.__file__, "--nodes", 2, "--gpus-per-node", 0]
    command += ["--cpus-per-task", 1, "--eval-only", "--wait", "OUTPUT_DIR", tmp_path]
    command += ["MODEL.WEIGHTS", directory / "model_final.pth"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    finished = subprocess.run(
        [str(part) for part in command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert f"'mIoU': {expected['mIoU']!r}" in finished.stdout.splitlines()[-1]


def test_failing_task_reports_in_its_log_and_to_the_one_who_waits(runs):
    directory, job = runs["failing"]
    with pytest.raises(FailedJobError, match="RuntimeError: process 1 was asked to fail"):
        result_of(job)
    assert "RuntimeError: process 1 was asked to fail" in (directory / "log.txt.rank1").read_text()


def test_cancelled_job_saves_and_ends(runs):
    directory, job = runs["cancelled"]
    wait_for_iteration(directory, 3)
    subprocess.run(["scancel", job.job_id], check=True)
    with pytest.raises(UncompletedJobError):
        result_of(job)
    log = (directory / "log.txt").read_text()
    assert f"Stopped by {signal.Signals.SIGTERM.name} after iteration" in log
    last = (directory / "last_checkpoint").read_text()
    data = torch.load(directory / last, weights_only=True)
    assert data["iteration"] >= 3
    state = ["squeue", "--noheader", "--format=%T", "--jobs", job.job_id]
    wait_until(
        lambda: not subprocess.run(state, capture_output=True, text=True).stdout.strip(),
        "the job leaves the queue",
    )
