"""Files that are complete or absent, whenever the process is killed."""

import os
import tempfile

from detectron2.utils.file_io import PathManager


def write_atomically(path: str, content: bytes) -> None:
    """Write a file; until it is complete, ``path`` is absent or has its old content.

    Args:
        path: in a folder that is there. One that iopath does not keep on a disk (``scheme://``)
            is left to iopath.
        content: of the whole file.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    if "://" in path:  # a rename is nothing that iopath offers
        with PathManager.open(path, "wb") as file:
            file.write(content)
        return
    folder, name = os.path.split(path)
    handle, temporary = tempfile.mkstemp(prefix=".unfinished-", dir=folder or os.curdir)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)  # mkstemp's file is closed to others
        os.replace(temporary, os.path.join(folder, name))
    except BaseException:
        os.unlink(temporary)
        raise
