"""Lock of an output folder, in which one training may run at a time."""

import fcntl
import logging
import os
import socket

from offseg_d2.config import ConfigError

logger = logging.getLogger(__name__)

_FILE = ".training"


class RunLock:
    """A lock on a folder that ends with its process, over a shared file system too.

    Args:
        folder: of the run, made if need be.

    Raises:
        ConfigError: another process trains in the folder; names its machine and process.
    """

    def __init__(self, folder: str) -> None:
        os.makedirs(folder, exist_ok=True)
        # Kept open: POSIX drops the locks of a process with any closed handle of the file.
        self._file = open(os.path.join(folder, _FILE), "a+", encoding="utf-8")  # noqa: SIM115
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            self._file.seek(0)
            owner = self._file.read().strip() or "another process"
            self._file.close()
            raise ConfigError(
                f"`OUTPUT_DIR` must be a folder in which no other training runs, but {owner} "
                f"trains in '{folder}'."
            ) from None
        except OSError as error:  # a file system without locks
            logger.warning("'%s' cannot be locked for this training: %s.", folder, error)
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._file.flush()

    def release(self) -> None:
        """Let others train in the folder."""
        self._file.truncate(0)
        self._file.close()
