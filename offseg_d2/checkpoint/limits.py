"""Limits on checkpoint files, checked before anything large is built from them.

A file of kilobytes can announce gigabytes: compressed or overlapping entries of an archive, pickles
that refer to a value again and again, tensors that repeat one number. A checkpoint has no use for
any of these.
"""

import io
import pickletools
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

MAX_OPCODES = 1_000_000  # of a pickle; a training checkpoint has some ten thousand
MAX_PICKLE_BYTES = 64 << 20  # of the pickle in an archive, whose tensors lie beside it
MAX_VALUES = 300_000  # in nested containers, each counted wherever it is referred to
MAX_DEPTH = 60
MAX_EXPANSION = 8  # bytes announced per byte on the disk
SLACK_BYTES = 256 << 20  # announced by a small file without harm


class LimitError(Exception):
    """A file is beyond the limits; the message says what it has too much of."""


def check_archive(archive: zipfile.ZipFile, size: int) -> None:
    """Check a torch.save file: bytes announced, and its pickle.

    Args:
        archive: opened.
        size: of the file in bytes.

    Raises:
        LimitError: it is beyond the limits.
    """
    entries = archive.infolist()
    _check_bytes(sum(entry.file_size for entry in entries), size)
    for entry in entries:
        if entry.filename.endswith("data.pkl"):
            if entry.file_size > MAX_PICKLE_BYTES:
                raise LimitError(f"its pickle has {entry.file_size} bytes")
            check_pickle(io.BytesIO(archive.read(entry)))


def check_pickle(file: BinaryIO) -> None:
    """Check the pickle at the position of a file, and go past it.

    Raises:
        LimitError: it has too many instructions, or announces memory that it does not fill.
    """
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count >= MAX_OPCODES:
                raise LimitError(f"its pickle has more than {MAX_OPCODES} instructions")
            if "PUT" in opcode.name and int(argument or 0) > MAX_OPCODES:
                raise LimitError(f"its pickle numbers a value {argument}")
    except (ValueError, EOFError, IndexError, UnicodeError):
        pass  # no pickle, or a damaged one: the reader itself says so


def check_values(data: Any, size: int) -> None:
    """Check what a file was read to: number and depth of values, and its tensors.

    Args:
        data: nested containers.
        size: of the file in bytes.

    Raises:
        LimitError: it is beyond the limits, or a tensor is of a kind that no checkpoint needs.
    """
    count = total = 0
    pending: list[tuple[str, Any, int]] = [("", data, 0)]
    while pending:
        name, value, depth = pending.pop()
        count += 1
        if count > MAX_VALUES or depth > MAX_DEPTH:
            raise LimitError(
                f"it holds more than {MAX_VALUES} values or more than {MAX_DEPTH} containers in "
                "each other"
            )
        if isinstance(value, Tensor):
            total += _bytes_of(name, value)
        elif isinstance(value, np.ndarray):
            total += value.nbytes
        else:
            pending.extend((key, item, depth + 1) for key, item in _items(name, value))
    _check_bytes(total, size)


def _items(name: str, value: Any) -> Iterable[tuple[str, Any]]:
    """Values in a container, each with the name it is reported by."""
    if isinstance(value, Mapping):
        return [(str(key)[:100], item) for key, item in value.items()]
    return [(name, item) for item in value] if isinstance(value, list | tuple | set) else []


def _bytes_of(name: str, tensor: Tensor) -> int:
    for kind, is_such in (
        ("a meta tensor, without values", tensor.is_meta),
        ("a quantized tensor", tensor.is_quantized),
        ("a nested tensor", tensor.is_nested),
        ("a sparse tensor", tensor.layout is not torch.strided),
    ):
        if is_such:
            raise LimitError(f"`{name}` is {kind}")
    return tensor.numel() * tensor.element_size()  # an expanded one announces more than it stores


def _check_bytes(announced: int, size: int) -> None:
    if announced > MAX_EXPANSION * size + SLACK_BYTES:
        raise LimitError(f"it has {size} bytes, but announces {announced}")
