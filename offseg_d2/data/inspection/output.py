"""Where reports and pictures are written: tried before the work begins, not after it."""

import os
import re

from detectron2.utils.file_io import PathManager

from offseg_d2.utils.io import write_atomically


def require_writable_folder(path: str, option: str) -> None:
    """Make a folder if need be, and see whether files can be written there.

    Args:
        path: of the folder.
        option: of the command line that named it, for the message.

    Raises:
        OSError: it is none, or cannot be written to.
    """
    probe = os.path.join(path, f".probe-{os.getpid()}")
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


def write_file(path: str, content: bytes) -> None:
    """Write a file that is complete or absent, whenever the process is killed."""
    write_atomically(path, content)


def file_stem(dataset_name: str) -> str:
    """Part of a file name that tells a dataset: "folder:/data/x:train" -> "folder_data_x_train"."""
    return re.sub(r"[^\w.-]+", "_", dataset_name).strip("_.") or "dataset"
