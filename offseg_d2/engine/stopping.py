"""Stopping a run on a signal without losing what it has learned."""

import logging
import signal
import time
from types import FrameType
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm

from .hooks import SaveCheckpoint, periodic_name

logger = logging.getLogger(__name__)

# A launcher and the cluster may both pass on the same signal.
_REPEAT_SECONDS = 1.0


class StopOnSignalHook(HookBase):
    """Hook that finishes the iteration, saves and exits on SIGUSR2, SIGTERM or SIGINT.

    Clusters send SIGUSR2 some time before they take the machines away; SIGTERM comes from
    ``scancel``, ``kill`` and launchers, SIGINT from Ctrl-C.

    Several processes stop after the same iteration, whichever of them got the signal; one that
    comes during an evaluation takes effect after the evaluation and the iteration that follows it,
    because only there the processes agree. A single process does not wait for the end of an
    evaluation: it saves and stops at once. A second SIGTERM or SIGINT, more than a second after
    the first, acts as it would without this hook, except that nothing interrupts the writing of
    the checkpoint; a second SIGUSR2 changes nothing. After the last iteration, with the
    final checkpoint written, signals act as usual.

    A function that handled the signal before this hook is called once the checkpoint is written;
    it may requeue the job, for instance.

    To be registered after the hooks that complete the state of an iteration (schedule, checkpoint)
    and before the evaluation.
    """

    # The first one that any process has received decides.
    SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)

    def __init__(self, save: SaveCheckpoint) -> None:
        self.save = save
        self._received: dict[int, float] = {}  # number -> time of the first one
        self._finished = -1  # the last iteration after which all processes have been asked
        self._previous: dict[int, Any] = {}

    def before_train(self) -> None:
        self._finished = self.trainer.start_iter - 1
        for number in self.SIGNALS:
            try:
                previous = signal.signal(number, self._handle)
            except ValueError:  # only the main thread may; the caller then keeps its own handling
                return
            self._previous[number] = previous or signal.SIG_DFL

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        first = self._received.setdefault(number, now)
        repeated = number != signal.SIGUSR2 and now - first > _REPEAT_SECONDS
        if repeated and not self._function_before(number):
            signal.signal(number, self._previous[number])
            signal.raise_signal(number)
        # Once the trainer counts the next iteration, that one has to be finished first.
        elif self.trainer.iter == self._finished and comm.get_world_size() == 1:
            self._stop(number)

    def _function_before(self, number: int) -> Any:
        """Return the previous handler of a signal, except Python's and the system's own."""
        previous = self._previous[number]
        is_own = callable(previous) and previous is not signal.default_int_handler
        return previous if is_own else None

    def after_step(self) -> None:
        number = self._agree()
        if number:
            self._stop(number)
        self._finished = self.trainer.iter

    def _agree(self) -> int:
        """The most important signal that any process received, 0 for none."""
        ranks = [rank for rank, number in enumerate(self.SIGNALS) if number in self._received]
        best = min(ranks, default=len(self.SIGNALS))
        # Detectron2 gathers over Gloo: no GPU has to be waited for.
        return (*self.SIGNALS, 0)[min(comm.all_gather(best))]

    def _stop(self, number: int) -> None:
        for handled in self._previous:  # until `after_train`
            if handled != signal.SIGUSR2:
                signal.signal(handled, signal.SIG_IGN)
        iteration = self.trainer.iter
        self._finished = -1  # a SIGUSR2 that comes now is only noted
        if iteration < self.trainer.max_iter - 1:
            self.save(periodic_name(iteration))
        # Launchers end all processes as soon as one has left: none may leave before the main one
        # has written the checkpoint.
        comm.synchronize()
        name = signal.Signals(number).name
        logger.warning("Stopped by %s after iteration %d; go on with --resume.", name, iteration)
        self._hand_on(number)
        # The exit status that a shell shows for a process ended by this signal.
        raise SystemExit(128 + number)

    def _hand_on(self, number: int) -> None:
        if signal.SIGUSR2 in self._previous:
            signal.signal(signal.SIGUSR2, self._previous[signal.SIGUSR2])
        if signal.SIGUSR2 in self._received:
            number = signal.SIGUSR2
        function = self._function_before(number) if number in self._previous else None
        if function is not None:
            function(number, None)

    def after_train(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
