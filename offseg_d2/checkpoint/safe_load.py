"""Loading checkpoint files of any origin without executing what they contain.

=====================  ==============================================================
file                   read by
=====================  ==============================================================
``.pth``, any torch    ``torch.load(weights_only=True)``
``.pth`` of mmengine   the same, its log buffers standing for inert objects
``.pkl`` of Detectron  :func:`~offseg_d2.checkpoint.inert_pickle.load_inert_pickle`
``.safetensors``       the safetensors package
=====================  ==============================================================

There is no fall-back to an unrestricted load: what these refuse is an error that names it.
"""

import logging
import os
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from detectron2.utils.file_io import PathManager

from .inert_pickle import MMENGINE_GLOBALS, RefusedGlobalError, load_inert_pickle, to_plain
from .limits import LimitError, check_archive, check_pickle, check_values

logger = logging.getLogger(__name__)

# Useful entries of an external file; its logs, optimizer and schedules are not.
_EXTERNAL_ENTRIES = ("state_dict", "model", "meta")

# What a tensor asks for that was pickled as any other object, not by torch.save.
_PICKLED_TENSORS = {
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor_v2",
    "torch.storage._load_from_bytes",
}

# What readers raise on damaged bytes, besides pickle.UnpicklingError.
_DAMAGE_ERRORS = (
    AssertionError,
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    MemoryError,
    OverflowError,
    RuntimeError,
    TypeError,
    UnicodeDecodeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


class CheckpointError(ValueError):
    """A checkpoint file cannot be used; the message names the file and the reason."""


class CorruptCheckpointError(CheckpointError):
    """A file is truncated, damaged or no checkpoint at all."""


class UnsafeCheckpointError(CheckpointError):
    """A file asks for functions or classes that a checkpoint has no need of."""


def load_checkpoint_file(path: str) -> dict[str, Any]:
    """Read a checkpoint as plain data: containers, numbers, text, tensors (CPU), numpy arrays.

    Args:
        path: file name, or any address that iopath's PathManager knows.

    Returns:
        the file's top-level dictionary. Of a file with objects of mmengine only the entries
        ``state_dict``, ``model`` and ``meta`` are kept.

    Raises:
        FileNotFoundError: if there is no such file.
        CorruptCheckpointError: if it is truncated, damaged or no checkpoint.
        UnsafeCheckpointError: if it names a function or class outside the allowed ones, or would
            need far more memory than its size.
    """
    local_path = PathManager.get_local_path(path)
    check_is_file(path, local_path)
    if os.path.getsize(local_path) == 0:
        raise CorruptCheckpointError(f"Checkpoint file `{path}` is empty.")
    try:
        named = path if os.path.splitext(path)[1] else local_path
        data = _reader_for(named, local_path)(path, local_path)
    except LimitError as error:
        raise UnsafeCheckpointError(f"Checkpoint file `{path}` is refused: {error}.") from None
    if not isinstance(data, dict):
        raise CorruptCheckpointError(
            f"Checkpoint file `{path}` must hold a dictionary, but holds a {type(data).__name__}."
        )
    return data


def check_is_file(path: str, local_path: str) -> None:
    """Raise FileNotFoundError if nothing is there, CheckpointError if it is no file.

    Reading from a pipe would wait for whoever writes to it, a device would never end.
    """
    if os.path.isdir(local_path):
        raise CheckpointError(f"Checkpoint file `{path}` must be a file, but is a folder.")
    if os.path.exists(local_path) and not os.path.isfile(local_path):
        raise CheckpointError(
            f"Checkpoint file `{path}` must be a file, but is a pipe, a socket or a device."
        )
    if not os.path.exists(local_path):
        raise FileNotFoundError(f"Checkpoint file `{path}` does not exist.")


def _reader_for(path: str, local_path: str) -> Callable[[str, str], Any]:
    if local_path.endswith(".safetensors"):
        return _load_safetensors
    if local_path.endswith(".pkl") and not zipfile.is_zipfile(local_path):
        return _load_pickle
    return _load_torch


def _load_torch(path: str, local_path: str) -> Any:
    _check_archive(path, local_path)
    try:
        data = torch.load(local_path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        return _load_mmengine(path, local_path)
    except _DAMAGE_ERRORS as error:
        raise _corrupt(path, error) from error
    check_values(data, os.path.getsize(local_path))
    return data


def _load_mmengine(path: str, local_path: str) -> Any:
    """Second attempt, with the names that mmengine's files hold standing for inert objects."""
    stand_ins = [(stand_in, name) for name, stand_in in MMENGINE_GLOBALS.items()]
    try:
        with torch.serialization.safe_globals(stand_ins):
            data = torch.load(local_path, map_location="cpu", weights_only=True)
        if isinstance(data, dict):
            data = {key: data[key] for key in _EXTERNAL_ENTRIES if key in data}
        check_values(data, os.path.getsize(local_path))
        return to_plain(data)
    except pickle.UnpicklingError as error:
        refused = _refused_names(local_path, error)
        if refused:
            raise _unsafe(path, refused) from error
        raise _corrupt(path, error) from error
    except _DAMAGE_ERRORS as error:
        raise _corrupt(path, error) from error


def _load_pickle(path: str, local_path: str) -> Any:
    try:
        with open(local_path, "rb") as file:
            check_pickle(file)
            file.seek(0)
            return load_inert_pickle(
                file, check=partial(check_values, size=os.path.getsize(local_path))
            )
    except RefusedGlobalError as error:
        raise _unsafe(path, [error.name]) from error
    except (pickle.UnpicklingError, *_DAMAGE_ERRORS) as error:
        raise _corrupt(path, error) from error


def _load_safetensors(path: str, local_path: str) -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise CheckpointError(
            f"Checkpoint file `{path}` needs the package safetensors: pip install safetensors."
        ) from error
    try:
        with open(local_path, "rb") as file:  # the package itself maps whatever the header says
            (header,) = struct.unpack("<Q", file.read(8))
        if header > os.path.getsize(local_path):
            raise ValueError("its header is longer than the file")
        return safetensors.torch.load_file(local_path, device="cpu")
    except (safetensors.SafetensorError, *_DAMAGE_ERRORS) as error:
        raise _corrupt(path, error) from error


def _check_archive(path: str, local_path: str) -> None:
    """Compare the checksums of a zip archive, which torch itself does not look at."""
    with open(local_path, "rb") as file:
        if file.read(2) != b"PK":  # torch's format before 1.6: five pickles, then the tensors
            file.seek(0)
            for _ in range(5):
                check_pickle(file)
            return
    try:
        with zipfile.ZipFile(local_path) as archive:
            check_archive(archive, os.path.getsize(local_path))
            damaged = archive.testzip()
    except (OSError, *_DAMAGE_ERRORS) as error:  # OSError: positions before the file's beginning
        raise _corrupt(path, error) from error
    if damaged is not None:
        raise CorruptCheckpointError(
            f"Checkpoint file `{path}` is damaged: the checksum of `{damaged}` does not fit."
        )


def _refused_names(local_path: str, error: Exception) -> list[str]:
    """Names in the file that are neither torch's own nor among the stand-ins."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(local_path)
    except (pickle.UnpicklingError, *_DAMAGE_ERRORS):
        names = re.findall(r"GLOBAL ([\w.]+)", str(error))
    return sorted(set(names) - set(MMENGINE_GLOBALS))


def _unsafe(path: str, names: list[str]) -> UnsafeCheckpointError:
    if _PICKLED_TENSORS.issuperset(names):
        return UnsafeCheckpointError(
            f"Checkpoint file `{path}` is refused: it holds tensors that were pickled without "
            "torch.save; use the original .pth, or write the file again with torch.save; "
            "nothing of it was executed."
        )
    return UnsafeCheckpointError(
        f"Checkpoint file `{path}` is refused: it asks for {', '.join(names)}, which no "
        "checkpoint needs; nothing of it was executed."
    )


def _corrupt(path: str, error: Exception) -> CorruptCheckpointError:
    reason = (str(error).splitlines() or [""])[0].strip() or type(error).__name__
    if "weights_only" in reason:  # torch's advice is to load it so that it may run code
        reason = "torch cannot read it"
    return CorruptCheckpointError(
        f"Checkpoint file `{path}` is truncated, damaged or no checkpoint ({reason})."
    )
