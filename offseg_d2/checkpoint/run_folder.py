"""The checkpoints in the folder of a run: their names, which one is the last, and a new start."""

import contextlib
import itertools
import os
import re

from offseg_d2.utils.io import write_atomically

from .safe_load import CheckpointError

PERIODIC_NAME = re.compile(r"model_(\d{7,})\.pth")
RESUMABLE_NAME = re.compile(r"model_(\d{7,}|final)\.pth")
_ANY_NAME = re.compile(r"model_(\d{7,}|final|best)\.pth")
_LAST = "last_checkpoint"
_OLD_RUN = "previous"


def tag_last_checkpoint(directory: str, name: str) -> None:
    """Make ``last_checkpoint`` name this file; "" means that the run has saved nothing yet."""
    write_atomically(os.path.join(directory, _LAST), name.encode())


def last_checkpoint(directory: str) -> str:
    """Path of the checkpoint that a run in ``directory`` wrote last, "" if there is none.

    Raises:
        CheckpointError: if ``last_checkpoint`` names a file that does not exist.
    """
    note = os.path.join(directory, _LAST)
    try:
        with open(note, encoding="utf-8") as file:
            name = file.read().strip()
    except FileNotFoundError:
        return ""
    path = os.path.join(directory, name)
    if name and not os.path.isfile(path):
        raise CheckpointError(
            f"`{note}` must name an existing checkpoint, but names {name!r}, which is not there."
        )
    return path if name else ""


def set_aside_old_run(directory: str) -> tuple[int, str]:
    """Move what an earlier run saved into ``directory/previous``.

    Otherwise a new run, killed before its first checkpoint, would go on as the old one. An empty
    ``last_checkpoint`` prevents that while files are moved, and is removed at the end. Where there
    is such a folder already, another is made: ``previous_2`` and so on.

    Returns:
        number of checkpoints that were moved, and the folder ("" if there were none).
    """
    if not os.path.isdir(directory):
        return 0, ""
    names = sorted(name for name in os.listdir(directory) if _ANY_NAME.fullmatch(name))
    folder = ""
    if names:
        tag_last_checkpoint(directory, "")
        folder = _make_new_folder(os.path.join(directory, _OLD_RUN))
        for name in names:
            os.rename(os.path.join(directory, name), os.path.join(folder, name))
    with contextlib.suppress(FileNotFoundError):
        os.remove(os.path.join(directory, _LAST))
    return len(names), folder


def _make_new_folder(path: str) -> str:
    """Make the folder ``path``, or ``path_2`` and so on if it exists."""
    numbered = (f"{path}_{number}" for number in itertools.count(2))
    for candidate in itertools.chain([path], numbered):
        with contextlib.suppress(FileExistsError):
            os.mkdir(candidate)
            return candidate
    raise AssertionError("numbers do not end")
