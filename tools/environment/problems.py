"""What can go wrong in a set-up, said in one message: the step, the command, what to do."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

MIN_PYTHON = (3, 10)
# The installed environment takes about 6 GB; pip unpacks the largest archives beside it first.
NEEDED_GB = 8.0
TAIL_LINES = 15

# (pattern in the output of a failed command, what to do about it); the first match is shown.
_ADVICE: tuple[tuple[str, str], ...] = (
    (
        r"ensurepip is not available|No module named '?(ensurepip|venv)",
        "This Python lacks its venv module. On Debian or Ubuntu: "
        "apt-get update && apt-get install -y python3-venv",
    ),
    (r"No space left on device|Disk quota exceeded", "The disk is full: free some space."),
    (
        r"DO NOT MATCH THE HASHES",
        "A downloaded file is not the one that was locked. Run the command again; if it happens "
        "again, the package source serves altered files and must not be trusted.",
    ),
    (
        r"Temporary failure in name resolution|NewConnectionError|ProxyError|ConnectTimeout"
        r"|Network is unreachable|Read timed out|ReadTimeoutError|Connection (refused|reset)"
        r"|SSLError",
        "The package index did not answer: check the network, proxy and `pip config list`.",
    ),
    (
        r"No matching distribution found|Could not find a version",
        "The package index cannot be reached or lacks this version: check the network and "
        "`pip config list`.",
    ),
    (r"MemoryError|Killed", "The machine ran out of memory: close other programs."),
    (
        r"(?m)^PROBLEM ",
        "See the remedies above; `make clean` and then the same command again make the "
        "environment from scratch.",
    ),
    (r"Permission denied", "A file may not be written: check the owner of the folder."),
)


class SetupError(Exception):
    """A step of the set-up failed; ``str()`` is the whole message for the user.

    Attributes:
        output: what the failed command printed.
    """

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output


def advice(output: str) -> str:
    """What to do about a command that failed with ``output``."""
    for pattern, remedy in _ADVICE:
        if re.search(pattern, output):
            return remedy
    return "Read the lines above; after mending the cause, run the same command again."


def failure(step: str, command: list[str], code: int, output: str, log: Path) -> SetupError:
    """The one message for a failed ``command`` of ``step`` that printed ``output``."""
    tail = [f"    | {line}" for line in output.strip().splitlines()[-TAIL_LINES:]]
    lines = [
        f"Set-up failed at the step: {step} (exit status {code}).",
        f"  Command: {shlex.join(command)}",
        *(["  Last lines of its output:", *tail] if tail else ["  It printed nothing."]),
        f"  What to do: {advice(output)}",
        f"  The whole output is in {log}.",
    ]
    return SetupError("\n".join(lines), output)


def check_python(version: tuple[int, ...]) -> None:
    """Raise SetupError when Python ``version`` is older than the project supports."""
    if version[:2] < MIN_PYTHON:
        found = ".".join(map(str, version[:3]))
        least = ".".join(map(str, MIN_PYTHON))
        raise SetupError(
            f"Set-up failed at the step: check Python. It must be {least} or newer, but "
            f"{sys.executable} is {found}.\n"
            "  What to do: install Python 3.11 (Debian 12: apt-get install -y python3 python3-venv)"
            " and name it, for example: make setup PYTHON=python3.11"
        )


def check_disk(folder: Path) -> None:
    """Raise SetupError when ``folder`` (or pip's temporary folder) has too little free space."""
    for place, needed in ((folder, NEEDED_GB), (Path(tempfile.gettempdir()), NEEDED_GB / 2)):
        free = shutil.disk_usage(place).free / 1e9
        if free < needed:
            raise SetupError(
                f"Set-up failed at the step: check disk space. {place} must have {needed:.0f} GB "
                f"free, but has {free:.1f} GB.\n"
                "  What to do: free some space, or put the environment elsewhere "
                "(make setup VENV=/path) and temporary files too (TMPDIR=/path)."
            )
