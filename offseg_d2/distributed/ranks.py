"""One process of several: its rank, how it joins the others, and what it does when one is stopped.

When a process fails, its launcher ends the others. No launcher notices a process that is stopped,
or whose machine is gone: a thread of each process therefore ends it once another one no longer
responds.
"""

import dataclasses
import logging
import os
import re
import sys
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm

from offseg_d2.config import ConfigError

logger = logging.getLogger(__name__)

JOIN_TIMEOUT = timedelta(minutes=5)
# As Detectron2's: processes may wait for the one with the largest share of an evaluation.
COLLECTIVE_TIMEOUT = timedelta(minutes=30)
# Seconds between heartbeats, and without one until a process counts as stopped. The latter is long
# enough for a heartbeat thread that waits for Python's global lock.
_PERIOD = 1.0
_SILENCE = 40.0


@dataclasses.dataclass(frozen=True)
class RankInfo:
    """One process among those of a run.

    Attributes:
        launcher: what started the processes, for messages.
        rank, world_size: index of the process, number of processes.
        local_rank, local_size: the same among those of this machine.
        address, port: of the store where the processes meet.
        holds_store: whether this process opens the store.
        attempt: how often the run was started again; processes of another attempt must not be met.
    """

    launcher: str
    rank: int
    world_size: int
    local_rank: int
    local_size: int
    address: str
    port: int
    holds_store: bool
    attempt: int = 0


def find_rank_info(environ: Mapping[str, str]) -> RankInfo | None:
    """Rank info as given by torchrun, submitit's local executor or SLURM.

    Args:
        environ: environment variables.

    Returns:
        None for a process that was started by hand.

    Raises:
        ConfigError: if the variables do not fit together.
    """
    if all(name in environ for name in _TORCHRUN):
        return _torchrun(environ)
    if environ.get("SUBMITIT_EXECUTOR") == "local":
        return _submitit_local(environ)
    # srun alone sets the number of tasks of a step. The script of a batch job, which runs once for
    # all tasks, has SLURM_PROCID and SLURM_NTASKS as well.
    if "SLURM_STEP_NUM_TASKS" in environ and "SLURM_PROCID" in environ:
        return _slurm(environ)
    return None


def restarts(environ: Mapping[str, str]) -> int:
    """Number of times the launcher has started this run again: requeued, or after a failure."""
    names = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    return max(int(environ.get(name) or 0) for name in names)


_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def _torchrun(environ: Mapping[str, str]) -> RankInfo:
    rank, world_size, local_rank, local_size = (int(environ[name]) for name in _TORCHRUN[:4])
    in_agent = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return RankInfo(
        "torchrun",
        rank,
        world_size,
        local_rank,
        local_size,
        environ["MASTER_ADDR"],
        int(environ["MASTER_PORT"]),
        holds_store=rank == 0 and not in_agent,
        attempt=restarts(environ),
    )


def _submitit_local(environ: Mapping[str, str]) -> RankInfo:
    rank, number = (int(environ[f"SUBMITIT_LOCAL_{name}"]) for name in ("GLOBALID", "NTASKS"))
    port = _port(environ["SUBMITIT_LOCAL_JOB_ID"])
    return RankInfo("submitit", rank, number, rank, number, "127.0.0.1", port, rank == 0)


def _slurm(environ: Mapping[str, str]) -> RankInfo:
    rank, local_rank = int(environ["SLURM_PROCID"]), int(environ["SLURM_LOCALID"])
    world_size = int(environ["SLURM_STEP_NUM_TASKS"])
    num_nodes = int(environ.get("SLURM_STEP_NUM_NODES") or environ["SLURM_NNODES"])
    local_size, rest = divmod(world_size, num_nodes)
    if rest or rank != int(environ["SLURM_NODEID"]) * local_size + local_rank:
        raise ConfigError(
            f"The {world_size} tasks of the SLURM step must lie on {num_nodes} nodes in blocks of "
            "equal size, but do not: use --ntasks-per-node and --distribution=block."
        )
    attempt = restarts(environ)
    return RankInfo(
        launcher="SLURM",
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        local_size=local_size,
        address=first_host(environ.get("SLURM_STEP_NODELIST") or environ["SLURM_JOB_NODELIST"]),
        port=_port(f"{environ['SLURM_JOB_ID']}.{environ.get('SLURM_STEP_ID', 0)}.{attempt}"),
        holds_store=rank == 0,
        attempt=attempt,
    )


def first_host(node_list: str) -> str:
    """The first host of a SLURM node list: ``"gpu[017-020,31],login1"`` -> ``"gpu017"``."""
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])*", node_list)
    assert first is not None  # it matches nothing at least
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first.group())


