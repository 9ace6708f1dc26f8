"""Files that are complete or not there at all, whatever kills the process that writes them."""

import contextlib
import os
from collections.abc import Callable
from typing import Any, BinaryIO

_PREFIX = ".tmp-offseg_d2-"


def write_atomically(path: str, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file so that at any moment ``path`` is its old content or the complete new one.

    Args:
        path: local file name.
        write: receives the open temporary file, in the same directory.
    """
    directory, basename = os.path.split(os.path.abspath(path))
    temporary = os.path.join(directory, f"{_PREFIX}{os.getpid()}-{basename}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise
    # The new name is on the disk only once the directory is; some file systems cannot do that.
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_temporary_files(directory: str) -> list[str]:
    """Delete what a killed process left half-written in ``directory``; returns the names."""
    names = [name for name in os.listdir(directory) if name.startswith(_PREFIX)]
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(directory, name))
    return names
