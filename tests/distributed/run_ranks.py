"""Runs a function in several processes of this machine, forked: importing costs too much."""

import dataclasses
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from offseg_d2.distributed.ranks import RankInfo, run_as_rank


@dataclasses.dataclass
class Ended:
    """End of one process; a negative status is a signal, None means that it did not end."""

    log: str
    status: int | None
    seconds: float


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_ranks(
    directory: Path,
    function: Callable[..., object],
    *args: object,
    number: int = 2,
    seconds: float = 60.0,
    during: Callable[[list[int]], None] = lambda pids: None,
) -> list[Ended]:
    """Call ``function(*args)`` as each process of a run; all that they print is caught.

    Args:
        directory: existing folder of the logs.
        during: called with the process ids while they run.
        seconds: after which what still runs is killed.
    """
    port = free_port()
    start = time.monotonic()
    ends: dict[int, tuple[int, float]] | None = None
    pids = [_fork(directory, port, rank, number, function, args) for rank in range(number)]
    try:
        during(pids)
        ends = _wait(pids, start, seconds)
    finally:
        for pid in pids if ends is None else set(pids) - ends.keys():
            _kill(pid)
    logs = [(directory / f"rank_{rank}.log").read_text() for rank in range(number)]
    missed = (None, seconds)
    return [Ended(log, *ends.get(pid, missed)) for pid, log in zip(pids, logs, strict=True)]


def _fork(
    directory: Path, port: int, rank: int, number: int, function: Callable, args: tuple
) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        sink = os.open(directory / f"rank_{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        sys.stdout = sys.stderr = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
        torch.set_num_threads(1)
        info = RankInfo("test", rank, number, rank, number, "127.0.0.1", port, rank == 0)
        run_as_rank(info, False, function, args)
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def _wait(pids: list[int], start: float, seconds: float) -> dict[int, tuple[int, float]]:
    ends: dict[int, tuple[int, float]] = {}
    while len(ends) < len(pids) and time.monotonic() - start < seconds:
        for pid in pids:
            if pid in ends:
                continue
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                ends[pid] = (os.waitstatus_to_exitcode(status), time.monotonic() - start)
        time.sleep(0.02)
    return ends


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass
