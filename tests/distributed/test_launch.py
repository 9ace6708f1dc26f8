"""Starting a run: which process is which, and what happens when one of them fails."""

import logging
import os
import signal
import sys
import time

import pytest
import torch
import torch.distributed as dist
from detectron2.utils import comm

from offseg_d2.config import ConfigError
from offseg_d2.distributed.launch import launch
from offseg_d2.distributed.rank_info import find_place, first_host, restarts
from tests.distributed.ranks import run_ranks

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "host",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCHELASTIC_RESTART_COUNT": "1",
}
SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NODELIST": "node[07-09,12]",
    "SLURM_STEP_NODELIST": "node[08-09]",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_NTASKS": "4",
    "SLURM_NNODES": "2",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
}


# ---------------------------------------------------------------------- places


def test_place_of_a_torchrun_process_is_read_from_its_environment():
    place = find_place(TORCHRUN)
    assert (place.rank, place.world_size, place.local_rank, place.local_size) == (3, 4, 1, 2)
    assert (place.address, place.port, place.attempt) == ("host", 29500, 1)
    assert not place.holds_store  # the agent does


def test_place_of_a_slurm_task_is_read_from_its_environment():
    place = find_place(SLURM)
    assert (place.rank, place.world_size, place.local_rank, place.local_size) == (2, 4, 0, 2)
    assert place.address == "node08"
    assert not place.holds_store
    assert find_place({**SLURM, "SLURM_PROCID": "0", "SLURM_NODEID": "0"}).holds_store


def test_requeued_job_meets_at_another_port_than_what_may_be_left_of_the_old_one():
    again = {**SLURM, "SLURM_RESTART_COUNT": "1"}
    assert find_place(again).port != find_place(SLURM).port
    assert restarts(again) == 1
    assert restarts(SLURM) == 0


def test_all_tasks_of_a_slurm_step_meet_at_one_port():
    other = {**SLURM, "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NODEID": "0"}
    assert find_place(other).port == find_place(SLURM).port
    assert find_place({**SLURM, "SLURM_JOB_ID": "4712"}).port != find_place(SLURM).port


def test_script_of_a_batch_job_outside_srun_is_one_process():
    inside_batch = {key: value for key, value in SLURM.items() if "STEP" not in key}
    assert find_place(inside_batch) is None


def test_torchrun_inside_a_slurm_step_goes_by_torchrun():
    assert find_place({**SLURM, **TORCHRUN}).launcher == "torchrun"


@pytest.mark.parametrize("wrong", [{"SLURM_NODEID": "0"}, {"SLURM_STEP_NUM_TASKS": "3"}])
def test_slurm_tasks_that_are_not_in_blocks_of_equal_size_are_refused(wrong):
    with pytest.raises(ConfigError, match="--distribution=block"):
        find_place({**SLURM, **wrong})


@pytest.mark.parametrize(
    ("node_list", "host"),
    [
        ("gpu1", "gpu1"),
        ("a,b", "a"),
        ("gpu[017-020,31],login1", "gpu017"),
        ("r[1-2]n[03,5]", "r1n03"),
        ("127.0.0.[1-2]", "127.0.0.1"),
    ],
)
def test_first_host_of_a_node_list(node_list, host):
    assert first_host(node_list) == host


# ---------------------------------------------------------------------- numbers of processes


def test_one_process_calls_the_function_here_and_returns_its_result(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert launch(lambda *args: (args, dist.is_initialized()), (1, 2)) == ((1, 2), False)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"num_gpus": 2, "num_processes": 2}, "--num-processes` must be used with --num-gpus 0"),
        ({"num_gpus": -1}, "--num-gpus` must be at least 0"),
        ({"num_gpus": 0, "num_processes": 0}, "--num-processes` at least 1"),
        ({"num_machines": 2}, "--dist-url` must be tcp://HOST:PORT"),
    ],
)
def test_numbers_that_do_not_fit_together_are_refused(numbers, message):
    with pytest.raises(ConfigError, match=message):
        launch(print, **numbers)


def test_asking_for_processes_under_a_launcher_that_has_started_them_is_refused(monkeypatch):
    for key, value in TORCHRUN.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ConfigError, match="must be left out under torchrun, which has started 4"):
        launch(print, num_gpus=0, num_processes=2)


# ---------------------------------------------------------------------- failures


def work(mode: str) -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, force=True)
    total = torch.tensor(comm.get_rank() + 1)
    dist.all_reduce(total)
    print(f"rank {comm.get_rank()}, local {comm.get_local_rank()}, sum {int(total)}")
    if comm.get_rank() == 1:
        fail(mode)
    if mode == "raise":  # a healthy process that is not waiting for the others
        time.sleep(60)
    if mode != "nothing":
        dist.all_reduce(total)


def fail(mode: str) -> None:
    if mode in ("raise", "raise_while_waited_for"):
        raise RuntimeError("rank 1 has a bug")
    if mode == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "user_error":
        try:
            raise ValueError("a key has a wrong value")
        except ValueError:
            sys.exit(2)


def test_processes_exchange_tensors_and_end_in_good_order(tmp_path):
    ended = run_ranks(tmp_path, work, "nothing")
    assert [end.status for end in ended] == [0, 0], ended
    for rank, end in enumerate(ended):
        assert f"rank {rank}, local {rank}, sum 3" in end.log
        assert "failed" not in end.log


@pytest.mark.parametrize(
    ("mode", "statuses", "message"),
    [
        ("raise", [1, 1], "RuntimeError: rank 1 has a bug"),
        ("raise_while_waited_for", [1, 1], "RuntimeError: rank 1 has a bug"),
        ("user_error", [1, 2], "a key has a wrong value"),
    ],
)
def test_failure_of_one_process_ends_all_with_its_message_in_every_log(
    tmp_path, mode, statuses, message
):
    ended = run_ranks(tmp_path, work, mode)
    assert [end.status for end in ended] == statuses, ended
    assert max(end.seconds for end in ended) < 30
    assert "This process ends because another one failed." in ended[0].log
    assert "Process 1 failed:" in ended[0].log
    assert message in ended[0].log
    assert 'test_launch.py", line' in ended[0].log  # the stack of calls
    if mode != "user_error":  # it is reported by the command line
        assert message in ended[1].log


def test_process_killed_from_outside_is_named_by_the_others(tmp_path):
    ended = run_ranks(tmp_path, work, "kill")
    assert [end.status for end in ended] == [1, -signal.SIGKILL], ended
    assert ended[0].seconds < 60
    assert "process 1: killed" in ended[0].log
