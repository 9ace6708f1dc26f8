"""One entry for every way of starting a run.

The same script runs as one process, as N processes of this machine that it starts itself
(``--num-gpus N``, or ``--num-gpus 0 --num-processes N`` on the CPU), under ``torchrun``, and as
tasks of SLURM or submitit. Differences from Detectron2's ``launch``: it knows only the first two,
takes NCCL for CPU tensors wherever there is CUDA, and leaves the other processes waiting when one
fails.
"""

import contextlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm
from torch.distributed.elastic.multiprocessing.errors import record

from offseg_d2.config import ConfigError

from .failure_watch import FailureWatch
from .rank_info import Place, find_place

logger = logging.getLogger(__name__)

JOIN_TIMEOUT = timedelta(minutes=5)
# As Detectron2's: processes may wait for the one with the largest share of an evaluation.
COLLECTIVE_TIMEOUT = timedelta(minutes=30)
_SHUTDOWN_SECONDS = 20.0
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)

_watch: FailureWatch | None = None


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
    place = find_place(os.environ)
    if place is not None and place.world_size > 1:
        if number > 1 or num_machines > 1:
            raise ConfigError(
                f"`--num-gpus`, `--num-processes` and `--num-machines` must be left out under "
                f"{place.launcher}, which has started {place.world_size} processes already."
            )
        return record(run_in_place)(place, on_cuda, function, args)
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


# ---------------------------------------------------------------------- one process of several


def run_in_place(
    place: Place, on_cuda: bool, function: Callable[..., Any], args: tuple[Any, ...]
) -> Any:
    """Join the other processes, call the function, and leave them in good order.

    Args:
        place: which process this is.
        on_cuda: whether each process has a GPU.
        function, args: what to call.

    Returns:
        what the function returns.

    Raises:
        TimeoutError: naming the processes that did not come.
    """
    store = _join(place, on_cuda)
    watch = _start_watch(store, place)
    try:
        result = function(*args)
        comm.synchronize()
    except SystemExit as stop:
        if is_failure(stop):
            watch.report(_message_of_exit(stop))
        watch.stop()
        raise
    except Exception:
        watch.report(traceback.format_exc())
        raise
    watch.stop()
    comm.synchronize()  # nobody watches any more: now the store may go
    dist.destroy_process_group()
    return result


def is_failure(stop: SystemExit) -> bool:
    """Whether a process that leaves like this has failed, rather than obeyed a signal."""
    return isinstance(stop.code, str) or 0 < (stop.code or 0) < 128


def _message_of_exit(stop: SystemExit) -> str:
    cause = stop.__cause__ or stop.__context__
    text = "".join(traceback.format_exception(cause)).rstrip() if cause else stop
    return f"{text} (exit status {stop.code})"


def end_watch() -> None:
    """Stop watching the other processes, because the run ends here by agreement of all."""
    if _watch is not None:
        _watch.stop()


def _start_watch(store: dist.Store, place: Place) -> FailureWatch:
    global _watch
    _watch = FailureWatch(store, place.rank, place.world_size)
    _watch.start()
    return _watch


def _join(place: Place, on_cuda: bool) -> dist.Store:
    """Make the process groups; returns a store for the failure watch."""
    if on_cuda:
        # SLURM may show each task its own GPU only.
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
    base = dist.TCPStore(
        place.address,
        place.port,
        is_master=place.holds_store,
        timeout=JOIN_TIMEOUT,
        wait_for_workers=False,
        multi_tenant=place.launcher == "torchrun",
    )
    watched = dist.PrefixStore(f"offseg_d2/{place.attempt}/watch", base.clone())
    _wait_for_all(watched, place)
    dist.init_process_group(
        "nccl" if on_cuda else "gloo",
        store=dist.PrefixStore(f"offseg_d2/{place.attempt}/group", base),
        rank=place.rank,
        world_size=place.world_size,
        timeout=COLLECTIVE_TIMEOUT,
    )
    comm.create_local_process_group(place.local_size)
    comm.synchronize()
    return watched


def _wait_for_all(store: dist.Store, place: Place) -> None:
    store.set(f"came/{place.rank}", "yes")
    keys = [f"came/{rank}" for rank in range(place.world_size)]
    try:
        store.wait(keys, JOIN_TIMEOUT)
    except dist.DistStoreError:
        absent = [str(rank) for rank, key in enumerate(keys) if not store.check([key])]
        raise TimeoutError(
            f"Process {', '.join(absent)} of {place.world_size} did not come to {place.address}:"
            f"{place.port} within {JOIN_TIMEOUT.seconds} s."
        ) from None


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
        store = dist.TCPStore(address, port, is_master=True, wait_for_workers=False)
        port = store.port
    # Otherwise each process would use all cores.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // number)))
    arguments = (number, num_machines, machine_rank, address, port, work)
    context = mp.start_processes(_child, arguments, nprocs=number, join=False)
    with _forwarding_signals([process.pid for process in context.processes]):
        try:
            while not context.join(timeout=1.0, grace_period=_SHUTDOWN_SECONDS):
                pass
        except mp.ProcessRaisedException as error:
            print(error, file=sys.stderr)
            sys.exit(1)
        except mp.ProcessExitedException as error:  # it has reported already, or was killed
            status = error.exit_code
            if status < 0:
                print(f"error: {error}", file=sys.stderr)
            sys.exit(status if status >= 0 else 128 - status)


def _child(
    local_rank: int,
    number: int,
    num_machines: int,
    machine_rank: int,
    address: str,
    port: int,
    work: tuple[Any, ...],
) -> None:
    # A group of its own: a Ctrl-C of the terminal then comes once, through the parent.
    os.setpgid(0, 0)
    place = Place(
        launcher="this program",
        rank=machine_rank * number + local_rank,
        world_size=num_machines * number,
        local_rank=local_rank,
        local_size=number,
        address=address,
        port=port,
        holds_store=False,
    )
    run_in_place(place, *work)


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
