"""Starting a run: the rank of each process, and what happens when one is stopped."""

import logging
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from detectron2.utils import comm

from offseg_d2.config import ConfigError
from offseg_d2.distributed import ranks
from offseg_d2.distributed.launch import launch
from offseg_d2.distributed.ranks import RankInfo, find_rank_info, first_host, restarts
from tests.distributed.run_ranks import run_ranks

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


# ---------------------------------------------------------------------- rank info


def test_rank_info_of_a_torchrun_process_is_read_from_its_environment():
    info = RankInfo("torchrun", 3, 4, 1, 2, "host", 29500, holds_store=False, attempt=1)
    assert find_rank_info(TORCHRUN) == info
    assert find_rank_info({**SLURM, **TORCHRUN}) == info


def test_tasks_of_a_slurm_step_meet_at_a_port_that_no_other_job_or_attempt_uses():
    info = find_rank_info(SLURM)
    assert info == RankInfo("SLURM", 2, 4, 0, 2, "node08", info.port, holds_store=False)
    first = {**SLURM, "SLURM_PROCID": "0", "SLURM_NODEID": "0"}
    assert find_rank_info(first).holds_store
    assert find_rank_info(first).port == info.port
    assert find_rank_info({**SLURM, "SLURM_JOB_ID": "4712"}).port != info.port
    again = {**SLURM, "SLURM_RESTART_COUNT": "1"}
    assert find_rank_info(again).port != info.port
    assert (restarts(SLURM), restarts(again)) == (0, 1)


def test_script_of_a_batch_job_outside_srun_is_one_process():
    assert find_rank_info({key: SLURM[key] for key in SLURM if "STEP" not in key}) is None


@pytest.mark.parametrize("wrong", [{"SLURM_NODEID": "0"}, {"SLURM_STEP_NUM_TASKS": "3"}])
def test_slurm_tasks_that_are_not_in_blocks_of_equal_size_are_refused(wrong):
    with pytest.raises(ConfigError, match="--distribution=block"):
        find_rank_info({**SLURM, **wrong})


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


# ---------------------------------------------------------------------- running


def work(mode: str) -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, force=True)
    total = torch.tensor(comm.get_rank() + 1)
    dist.all_reduce(total)
    print(f"rank {comm.get_rank()}, local {comm.get_local_rank()}, sum {int(total)}")
    if mode == "stop" and comm.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    if mode == "wait":
        time.sleep(3)
    dist.all_reduce(total)


def wait_for_logs(directory: Path, of_ranks: tuple[int, ...], text: str) -> None:
    end = time.monotonic() + 50
    while not all(text in (directory / f"rank_{rank}.log").read_text() for rank in of_ranks):
        assert time.monotonic() < end, f"no {text!r} in the logs"
        time.sleep(0.1)


def test_processes_exchange_tensors_and_end_in_good_order(tmp_path):
    ended = run_ranks(tmp_path, work, "nothing")
    assert [end.status for end in ended] == [0, 0], ended
    for rank, end in enumerate(ended):
        assert f"rank {rank}, local {rank}, sum 3" in end.log
        assert "ends" not in end.log


@pytest.fixture
def short_silence(monkeypatch) -> None:
    monkeypatch.setattr(ranks, "_SILENCE", 2.0)
    monkeypatch.setattr(ranks, "_PERIOD", 0.2)


def test_stopped_process_ends_the_others_and_is_named_in_their_logs(tmp_path, short_silence):
    def during(pids: list[int]) -> None:
        wait_for_logs(tmp_path, (0, 2), "Process 1 has not responded for 2 s")
        os.kill(pids[1], signal.SIGKILL)

    ended = run_ranks(tmp_path, work, "stop", number=3, during=during)
    assert [end.status for end in ended] == [1, -signal.SIGKILL, 1], ended


def test_processes_suspended_together_go_on(tmp_path, short_silence):
    def signal_all(pids: list[int], number: int) -> None:
        for pid in pids:
            os.kill(pid, number)

    def during(pids: list[int]) -> None:
        wait_for_logs(tmp_path, (0, 1), "sum 3")
        signal_all(pids, signal.SIGSTOP)
        time.sleep(4)
        signal_all(pids, signal.SIGCONT)

    ended = run_ranks(tmp_path, work, "wait", during=during)
    assert [end.status for end in ended] == [0, 0], ended
