"""How the C library of this process deals with memory that tensors give back.

On a CPU a tensor's memory comes from ``malloc``. GNU's gives much of it back to the operating
system when tensors are freed, and has its pages mapped and cleared anew for the next ones, which
takes a good part of the time of a training step.
"""

import ctypes
import logging
import os

logger = logging.getLogger(__name__)

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3)
# Blocks above this go back at once, so that one large image does not leave its memory behind.
_LARGEST_KEPT_BLOCK = 32 << 20
_LARGEST_INT = 2**31 - 1
# What people set who have an opinion on this themselves; the other allocators ignore mallopt.
_OWN_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")
_IN_SETTINGS = {"GLIBC_TUNABLES": "glibc.malloc.", "LD_PRELOAD": "malloc"}


def keep_freed_memory(limit: int = 1 << 30) -> bool:
    """Let this process keep freed memory for its next tensors.

    This concerns the process as a whole, processes that it forks included. Hence only command line
    programs call it, never what others import: training and evaluation where the CPU computes, the
    demo and the web page on any device, for they work on images there. An allocator that was
    preloaded and settings of the environment (``MALLOC_TRIM_THRESHOLD_``,
    ``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_TOP_PAD_``, ``GLIBC_TUNABLES``) are left alone.
    ``benchmarks/kept_memory.py`` tells what it gains.

    Args:
        limit: bytes at the end of the heap that are not given back. What is free below a block in
            use stays in any case; blocks above 32 MB are given back at once.

    Returns:
        whether the C library has taken the setting; only GNU's knows it.

    Raises:
        ValueError: if ``limit`` is not positive.
    """
    if limit < 1:
        raise ValueError(f"`limit` must be positive, but is {limit}.")
    own = _settings_of_the_user()
    library = ctypes.CDLL(None) if os.name == "posix" else None
    mallopt = getattr(library, "mallopt", None)
    if own or mallopt is None:
        logger.debug("Freed memory is dealt with as before: %s", own or "no mallopt")
        return False
    kept = mallopt(_TRIM_THRESHOLD, min(limit, _LARGEST_INT))
    return bool(kept and mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT_BLOCK))


def _settings_of_the_user() -> list[str]:
    """Names of the variables of the environment that say how memory is to be dealt with."""
    found = [name for name in _OWN_SETTINGS if name in os.environ]
    return found + [n for n, text in _IN_SETTINGS.items() if text in os.environ.get(n, "")]
