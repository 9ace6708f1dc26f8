"""Jobs without a cluster: what is asked for, what is kept, and what a task does on signals."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import submitit
import yaml
from submitit.core.utils import FailedJobError

from offseg_d2.config import ConfigError
from offseg_d2.distributed import slurm_job
from offseg_d2.distributed.slurm import Resources, follow, minutes, submission_script, submit
from offseg_d2.distributed.slurm_job import TrainingJob, make_job_folder, source_revision
from tests.engine.tiny import make_cfg

SCRIPT = """
import os, sys, time
def main(arguments):
    print("arguments", *arguments, "rank", os.environ.get("SUBMITIT_LOCAL_GLOBALID"), flush=True)
    if "fail" in arguments:
        try:
            raise ValueError("a key is wrong")
        except ValueError:
            sys.exit(2)
    if "--resume" not in arguments and "slow" in arguments:
        time.sleep(60)
    return {"arguments": arguments}
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90),
        ("24:00:00", 1440),
        ("1:30", 2),
        ("1-06", 1800),
        ("1-06:30", 1830),
        ("2-00:00:01", 2881),
    ],
)
def test_time_limits_are_read_as_slurm_reads_them(text, expected):
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["", "a day", "0", "1:2:3:4", "00:00:30"])
def test_time_limit_that_slurm_would_not_take_is_refused(text):
    with pytest.raises(ConfigError, match="`--time` must be"):
        minutes(text)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"nodes": 0}, "`--nodes` must be at least 1, but is 0"),
        ({"gpus_per_node": -1}, "`--gpus-per-node` must be at least 0, but is -1"),
        ({"processes_per_node": 0}, "`--processes-per-node` must be at least 1"),
        ({"cpus_per_task": 0}, "`--cpus-per-task` must be at least 1"),
        ({"time": "2", "signal_seconds": 120}, "`--signal-seconds` must be less than .* 2, but"),
    ],
)
def test_resources_that_no_job_can_have_are_refused(numbers, message):
    with pytest.raises(ConfigError, match=message):
        Resources(**numbers)


def test_several_nodes_of_one_machine_are_refused(tmp_path):
    job = TrainingJob(sys.argv[0], ())
    with pytest.raises(ConfigError, match="`--nodes` must be 1 with --cluster local, but is 2"):
        submit(tmp_path, Resources(nodes=2), [job], cluster="local")


def test_script_asks_for_what_the_command_line_says():
    resources = Resources(
        nodes=2, gpus_per_node=8, partition="big", time="12:00:00", constraint="a100", account="me"
    )
    script = submission_script(Path("/shared/run"), resources)
    for part in (
        *("nodes=2", "gpus-per-node=8", "ntasks-per-node=8", "partition=big", "time=720"),
        *("constraint=a100", "account=me", "requeue", "signal=USR2@120", "cpus-per-task=8"),
    ):
        assert re.search(rf"^#SBATCH --{part}$", script, flags=re.MULTILINE), part
    assert "--comment" not in script
    assert "/shared/run/%j_%t_log.out" in script


def test_job_without_gpus_asks_for_none():
    script = submission_script(Path("/shared/run"), Resources(gpus_per_node=0))
    assert "gpus" not in script
    assert "#SBATCH --ntasks-per-node=1" in script


def test_preempted_training_resumes_and_preempted_evaluation_begins_again():
    training = TrainingJob("train.py", ("--config-file", "a"))
    again = training.checkpoint().function
    assert again.arguments == ("--resume", "--config-file", "a")
    assert again.checkpoint().function == again
    evaluation = TrainingJob("train.py", ("--eval-only",))
    assert evaluation.checkpoint().function == evaluation


def test_job_folder_keeps_configuration_command_revision_and_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.setenv("MY_PASSWORD", "secret")
    cfg = make_cfg(tmp_path, "SOLVER.MAX_ITER", 17)
    folder = make_job_folder(str(tmp_path), cfg, ["submit.py", "--comment", "two words"])
    other = make_job_folder(str(tmp_path), cfg, ["submit.py"])
    assert folder != other
    assert yaml.safe_load((folder / "config.yaml").read_text())["SOLVER"]["MAX_ITER"] == 17
    assert (folder / "command.txt").read_text() == "submit.py --comment 'two words'\n"
    assert (folder / "revision.txt").read_text().strip() == source_revision()
    environment = (folder / "environment.txt").read_text()
    assert "NCCL_DEBUG=INFO" in environment
    assert re.search(r"^torch==\d", environment, flags=re.MULTILINE)
    assert "secret" not in environment


def test_program_outside_of_git_has_no_revision(tmp_path, monkeypatch):
    monkeypatch.setattr(slurm_job, "SOURCE_ROOT", tmp_path)
    assert source_revision() == "not a git repository"


# ---------------------------------------------------------------------- submitit's local cluster


@pytest.fixture
def submit_here(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)

    def call(*arguments: str, tasks: int = 1) -> submitit.Job:
        resources = Resources(gpus_per_node=0, processes_per_node=tasks, time="60")
        job = TrainingJob(str(tmp_path / "script.py"), arguments)
        return submit(tmp_path / "jobs", resources, [job], cluster="local")[0]

    return call


def test_local_job_returns_what_the_script_returns_and_shows_its_log(submit_here):
    seen = []
    result = follow(submit_here("a", "b"), seen.append, seconds=0.2)
    assert result == {"arguments": ["a", "b"]}
    assert "arguments a b rank 0" in "".join(seen)


def test_mistake_of_the_user_reaches_the_one_who_waits(submit_here):
    with pytest.raises(FailedJobError, match=r"a key is wrong \(exit status 2\)"):
        follow(submit_here("fail"), lambda text: None, seconds=0.2)


@pytest.mark.slow
def test_preempted_local_job_goes_on_by_itself_with_resume(submit_here):
    job = submit_here("slow")
    end = time.monotonic() + 120
    while not (job.paths.stdout.exists() and "arguments slow" in job.stdout()):
        assert time.monotonic() < end
        time.sleep(0.2)
    for child in children_of(int(job.job_id)):
        os.kill(child, signal.SIGUSR2)
    assert follow(job, lambda text: None, seconds=0.2) == {"arguments": ["--resume", "slow"]}


def children_of(pid: int) -> list[int]:
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True
    )
    return [int(word) for word in listed.stdout.split()]


def test_cluster_without_slurm_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", classmethod(lambda cls: -1))
    with pytest.raises(ConfigError, match="`--cluster` must be local"):
        submit(tmp_path, Resources(), [TrainingJob(sys.argv[0], ())])
