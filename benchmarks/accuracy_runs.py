"""Doing a run of the accuracy experiment, as far as it is not done yet.

A run is a folder. Whatever kills it or the script, the next call goes on where its last checkpoint
is; a run that another process is at is left to it (the lock is held by the training process itself,
so that it outlives the script).
"""

import fcntl
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from accuracy_rows import Run, make_row, read_curve, read_json, report_file, write_json_atomically

ROOT = Path(__file__).resolve().parent.parent
TRAIN = (sys.executable, str(ROOT / "tools" / "train_net.py"))
_LOG_LINES_SHOWN = 8


class RunError(RuntimeError):
    """A run that cannot go on; the message is one sentence."""


class BusyError(RunError):
    """Another process is at this run."""


class Attempt:
    """Does one run, as far as it is not done yet.

    Args:
        run: what to do.
        runs_dir: folder of all runs.
        threads: of the training process.
        command: program that trains, with the arguments of tools/train_net.py.
    """

    def __init__(
        self, run: Run, runs_dir: Path, threads: int, command: Sequence[str] = TRAIN
    ) -> None:
        self.run = run
        self.folder = runs_dir / run.suite_name / run.name
        self.threads = threads
        self.command = command
        self.process: subprocess.Popen[bytes] | None = None
        self.stopped = False

    def __call__(self, patience: float = 0.0) -> dict[str, Any] | None:
        """Train and evaluate.

        Returns:
            the run's row; None if :meth:`stop` was called.

        Raises:
            BusyError: another process is at this run, even after ``patience`` seconds.
            RunError: a program failed, or the folder holds a run of another recipe.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "w") as lock:
            self._take(lock, time.monotonic() + patience)
            self._check_recipe()
            for arguments in (self._training(), self._evaluation()):
                if arguments and not self.stopped:
                    self._execute(arguments, lock)
            return None if self.stopped else make_row(self.run, self.folder)

    def stop(self) -> None:
        """Let the training process write a checkpoint and end."""
        self.stopped = True
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def _take(self, lock: IO[str], until: float) -> None:
        while not self.stopped:
            try:
                return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise BusyError(f"another process is at {self.folder}.") from None
                time.sleep(0.5)

    def _check_recipe(self) -> None:
        path = self.folder / "recipe.json"
        wanted = {"config": self.run.suite.config, **self.run.recipe}
        found = read_json(path)
        if found is None:
            write_json_atomically(path, wanted)
        elif found != wanted:
            keys = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
            raise RunError(f"{self.folder} holds a run of another recipe: it differs in {keys}.")

    def _training(self) -> list[str]:
        if read_curve(self.folder, self.run.recipe["SOLVER.MAX_ITER"]).is_complete:
            return []
        return self._arguments({}, "--resume")

    def _evaluation(self) -> list[str]:
        test_set = self.run.suite.test_set
        if not test_set or read_json(report_file(self.folder, test_set)) is not None:
            return []
        weights = str(self.folder / "model_final.pth")
        return self._arguments(
            {"DATASETS.TEST": [test_set], "MODEL.WEIGHTS": weights}, "--eval-only"
        )

    def _arguments(self, changes: Mapping[str, Any], flag: str) -> list[str]:
        values = {**self.run.recipe, "OUTPUT_DIR": str(self.folder), **changes}
        options = [text for key, value in values.items() for text in (key, as_option(value))]
        return ["--config-file", self.run.suite.config, flag, *options]

    def _execute(self, arguments: Sequence[str], lock: IO[str]) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            environment[name] = str(self.threads)
        attempts = read_json(self.folder / "attempts.json") or []
        attempts.append({"start": time.time(), "seconds": None, "code": code_state()})
        write_json_atomically(self.folder / "attempts.json", attempts)
        begin = time.monotonic()
        with open(self.folder / "output.txt", "ab") as output:
            self.process = subprocess.Popen(
                [*self.command, *arguments],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(lock.fileno(),),
            )
            if self.stopped:  # meanwhile
                self.process.terminate()
            status = self.process.wait()
        attempts[-1]["seconds"] = round(time.monotonic() - begin, 1)
        write_json_atomically(self.folder / "attempts.json", attempts)
        if status != 0 and not self.stopped:
            raise RunError(
                f"the training program ended with status {status}:\n"
                f"{_tail(self.folder / 'output.txt')}"
            )


def as_option(value: Any) -> str:
    """A value as the command line of tools/train_net.py takes it."""
    return repr(value) if not isinstance(value, str) or not value else value


def code_state() -> dict[str, Any]:
    """Revision of the working copy, whether it was changed, and a digest of the code that runs."""
    digest = hashlib.sha256()
    for path in sorted([*(ROOT / "offseg_d2").rglob("*.py"), ROOT / "tools" / "train_net.py"]):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    revision = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "--", "offseg_d2", "tools/train_net.py", "configs")
    return {
        "revision": revision,
        "changed": None if revision is None else bool(changed),
        "digest": digest.hexdigest()[:12],
    }


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()


def _tail(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines()[-_LOG_LINES_SHOWN:]
    return "\n".join(f"  {line}" for line in lines)
