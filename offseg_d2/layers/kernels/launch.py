"""What all launches of Triton kernels share."""

import contextlib
from typing import Any

import torch
from torch import Tensor


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: int) -> None:
    """Run a kernel on the device of its first argument; ``constants`` are compiled in."""
    first: Tensor = arguments[0]
    with torch.cuda.device(first.device) if first.is_cuda else contextlib.nullcontext():
        kernel[grid](*arguments, **constants)


def blocks(length: int, size: int) -> int:
    """Blocks of ``size`` that hold ``length`` values."""
    return -(-length // size)
