"""One entry for every way to start a run.

The same script runs as one process, as N processes of this machine that it starts itself
(``--num-gpus N``, or ``--num-gpus 0 --num-processes N`` on the CPU), under ``torchrun``, and as
tasks of SLURM or submitit. Detectron2's ``launch`` knows only the first two, and takes NCCL for
CPU tensors wherever there is CUDA.

When a process fails, what started it ends the others and reports the cause.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
import torch.multiprocessing as mp
from torch.distributed.elastic.multiprocessing.errors import record

from offseg_d2.config import ConfigError

from .ranks import RankInfo, find_rank_info, open_store, run_as_rank

# Seconds that the other processes have to end by themselves after a failure.
_GRACE = 10.0
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


def launch(
    function: Callable[..., Any],
    args: tuple[Any, ...] = (),
    *,
    device: str = "cuda",
    num_gpus: int = 1,
    num_processes: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
) -> Any:
    """Call ``function(*args)`` in every process of the run.

    Args:
        function: importable by name, as the processes that are started here import it.
        args: arguments that can be pickled.
        device: ``MODEL.DEVICE``; NCCL connects CUDA devices, gloo all others.
        num_gpus: processes of this machine, one for each GPU; 0 uses the CPU.
        num_processes: processes of this machine where ``num_gpus`` is 0.
        num_machines, machine_rank, dist_url: as of Detectron2's ``launch``, for machines on each
            of which the script is started by hand.

    Returns:
        what the function returns; None where other processes were started.

    Raises:
        ConfigError: if the numbers do not fit together or to the launcher.
        SystemExit: with the status of the first process that failed, if it was started here.
    """
    number = _processes_per_machine(num_gpus, num_processes)
    on_cuda = device.startswith("cuda") and num_gpus > 0 and torch.cuda.is_available()
    info = find_rank_info(os.environ)
    if info is not None and info.world_size > 1:
        if number > 1 or num_machines > 1:
            raise ConfigError(
                f"`--num-gpus`, `--num-processes` and `--num-machines` must be left out under "
                f"{info.launcher}, which has started {info.world_size} processes already."
            )
        return record(run_as_rank)(info, on_cuda, function, args)
    if number * num_machines == 1:
        return function(*args)
    if on_cuda and number > torch.cuda.device_count():
        raise ConfigError(
            f"`--num-gpus` must be at most {torch.cuda.device_count()}, the GPUs of this machine, "
            f"but is {number}."
        )
    _start_processes(number, num_machines, machine_rank, dist_url, (on_cuda, function, args))
    return None


def _processes_per_machine(num_gpus: int, num_processes: int) -> int:
    if num_gpus < 0 or num_processes < 1:
        raise ConfigError(
            "`--num-gpus` must be at least 0 and `--num-processes` at least 1, "
            f"but are {num_gpus} and {num_processes}."
        )
    if num_gpus > 0 and num_processes > 1:
        raise ConfigError(
            f"`--num-processes` must be used with --num-gpus 0, but --num-gpus is {num_gpus}: "
            "each GPU has a process of its own."
        )
    return num_gpus or num_processes


# ---------------------------------------------------------------------- starting processes


def _start_processes(
    number: int, num_machines: int, machine_rank: int, dist_url: str, work: tuple[Any, ...]
) -> None:
    """Start the processes of this machine and wait for them.

    The store is held here, so that it outlives each of them.
    """
    address, port = "127.0.0.1", 0
    if num_machines > 1:
        scheme, _, rest = dist_url.partition("://")
        address, _, text = rest.rpartition(":")
        if scheme != "tcp" or not address or not text.isdigit():
            raise ConfigError(
                f"`--dist-url` must be tcp://HOST:PORT for several machines, but is {dist_url!r}."
            )
        port = int(text)
    store = None
    if machine_rank == 0:
        store = open_store(address, port, is_master=True)
        port = store.port
    # Otherwise each process would use all cores.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // number)))
    world_size, first = num_machines * number, machine_rank * number
    infos = [
        RankInfo("this program", first + i, world_size, i, number, address, port, holds_store=False)
        for i in range(number)
    ]
    context = mp.start_processes(_child, (infos, work), nprocs=number, join=False)
    with _forwarding_signals(context.pids()):
        try:
            while not context.join(timeout=1.0, grace_period=_GRACE):
                pass
        except mp.ProcessRaisedException as error:
            print(error, file=sys.stderr)
            sys.exit(1)
        except mp.ProcessExitedException as error:  # it has reported already, or was killed
            status = error.exit_code
            if status < 0:
                print(f"error: {error}", file=sys.stderr)
            sys.exit(status if status >= 0 else 128 - status)


def _child(local_rank: int, infos: list[RankInfo], work: tuple[Any, ...]) -> None:
    # A group of its own: a Ctrl-C of the terminal then comes once, through the parent.
    os.setpgid(0, 0)
    run_as_rank(infos[local_rank], *work)


@contextlib.contextmanager
def _forwarding_signals(pids: list[int]) -> Iterator[None]:
    """Pass on to the children what asks this process to stop; they decide how."""

    def forward(number: int, frame: FrameType | None) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    previous = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
