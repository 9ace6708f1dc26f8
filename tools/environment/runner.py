"""Runs the commands of a set-up: progress lines, a log file, one set-up at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from environment.problems import failure

try:
    import fcntl
except ImportError:  # not on Windows; there, two set-ups at once are not guarded against
    fcntl = None  # type: ignore[assignment]

HEARTBEAT_SECONDS = 20.0
# Read before pip's own settings: an answer-less, per-user or target-bound pip would break a step.
_PIP_ENVIRONMENT = {
    "PIP_NO_INPUT": "1",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_USER": "0",
    "PYTHONNOUSERSITE": "1",
}
_DROPPED_VARIABLES = ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "__PYVENV_LAUNCHER__")


def _terminate(signum: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


class Runner:
    """Runs one command after another and tells what happens.

    Args:
        log: file that takes everything the commands print.
        steps: number of steps, for the ``[2/6]`` in front of each progress line.
    """

    def __init__(self, log: Path, steps: int) -> None:
        self._log = log
        self._steps = steps
        self._done = 0
        self._start = time.monotonic()
        self._lock_fd = -1
        signal.signal(signal.SIGTERM, _terminate)

    def hold_lock(self, path: Path) -> None:
        """Wait until no other set-up of this clone runs, then keep others out until exit.

        The commands inherit the lock: should this process be killed, a command that lives on
        still keeps the next set-up from working on the same folder.
        """
        if fcntl is not None:
            self._flock(path)
        self._log.write_text("")

    def _flock(self, path: Path) -> None:
        self._lock_fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another set-up of this clone is running; waiting for it to end.", flush=True)
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX)

    def begin(self, step: str) -> None:
        """Print the progress line of the next step."""
        self._done += 1
        elapsed = time.monotonic() - self._start
        print(f"[{self._done}/{self._steps}] {elapsed:4.0f} s  {step}", flush=True)

    def run(self, step: str, command: list[str], cwd: Path) -> str:
        """Run ``command`` in ``cwd`` as part of ``step`` and return what it printed.

        Raises:
            SetupError: it did not exit with status 0, or could not be started.
        """
        environment = {k: v for k, v in os.environ.items() if k not in _DROPPED_VARIABLES}
        environment.update(_PIP_ENVIRONMENT)
        begin = self._log.stat().st_size
        with self._log.open("ab") as log:
            try:
                process = subprocess.Popen(
                    command,
                    cwd=cwd,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=(self._lock_fd,) if self._lock_fd >= 0 else (),
                )
            except OSError as error:
                raise failure(step, command, 127, str(error), self._log) from None
        try:
            code = self._wait(process, begin)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        output = self._output_since(begin)
        if code != 0:
            raise failure(step, command, code, output, self._log)
        return output

    def _wait(self, process: subprocess.Popen[bytes], begin: int) -> int:
        while True:
            try:
                return process.wait(timeout=HEARTBEAT_SECONDS)
            except subprocess.TimeoutExpired:
                lines = self._output_since(begin).strip().splitlines()
                last = lines[-1].strip()[:70] if lines else "no output yet"
                elapsed = time.monotonic() - self._start
                print(f"      {elapsed:4.0f} s  ... {last}", flush=True)

    def _output_since(self, begin: int) -> str:
        with self._log.open("rb") as log:
            log.seek(begin)
            return log.read().decode("utf-8", errors="replace")


def quiet(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a short check without a log; a program that cannot start counts as status 127."""
    try:
        return subprocess.run(
            command, cwd=os.sep, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))


def fail(message: object) -> None:
    """Print ``message`` on the error stream and end with status 1."""
    print(f"\n{message}", file=sys.stderr, flush=True)
    raise SystemExit(1)
