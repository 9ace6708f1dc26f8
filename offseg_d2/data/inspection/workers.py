"""A function on many tasks in processes, of which any may die.

When one process of a pool is killed, for want of memory or by a fault in a C library, the pool
loses all tasks under way and does not know which one was the cause. So tasks come in blocks, and
those of a block that breaks are done again, each in a process of its own.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import cv2

# Forked processes share what is loaded already; importing it again takes seconds each.
_CONTEXT = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
_BLOCK = 32  # tasks of each process in a block
# So many tasks lost one after the other are no fault of the tasks.
_MAX_LOST_IN_A_ROW = 5


class WorkerDeath(NamedTuple):
    """Stands in for a result: the process died each time it had this task."""

    reason: str  # such as "killed by SIGSEGV"


class WorkersError(OSError):
    """Processes keep dying, whatever they are given."""


def run_in_workers(
    function: Callable[[Any], Any], tasks: Sequence[Any], workers: int
) -> Iterator[Any]:
    """Call ``function`` on each task.

    Args:
        function: must not raise; it and the tasks must be picklable where processes are spawned.
        tasks: its arguments.
        workers: number of processes; 0 calls it in this one.

    Yields:
        result of each task or :class:`WorkerDeath`, in their order.

    Raises:
        WorkersError: see there.
        OSError: no process can be started.
    """
    if workers == 0:
        yield from map(function, tasks)
        return
    blocks = [tasks[i : i + _BLOCK * workers] for i in range(0, len(tasks), _BLOCK * workers)]
    while blocks:
        with ProcessPoolExecutor(workers, _CONTEXT, initializer=_prepare_process) as pool:
            try:
                while blocks:
                    yield from list(pool.map(function, blocks[0]))
                    blocks.pop(0)
            except BrokenProcessPool:
                pass  # which no pool survives
        if blocks:
            yield from _run_one_by_one(function, blocks.pop(0), workers)


def _run_one_by_one(
    function: Callable[[Any], Any], tasks: Sequence[Any], workers: int
) -> Iterator[Any]:
    """Call ``function`` on each task in a process of its own, in a second one if that dies."""
    lost_in_a_row = 0
    for task in tasks:
        result = _run_alone(function, task)
        if isinstance(result, WorkerDeath):
            result = _run_alone(function, task)
        lost_in_a_row = lost_in_a_row + 1 if isinstance(result, WorkerDeath) else 0
        if lost_in_a_row == _MAX_LOST_IN_A_ROW:
            raise WorkersError(
                f"Worker processes keep dying (the last one was {result.reason}); is there memory "
                f"for {workers} of them? `--workers` sets their number."
            )
        yield result


def _run_alone(function: Callable[[Any], Any], task: Any) -> Any:
    pipe, far_end = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_send_result, args=(function, task, far_end), daemon=True)
    process.start()
    far_end.close()  # held by the process alone, the pipe breaks when it dies
    try:
        return pipe.recv()
    except EOFError:
        process.join()
        return WorkerDeath(_describe_end(process.exitcode or 0))
    finally:
        process.join()


def _send_result(function: Callable[[Any], Any], task: Any, pipe: Connection) -> None:
    _prepare_process()
    pipe.send(function(task))


def _prepare_process() -> None:
    """Leave interrupts to the main process, and end with it, be it killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    cv2.setNumThreads(0)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _describe_end(exit_code: int) -> str:
    if exit_code >= 0:
        return f"ended with status {exit_code}"
    try:
        return f"killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"killed by signal {-exit_code}"
