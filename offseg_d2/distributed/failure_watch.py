"""Tells every process of a run when another one has failed, and ends it.

A process that fails leaves the others waiting in a collective operation: with NCCL for as long as
its time-out, with gloo until a "connection closed by peer" that does not say why. Here each process
has a thread that looks into a key-value store all of them share. The one that fails leaves its
traceback there; the others write it to their logs and end. A process that was killed cannot leave
anything: its neighbour notices that its heartbeat has stopped.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from torch.distributed import Store

logger = logging.getLogger(__name__)

# Seconds. Silence is counted in this process's own heartbeats, so that a job that was suspended as
# a whole goes on. It has to be long enough for a heartbeat thread that waits for Python's global
# lock.
_PERIOD = 1.0
_SILENCE = 45.0
_ANSWER = 8.0
_LOST_STORE = 10.0

_FAILURES = "failures"

# Called with the report before this process ends because of another one.
_last_calls: list[Callable[[str], object]] = []


def before_ending(call: Callable[[str], object]) -> None:
    """Have ``call(report)`` called before this process ends because another one failed."""
    _last_calls.append(call)


class FailureWatch:
    """The watching thread of one process.

    Args:
        store: shared by all processes; for this object alone, as a waiting client blocks others.
        rank, world_size: which of how many processes this is.
        end: called to end this process; receives the report of the failure.
        silence: seconds without heartbeat after which a process counts as killed.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        world_size: int,
        *,
        end: Callable[[str], object] | None = None,
        silence: float = _SILENCE,
    ) -> None:
        self.store = store
        self.rank, self.world_size = rank, world_size
        self.end = end or end_process
        self.silence = silence
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="failure-watch", daemon=True)
        self._neighbour = (rank + 1) % world_size
        self._heard = ("", 0)  # last heartbeat of the neighbour, and own ones since it changed

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; from now on this process neither notices failures nor is missed."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        try:
            self.store.set(f"alive/{self.rank}", "left")
        except RuntimeError:  # the process that holds the store has left already
            logger.debug("The store of the processes is gone")

    def report(self, text: str) -> None:
        """Tell the other processes that this one fails, and wait until they know.

        Args:
            text: traceback or message.
        """
        self._stop.set()
        self._thread.join()
        try:
            self.store.append(_FAILURES, f"Process {self.rank} failed:\n{text.rstrip()}\n")
            self.store.set(f"knows/{self.rank}", "yes")
            silent = self._wait_for_answers()
        except RuntimeError as error:
            logger.error("The other processes could not be told: %s", error)
            return
        if silent:
            logger.error(
                "No answer from process %s: killed, out of memory, or its machine is gone.",
                ", ".join(map(str, silent)),
            )

    def _wait_for_answers(self) -> list[int]:
        """Ranks that did not notice the failure in time."""
        silent = list(range(self.world_size))
        end = time.monotonic() + _ANSWER
        while silent and time.monotonic() < end:
            silent = [rank for rank in silent if not self.store.check([f"knows/{rank}"])]
            time.sleep(0.1 if silent else 0.0)
        return silent

    # ------------------------------------------------------------------ thread

    def _watch(self) -> None:
        lost_at = None
        beats = 0
        while not self._stop.wait(_PERIOD):
            try:
                beats += 1
                self.store.set(f"alive/{self.rank}", str(beats))
                self._listen_to_neighbour()
                if self.store.check([_FAILURES]):
                    self._end_with(self.store.get(_FAILURES).decode())
                    return
                lost_at = None
            except RuntimeError as error:
                # Also when the holder has ended in good order: this process is about to end, too.
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at > _LOST_STORE:
                    self._end_with(f"Process 0 or its machine is gone without a report: {error}")
                    return

    def _listen_to_neighbour(self) -> None:
        key = f"alive/{self._neighbour}"
        beat = self.store.get(key).decode() if self.store.check([key]) else ""
        last, own = self._heard
        self._heard = (beat, own + 1 if beat == last != "left" else 0)
        if self._heard[1] * _PERIOD > self.silence:
            self._heard = (beat, 0)  # to be reported once
            self.store.append(
                _FAILURES,
                f"Process {self._neighbour} has given no sign of life for {self.silence:.0f} s: "
                "killed, out of memory, or its machine is gone.\n",
            )

    def _end_with(self, text: str) -> None:
        if self._stop.is_set():  # this process ends by itself
            return
        # Processes that wait for a dead one fail as well, a moment later: the first failure is the
        # cause, the others are only worth reading with it.
        logger.error("This process ends because another one failed.\n%s", text)
        # Only now: the one that failed ends when all know, and its launcher then ends the others.
        with contextlib.suppress(RuntimeError):  # the store may be what is gone
            self.store.set(f"knows/{self.rank}", "yes")
        self.end(text)


def end_process(text: str) -> NoReturn:
    """End at once: the main thread may be stuck in a collective operation for ever."""
    for call in _last_calls:
        call(text)
    logging.shutdown()
    os._exit(1)
