"""How the C library deals with memory that tensors give back.

On a CPU a tensor's memory comes from ``malloc``. GNU's hands large blocks back to the operating
system as soon as they are freed, and the next tensor of that size has its pages mapped and cleared
anew, which takes longer than many an operation on it: some tenths of the time of a training step.
"""

import ctypes
import logging
import os

logger = logging.getLogger(__name__)

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3)
_LARGEST_MMAP_THRESHOLD = 32 << 20  # bytes; the library refuses more


def keep_freed_memory(limit: int = 1 << 30) -> bool:
    """Let this process keep freed memory for its next tensors.

    This concerns the whole process, hence the command line programs call it, and nothing that other
    programs import does. ``benchmarks/kept_memory.py`` tells what it gains.

    Args:
        limit: bytes that are kept at most.

    Returns:
        whether the C library knows the setting (GNU's does) and has taken it.

    Raises:
        ValueError: if ``limit`` is not positive.
    """
    if limit < 1:
        raise ValueError(f"`limit` must be positive, but is {limit}.")
    library = ctypes.CDLL(None) if os.name == "posix" else None
    mallopt = getattr(library, "mallopt", None)
    if mallopt is None:
        logger.info("This C library has no mallopt: freed memory is dealt with as before")
        return False
    largest_int = 2**31 - 1
    kept = mallopt(_TRIM_THRESHOLD, min(limit, largest_int))
    return bool(kept and mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD))