def _port(job: str) -> int:
    """A port that all processes of a job know; other jobs of the machine have others, mostly."""
    return 10000 + zlib.crc32(job.encode()) % 10000


# ---------------------------------------------------------------------- joining, running, leaving


def run_as_rank(
    info: RankInfo, on_cuda: bool, function: Callable[..., Any], args: tuple[Any, ...]
) -> Any:
    """Join the other processes, call the function, and leave them in good order.

    Args:
        info: rank of this process.
        on_cuda: whether each process has a GPU.
        function, args: what to call.

    Returns:
        what the function returns.

    Raises:
        TimeoutError: naming the processes that did not come.
    """
    store = _join(info, on_cuda)
    stopped = threading.Event()
    thread = threading.Thread(target=_heartbeat, args=(store, info, stopped), daemon=True)
    thread.start()
    try:
        result = function(*args)
        comm.synchronize()
    finally:
        stopped.set()
        thread.join()
    comm.synchronize()  # no thread needs the store any more: it may go
    dist.destroy_process_group()
    return result


def open_store(address: str, port: int, **options: Any) -> dist.TCPStore:
    """Open the store by which processes meet, or connect to it.

    Raises:
        TimeoutError: the port is taken, or the process that opens the store did not come.
    """
    try:
        return dist.TCPStore(address, port, wait_for_workers=False, **options)
    except dist.DistError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TimeoutError(
            f"The processes must be able to meet at {address}:{port}, but cannot: {reason}"
        ) from None


def _join(info: RankInfo, on_cuda: bool) -> dist.Store:
    """Make the process groups; returns a store for the heartbeats."""
    if on_cuda:
        # SLURM may show each task its own GPU only.
        torch.cuda.set_device(info.local_rank % torch.cuda.device_count())
    base = open_store(
        info.address,
        info.port,
        is_master=info.holds_store,
        timeout=JOIN_TIMEOUT,
        multi_tenant=info.launcher == "torchrun",
    )
    # A connection of its own: a client that waits blocks others.
    store = dist.PrefixStore(f"offseg_d2/{info.attempt}/heartbeat", base.clone())
    _wait_for_all(store, info)
    dist.init_process_group(
        "nccl" if on_cuda else "gloo",
        store=dist.PrefixStore(f"offseg_d2/{info.attempt}/group", base),
        rank=info.rank,
        world_size=info.world_size,
        timeout=COLLECTIVE_TIMEOUT,
    )
    comm.create_local_process_group(info.local_size)
    comm.synchronize()
    return store


def _wait_for_all(store: dist.Store, info: RankInfo) -> None:
    store.set(f"came/{info.rank}", "yes")
    keys = [f"came/{rank}" for rank in range(info.world_size)]
    try:
        store.wait(keys, JOIN_TIMEOUT)
    except dist.DistStoreError:
        absent = [str(rank) for rank, key in enumerate(keys) if not store.check([key])]
        raise TimeoutError(
            f"Process {', '.join(absent)} of {info.world_size} did not come to {info.address}:"
            f"{info.port} within {JOIN_TIMEOUT.seconds} s."
        ) from None


def _heartbeat(store: dist.Store, info: RankInfo, stopped: threading.Event) -> None:
    """Body of a thread that ends this process once another one no longer responds.

    Silence is counted in own heartbeats, so that a job suspended as a whole goes on.
    """
    neighbour = (info.rank + 1) % info.world_size
    beats = unchanged = 0
    last = b""
    try:
        while not stopped.wait(_PERIOD):
            beats += 1
            store.set(f"beats/{info.rank}", str(beats))
            key = f"beats/{neighbour}"
            beat = store.get(key) if store.check([key]) else b""
            unchanged = unchanged + 1 if beat == last else 0
            last = beat
            if unchanged * _PERIOD > _SILENCE:
                store.set(
                    "silent",
                    f"Process {neighbour} has not responded for {_SILENCE:.0f} s: "
                    "it was stopped or killed, or its machine is gone.",
                )
            if store.check(["silent"]):
                _end_process(store.get("silent").decode())
    except RuntimeError as error:
        # The process that holds the store has ended. Those that follow it do so within this time.
        if not stopped.wait(_SILENCE):
            _end_process(f"The other processes cannot be reached: {error}")


def _end_process(reason: str) -> None:
    """End at once: the main thread may be stuck in a collective operation."""
    logger.error("This process ends. %s", reason)
    print(f"error: {reason}", file=sys.stderr, flush=True)  # only the main process logs to a screen
    time.sleep(3 * _PERIOD)  # until the others have read it from the store, if this one holds it
    logging.shutdown()
    os._exit(1)
