"""The checkpoints in the folder of a run: their names, which one is the last, and a new start."""

import contextlib
import itertools
import logging
import os
import re

from offseg_d2.utils.io import write_atomically

from .safe_load import CheckpointError

logger = logging.getLogger(__name__)

PERIODIC_NAME = re.compile(r"model_(\d{7,})\.pth")
RESUMABLE_NAME = re.compile(r"model_(\d{7,}|final)\.pth")
_ANY_NAME = re.compile(r"model_(\d{7,}|final|best)\.pth")
_LAST = "last_checkpoint"
_NEW_RUN = "(a new run begins)"  # in place of a name, while an old run is moved aside
_OLD_RUN = "previous"


def tag_last_checkpoint(directory: str, name: str) -> None:
    """Make ``last_checkpoint`` name this file."""
    write_atomically(os.path.join(directory, _LAST), name.encode())


def last_checkpoint(directory: str) -> str:
    """Path of the checkpoint that a run in ``directory`` wrote last, "" if there is none.

    Raises:
        CheckpointError: if ``last_checkpoint`` names no file that exists.
    """
    name = _read_note(directory)
    if name in (None, _NEW_RUN):
        return ""
    note, path = os.path.join(directory, _LAST), os.path.join(directory, name)
    if "\0" in name or not os.path.isfile(path):
        raise CheckpointError(
            f"`{note}` must name an existing checkpoint, but names {name[:100]!r}, which is not "
            "there."
        )
    return path


def _read_note(directory: str) -> str | None:
    """Content of ``last_checkpoint``, whatever it is; None without one."""
    try:
        with open(os.path.join(directory, _LAST), encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except FileNotFoundError:
        return None


def resumable_checkpoints(directory: str) -> list[str]:
    """Checkpoints that a run can go on from: the one of ``last_checkpoint``, then newest first.

    A note that is empty, damaged or names no file is reported in the log, and left out.
    """
    if not os.path.isdir(directory):
        return []
    if _read_note(directory) == _NEW_RUN:  # which has saved nothing yet
        return []
    entries = [entry for entry in os.scandir(directory) if RESUMABLE_NAME.fullmatch(entry.name)]
    entries.sort(key=lambda entry: (entry.stat().st_mtime_ns, entry.name), reverse=True)
    paths = [os.path.join(directory, entry.name) for entry in entries]
    try:
        last = last_checkpoint(directory)
    except CheckpointError as error:
        newest = f" Taking the newest one, '{paths[0]}'." if paths else ""
        logger.warning("%s%s", error, newest)
        return paths
    return [last, *(path for path in paths if path != last)] if last else paths


def set_aside_old_run(directory: str) -> tuple[int, str]:
    """Move what an earlier run saved into ``directory/previous``.

    Otherwise a new run, killed before its first checkpoint, would go on as the old one. A mark in
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
        tag_last_checkpoint(directory, _NEW_RUN)
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
