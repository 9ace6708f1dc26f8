"""Function that each task of a submitit job runs, and the folder that documents the job.

Each task is one process of the run, one for each GPU. Before the cluster takes the machines away
(preemption, time limit) it sends SIGUSR2 to all tasks; they finish the same iteration, write a
checkpoint, and the job is queued again and continues from it. SIGTERM (``scancel``) saves as well
and ends the job.
"""

import dataclasses
import importlib.metadata
import logging
import os
import runpy
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import submitit
from detectron2.config import CfgNode

from offseg_d2.utils.io import write_atomically

logger = logging.getLogger(__name__)

SOURCE_ROOT = Path(__file__).resolve().parents[2]
# Some clusters announce a preemption by SIGTERM first and SIGUSR2 right after it.
_WAIT_FOR_USR2 = 3.0
# Other variables stay out: they may hold passwords.
_VARIABLES = ("CUDA", "DETECTRON2", "GLOO", "LD_LIBRARY_PATH", "NCCL", "OMP", "PYTHONPATH", "TORCH")


@dataclasses.dataclass(frozen=True)
class TrainingJob:
    """A script with a ``main(arguments)``, run by each task as on its command line.

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
        # The result of an earlier attempt would end the job for those who wait for it.
        submitit.JobEnvironment().paths.result_pickle.unlink(missing_ok=True)
        _handle_signals()
        if self.revision and source_revision() != self.revision:
            logger.warning(
                "The program was %s when the job was submitted, but is %s now.",
                self.revision,
                source_revision(),
            )
        try:
            return runpy.run_path(self.script, run_name="job")["main"](list(self.arguments))
        except SystemExit as stop:
            # submitit leaves with -1 once it has queued the job again, a stopped run with 128 + n.
            if isinstance(stop.code, int) and not 0 < stop.code < 128:
                raise
            cause = stop.__cause__ or stop.__context__
            raise RuntimeError(f"{cause} (exit status {stop.code})") from cause

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Return the job that submitit queues after a preemption or a time-out."""
        arguments = self.arguments
        if "--eval-only" not in arguments and "--resume" not in arguments:
            arguments = ("--resume", *arguments)
        return submitit.helpers.DelayedSubmission(dataclasses.replace(self, arguments=arguments))


def _handle_signals() -> None:
    """Let the main process alone requeue the job; the others wait until they are killed.

    The training loop takes over these signals and calls the functions set here once the checkpoint
    is written.
    """
    is_main = submitit.JobEnvironment().global_rank == 0
    requeue = signal.getsignal(signal.SIGUSR2)

    def on_usr2(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_IGN)
        if is_main and callable(requeue):
            requeue(number, frame)
        # Leaving now would count as the end of the job, before it is queued again.
        time.sleep(300)
        raise SystemExit(128 + number)

    def on_term(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_IGN)
        time.sleep(_WAIT_FOR_USR2)
        raise SystemExit(128 + number)

    signal.signal(signal.SIGUSR2, on_usr2)
    signal.signal(signal.SIGTERM, on_term)


# ---------------------------------------------------------------------- folder of a job


def make_job_folder(output_dir: str, cfg: CfgNode, command: Sequence[str]) -> Path:
    """Make ``output_dir/jobs/<time>`` with the files that document how the job was made.

    Args:
        output_dir: directory of the run, seen by all machines.
        cfg: configuration of the job.
        command: command line that asked for it.

    Returns:
        the folder, absolute.
    """
    time_now = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    folder = Path(output_dir).absolute() / "jobs" / time_now
    folder.mkdir(parents=True)
    texts = {
        "config.yaml": cfg.dump(),
        "command.txt": shlex.join(command) + "\n",
        "revision.txt": source_revision() + "\n",
        "uncommitted.diff": _git("diff", "HEAD"),
        "environment.txt": describe_environment(),
    }
    for name, text in texts.items():
        write_atomically(str(folder / name), text.encode())
    return folder


def source_revision() -> str:
    """Git revision of the running program, with ``-dirty`` for changes that are not committed."""
    return _git("describe", "--always", "--dirty", "--abbrev=40").strip() or "not a git repository"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(SOURCE_ROOT), *arguments]
    try:
        finished = subprocess.run(command, capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return finished.stdout.decode(errors="replace") if finished.returncode == 0 else ""


def describe_environment() -> str:
    """Python, installed packages, and the variables that change how a run behaves."""
    found = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    packages = [f"{name}=={version}" for name, version in found.items() if name]
    variables = [
        f"{name}={value}" for name, value in os.environ.items() if name.startswith(_VARIABLES)
    ]
    lines = [f"python {sys.version}", sys.executable, *sorted(packages, key=str.lower)]
    return "\n".join([*lines, *sorted(variables)]) + "\n"
