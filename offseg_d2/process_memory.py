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
_OWN_SETTINGS = tuple(
    f"MALLOC_{name}_" for name in ("TRIM_THRESHOLD", "MMAP_THRESHOLD", "TOP_PAD", "MMAP_MAX")
)
SWITCH = "OFFSEG_D2_KEEP_FREED_MEMORY"  # environment: "0" leaves the C library alone
_IN_SETTINGS = {"GLIBC_TUNABLES": "glibc.malloc.", "LD_PRELOAD": "malloc"}


def keep_freed_memory(limit: int = 1 << 30) -> bool:
    """Let this process keep freed memory for its next tensors.

    This concerns the process as a whole, processes that it forks included. Hence only command line
    programs call it, never what others import: training and evaluation where the CPU computes, the
    demo and the web page on any device, for they work on images there. Nothing is changed where
    :func:`own_settings` finds something. ``benchmarks/kept_memory.py`` tells what it gains.

    Args:
        limit: bytes at the end of the heap that are not given back. What is free below a block in
            use stays in any case; blocks above 32 MB are given back at once.

    Returns:
        whether the C library has taken the setting; only GNU's knows it.

    Raises:
        ValueError: if ``limit`` is not positive, or the variable ``SWITCH`` neither 0 nor 1.
    """
    if limit < 1:
        raise ValueError(f"`limit` must be positive, but is {limit}.")
    own = own_settings()
    library = ctypes.CDLL(None) if os.name == "posix" else None
    mallopt = getattr(library, "mallopt", None)
    if own or mallopt is None:
        logger.debug("Freed memory is dealt with as before: %s", own or "no mallopt")
        return False
    kept = mallopt(_TRIM_THRESHOLD, min(limit, _LARGEST_INT))
    return bool(kept and mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT_BLOCK))


def own_settings() -> list[str]:
    """Variables of the environment by which users say how memory is to be dealt with.

    Returns:
        names: ``SWITCH`` if it is 0; settings of GNU's allocator that concern what it gives back
        (``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_MMAP_MAX_``,
        ``MALLOC_TOP_PAD_``, ``GLIBC_TUNABLES`` where it names ``glibc.malloc``); ``LD_PRELOAD``
        where it names an allocator.

    Raises:
        ValueError: if ``SWITCH`` is neither 0 nor 1.
    """
    switch = os.environ.get(SWITCH, "1")
    if switch not in ("0", "1"):
        raise ValueError(f"`{SWITCH}` must be 0 or 1, but is {switch!r}.")
    found = [SWITCH] if switch == "0" else []
    found += [name for name in _OWN_SETTINGS if name in os.environ]
    return found + [n for n, text in _IN_SETTINGS.items() if text in os.environ.get(n, "")]
