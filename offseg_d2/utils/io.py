"""Files that are complete or not there at all, whatever kills the process that writes them."""

import codecs
import contextlib
import os
import re
from collections.abc import Callable
from typing import Any, BinaryIO

import cv2
import numpy as np
from detectron2.utils.file_io import PathManager

_PREFIX = ".tmp-offseg_d2-"
# Entries that systems and programs leave beside a user's files, besides hidden ones.
_SYSTEM_ENTRIES = {
    "__MACOSX",
    "@eaDir",
    "@Recycle",
    "#recycle",
    "$RECYCLE.BIN",
    "System Volume Information",
    "Thumbs.db",
    "desktop.ini",
    "lost+found",
}


def decode_text(content: bytes) -> str:
    """Text of a file as editors of all systems save it: UTF-8, or UTF-16 with its mark.

    Raises:
        UnicodeDecodeError: it is neither.
    """
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if marked else "utf-8-sig")


def list_folder(path: str) -> list[str]:
    """Names in a folder, without hidden ones and those of the system (``Thumbs.db``, ...).

    Raises:
        OSError: it is no folder that can be read.
    """
    return [name for name in PathManager.ls(path) if not is_system_entry(name)]


def is_system_entry(path: str) -> bool:
    """True for a file or folder that is hidden, or left there by a system or program."""
    name = os.path.basename(path)
    return name.startswith(".") or name in _SYSTEM_ENTRIES


def write_atomically(path: str, content: bytes | Callable[[BinaryIO], Any]) -> None:
    """Write a file so that at any moment ``path`` is its old content or the complete new one.

    Args:
        path: file in a folder that exists. One that iopath does not keep on a disk
            (``scheme://``) is left to iopath.
        content: of the whole file, or a function that writes it to the open file it gets.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    write = (lambda file: file.write(content)) if isinstance(content, bytes) else content
    if "://" in path:  # iopath offers no rename
        with PathManager.open(path, "wb") as file:
            write(file)
        return
    directory, basename = os.path.split(os.path.abspath(path))
    temporary = os.path.join(directory, f"{_PREFIX}{os.getpid()}-{basename}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        if isinstance(error, OSError) and error.errno and error.filename in (None, temporary):
            error.filename = path  # a refused write itself names no file
        refusal = error.__context__
        if isinstance(error, RuntimeError) and isinstance(refusal, OSError) and refusal.errno:
            # torch.save ends a refused write with an error that does not say what happened.
            raise OSError(refusal.errno, os.strerror(refusal.errno), path) from error
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


def write_picture(path: str, picture: np.ndarray) -> None:
    """Write a (H, W, 3) uint8 RGB picture as the suffix of ``path`` says."""
    suffix = os.path.splitext(path)[1].lower()
    height, width = picture.shape[:2]
    try:
        is_done, encoded = cv2.imencode(suffix, np.ascontiguousarray(picture[..., ::-1]))
    except cv2.error:
        is_done = False
    if not is_done:
        raise ValueError(
            f"`{path}` must be of a kind and size that OpenCV can write, such as .png, but the "
            f"picture has {width} x {height} pixels."
        )
    write_atomically(path, encoded.tobytes())


def require_writable_folder(path: str, option: str) -> None:
    """Make a folder if need be, and see whether files can be written there.

    Args:
        path: of the folder.
        option: of the command line that named it, for the message.

    Raises:
        OSError: it is none, or cannot be written to.
    """
    probe = os.path.join(path, f"{_PREFIX}{os.getpid()}")
    try:
        PathManager.mkdirs(path)
        with PathManager.open(probe, "w"):
            pass
        PathManager.rm(probe)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(
            f"`{option}` must lead to a folder that can be written to, but '{path}' does not: "
            f"{reason}."
        ) from None


def file_stem(name: str) -> str:
    """Part of a file name made of any name: "folder:/data/x:train" -> "folder_data_x_train"."""
    return re.sub(r"[^\w.-]+", "_", name).strip("_.") or "dataset"
