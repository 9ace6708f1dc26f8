"""A function on many tasks in processes, of which any may die.

Standard pools lose all tasks when one process is killed, by the kernel for want of memory or by a
fault in a C library, and cannot tell which task it was. Here each process has one task at a time
and a pipe of its own, so that a death names its task: that task is tried once more, and the others
go on.
"""

import collections
import contextlib
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from typing import Any, NamedTuple

import cv2

_ATTEMPTS = 2
# So many tasks lost one after the other are no fault of the tasks.
_MAX_LOST_IN_A_ROW = 5


class WorkerDeath(NamedTuple):
    """Takes the place of a result: the process died each time it had this task."""

    reason: str  # such as "killed by SIGSEGV"


class WorkersError(OSError):
    """Processes keep dying, whatever they are given."""


def run_in_workers(
    function: Callable[[Any], Any], tasks: Sequence[Any], workers: int
) -> Iterator[tuple[int, Any]]:
    """Call ``function`` on each task.

    Args:
        function: must not raise; it and the tasks must be picklable where processes are spawned.
        tasks: its arguments.
        workers: number of processes; 0 calls it in this one.

    Yields:
        index of the task and its result or :class:`WorkerDeath`, in the order of completion.

    Raises:
        WorkersError: see there.
        OSError: no process can be started.
    """
    if workers == 0:
        yield from ((index, function(task)) for index, task in enumerate(tasks))
        return
    team = _Team(function, min(workers, len(tasks)))
    try:
        yield from team.run(tasks)
    finally:
        team.close()


class _Worker:
    """A process and this end of its pipe."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        # Forked processes share what is loaded already; importing it anew takes seconds each.
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self.pipe, far_end = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(function, far_end, self.pipe), daemon=True
        )
        self.process.start()
        far_end.close()  # held by the process alone, the pipe breaks when it dies
        self.index: int | None = None  # of the task it has

    def give(self, index: int, task: Any) -> None:
        """Hand over a task."""
        self.index = index
        with contextlib.suppress(OSError):  # it has died meanwhile, which receiving will show
            self.pipe.send(task)

    def receive(self) -> Any:
        """Wait for the result of the task, or for the :class:`WorkerDeath`."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            return WorkerDeath(_describe_end(self.process.exitcode or 0))


class _Team:
    def __init__(self, function: Callable[[Any], Any], size: int) -> None:
        self.function, self.size = function, size
        self.workers: list[_Worker] = []

    def run(self, tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        waiting = collections.deque(range(len(tasks)))
        attempts: collections.Counter[int] = collections.Counter()
        lost_in_a_row = 0
        while waiting or self._busy():
            self._hand_out(waiting, tasks)
            ready = connection.wait([worker.pipe for worker in self._busy()])
            for worker in [worker for worker in self.workers if worker.pipe in ready]:
                index, result = worker.index, worker.receive()
                worker.index = None
                if isinstance(result, WorkerDeath):
                    self.workers.remove(worker)
                    attempts[index] += 1
                    if attempts[index] < _ATTEMPTS:
                        waiting.appendleft(index)
                        continue
                lost_in_a_row = lost_in_a_row + 1 if isinstance(result, WorkerDeath) else 0
                if lost_in_a_row == _MAX_LOST_IN_A_ROW:
                    raise WorkersError(
                        f"Worker processes keep dying (the last one was {result.reason}); is there "
                        f"memory for {self.size} of them? `--workers` sets their number."
                    )
                yield index, result

    def _busy(self) -> list[_Worker]:
        return [worker for worker in self.workers if worker.index is not None]

    def _hand_out(self, waiting: collections.deque[int], tasks: Sequence[Any]) -> None:
        """Give every idle worker a task, and replace the dead ones."""
        while waiting and len(self.workers) < self.size:
            self.workers.append(_Worker(self.function))
            self.workers[-1].give(waiting[0], tasks[waiting.popleft()])
        for worker in self.workers:
            if waiting and worker.index is None:
                worker.give(waiting[0], tasks[waiting.popleft()])

    def close(self) -> None:
        """End all processes, busy or not."""
        for worker in self.workers:
            worker.process.terminate()
        for worker in self.workers:
            worker.process.join()


def _describe_end(exit_code: int) -> str:
    if exit_code >= 0:
        return f"ended with status {exit_code}"
    try:
        return f"killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"killed by signal {-exit_code}"


def _serve(
    function: Callable[[Any], Any], pipe: connection.Connection, far_end: connection.Connection
) -> None:
    """Work until the other end of the pipe is closed, be it because the main process was killed."""
    far_end.close()  # forked along; the pipe would never break while this process has both ends
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    cv2.setNumThreads(0)
    while True:
        try:
            task = pipe.recv()
        except (EOFError, OSError):
            return
        result = function(task)
        with contextlib.suppress(OSError):
            pipe.send(result)
