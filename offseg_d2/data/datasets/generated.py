"""Folders of generated files: made on first use, complete or absent, safe for many processes."""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable

logger = logging.getLogger(__name__)


def generated_folder(root: str, relative: str, fill: Callable[[str], None]) -> str:
    """Return a root below which ``relative`` lies, filled.

    If it is not there yet, ``fill`` writes into a temporary folder beside it, which is then
    renamed: a process that is killed meanwhile leaves nothing that looks finished, and of several
    processes the first to finish wins. If ``root`` cannot be written to, a folder of this user
    below the system's temporary folder takes its place.

    Args:
        root: preferred root.
        relative: folder below the root; name it after everything that its content depends on.
        fill: called with the path of an empty folder.
    """
    fallback = os.path.join(tempfile.gettempdir(), f"offseg_d2-{os.getuid()}")
    for candidate in (root, fallback):
        if os.path.isdir(os.path.join(candidate, relative)):
            return candidate
    try:
        _make(os.path.join(root, relative), fill)
        return root
    except OSError as error:
        logger.warning(f"Cannot write below '{root}' ({error}); using '{fallback}' instead.")
    os.makedirs(fallback, mode=0o700, exist_ok=True)
    _make(os.path.join(fallback, relative), fill)
    return fallback


def _make(path: str, fill: Callable[[str], None]) -> None:
    parent = os.path.dirname(path)
    os.makedirs(parent, exist_ok=True)
    temporary = tempfile.mkdtemp(prefix=".unfinished-", dir=parent)
    try:
        logger.info(f"Generating '{path}'.")
        fill(temporary)
        os.chmod(temporary, 0o755)  # mkdtemp's folder is closed to others
        os.rename(temporary, path)
    except OSError:
        # A rename onto a folder that is not empty fails: another process was faster.
        if not os.path.isdir(path):
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
