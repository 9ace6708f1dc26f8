"""Whether a layer runs its Triton kernel or its PyTorch form: decided here and nowhere else."""

import functools
import importlib.util
import logging

import torch
from torch import Tensor

_AVAILABLE = importlib.util.find_spec("triton") is not None and torch.version.hip is None
_DEVICE_TYPES = {"cuda"}
_DTYPES = {torch.float16, torch.bfloat16, torch.float32}
_OLDEST_MAJOR = 8  # compute capability; the kernels are compiled and inspected from 8.0 on
_enabled = True


def enable_kernels(enabled: bool) -> None:
    """Let layers on NVIDIA GPUs run Triton kernels (the default), or keep to PyTorch everywhere."""
    global _enabled
    _enabled = enabled
    if torch.cuda.is_available():
        _say(_description())


@functools.cache  # once, however many models are built
def _say(text: str) -> None:
    logging.getLogger(__name__).info(text)


def _description() -> str:
    if not _enabled:
        return "No Triton kernels, as the configuration says."
    if torch.version.hip is not None:
        return "No Triton kernels: they are for GPUs of NVIDIA."
    if not _AVAILABLE:
        return "No Triton kernels, as Triton is not installed."
    if not _is_new_enough(torch.device("cuda")):
        return f"No Triton kernels: they need compute capability {_OLDEST_MAJOR}.0."
    return "CARAFE, similarity and loss run as Triton kernels."


def kernels_apply(*tensors: Tensor) -> bool:
    """True if these inputs of a layer are for its Triton kernel.

    They are on an NVIDIA GPU of compute capability 8.0 or newer, in float16, bfloat16 or float32,
    and nothing is traced or exported: a file should not depend on Triton.
    """
    if not (_enabled and _AVAILABLE):
        return False
    if any(t.device.type not in _DEVICE_TYPES or t.dtype not in _DTYPES for t in tensors):
        return False
    if any(t.numel() == 0 for t in tensors):
        return False
    if not all(_is_new_enough(t.device) for t in tensors):
        return False
    return not torch.jit.is_tracing() and not torch.compiler.is_exporting()


def _is_new_enough(device: torch.device) -> bool:
    # Without a GPU the tensors are pretended ones: they are treated as those of a new one.
    if device.type != "cuda" or not torch.cuda.is_available():
        return True
    return torch.cuda.get_device_properties(device).major >= _OLDEST_MAJOR
