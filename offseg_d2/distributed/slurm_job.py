"""What a task of a submitit job runs, and how it obeys the cluster's signals.

Each task of a job is one process of the run, one for each GPU. Before the cluster takes the
machines away (preemption, time limit) it sends SIGUSR2 to all tasks; they finish the same
iteration, write a checkpoint, and the job is queued again and continues from it. SIGTERM
(``scancel``) saves as well and ends the job.
"""

import dataclasses
import logging
import runpy
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import submitit
from submitit.core.utils import cloudpickle_dump, temporary_save_path

from .failure_watch import before_ending
from .job_folder import source_revision
from .launch import is_failure

logger = logging.getLogger(__name__)

# Some clusters announce a preemption by SIGTERM first and SIGUSR2 right after it.
_WAIT_FOR_USR2 = 3.0


@dataclasses.dataclass(frozen=True)
class TrainingJob:
    """What each task of a job runs: a script with a ``main(arguments)``, as on its command line.

    Attributes:
        script: such as ``tools/train_net.py``.
        arguments: of the command line.
        revision: git revision of the program that submitted the job.
    """

    script: str
    arguments: tuple[str, ...]
    revision: str = ""

    def __call__(self) -> Any:
        """Run the script as this task's process; returns what its ``main`` returns.

        Raises:
            RuntimeError: if the script ended with an error of the user.
        """
        paths = submitit.JobEnvironment().paths
        # That of an attempt before this one would end the job for those who wait for it.
        paths.result_pickle.unlink(missing_ok=True)
        _handle_signals()
        before_ending(lambda text: _write_error(paths.result_pickle, text))
        if self.revision and source_revision() != self.revision:
            logger.warning(
                "The program was %s when the job was submitted, but is %s now.",
                self.revision,
                source_revision(),
            )
        try:
            return runpy.run_path(self.script, run_name="job")["main"](list(self.arguments))
        except SystemExit as stop:
            if not is_failure(stop):
                raise
            cause = stop.__cause__ or stop.__context__
            raise RuntimeError(f"{cause} (exit status {stop.code})") from cause

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What submitit queues after a preemption or a time-out."""
        arguments = self.arguments
        if "--eval-only" not in arguments and "--resume" not in arguments:
            arguments = ("--resume", *arguments)
        return submitit.helpers.DelayedSubmission(dataclasses.replace(self, arguments=arguments))


_told_to_requeue = False


def _handle_signals() -> None:
    """Let the main process alone requeue the job; the others keep still until they are killed.

    The training loop takes over these signals and calls the functions set here once the checkpoint
    is written.
    """
    is_main = submitit.JobEnvironment().global_rank == 0
    requeue = signal.getsignal(signal.SIGUSR2)

    def on_usr2(number: int, frame: FrameType | None) -> None:
        global _told_to_requeue
        _told_to_requeue = True
        signal.signal(number, signal.SIG_IGN)
        if is_main and callable(requeue):
            requeue(number, frame)
        _keep_still()

    def on_term(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_IGN)
        time.sleep(_WAIT_FOR_USR2)
        raise SystemExit(128 + number)

    signal.signal(signal.SIGUSR2, on_usr2)
    signal.signal(signal.SIGTERM, on_term)


def _keep_still() -> NoReturn:
    # Leaving now would count as the end of the job, before it is queued again.
    time.sleep(300)
    raise SystemExit(128 + signal.SIGUSR2)


def _write_error(result: Path, text: str) -> None:
    """Tell those who wait for the result of this task why it ends."""
    if _told_to_requeue:  # the main process has left to requeue the job
        _keep_still()
    with temporary_save_path(result) as path:
        cloudpickle_dump(("error", text), path)
