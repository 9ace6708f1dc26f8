"""Peak memory of one inference and of one training step, each in a process of its own.

On a CPU it is the resident memory that Linux reports for the process, PyTorch's libraries and the
model among it; on CUDA what PyTorch allocated on the device. What the step needs beyond the loaded
model is the difference to the memory before it.
"""

import contextlib
import multiprocessing
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from offseg_d2.analysis.network import InputSpec, autocast, build_network
from offseg_d2.solver import build_optimizer

STEPS = ("inference", "training")


def measure_memory(cfg: CfgNode, step: str, inputs: InputSpec, **settings: Any) -> dict[str, int]:
    """Run one step of the model of ``cfg`` in a new process; see :func:`run_step`.

    Raises:
        ValueError: ``step`` is unknown.
        ChildProcessError: the process was killed, most likely for want of memory.
    """
    if step not in STEPS:
        raise ValueError(f"`step` must be one of {STEPS}, but is {step!r}.")
    context = multiprocessing.get_context("spawn")  # a copy of this process would start large
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as executor:
        try:
            return executor.submit(run_step, cfg, step, inputs, **settings).result()
        except BrokenProcessPool:
            raise ChildProcessError(
                f"The process of the {step} step was killed, most likely for want of memory."
            ) from None


def run_step(
    cfg: CfgNode,
    step: str,
    inputs: InputSpec,
    *,
    threads: int = 1,
    dtype: torch.dtype = torch.float32,
    transform: Callable[[nn.Module], nn.Module] | None = None,
) -> dict[str, int]:
    """Run one step of a model in this process, of which everything else counts, too.

    Args:
        cfg: configuration.
        step: "inference" (to label maps) or "training" (forward, backward, optimizer).
        inputs: size and number of images.
        threads: of PyTorch.
        dtype: float32, or a half type for automatic mixed precision.
        transform: makes another form of the model, a function that can be pickled.

    Returns:
        megabytes (2^20 bytes): "before_mb" with the model loaded, "peak_mb" the most during the
        step, "step_mb" their difference.
    """
    torch.set_num_threads(threads)
    model = build_network(cfg)
    if transform is not None:
        model = transform(model)
    samples = inputs.samples(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    on_cuda = model.device.type == "cuda"
    before = torch.cuda.memory_allocated() if on_cuda else _resident("VmRSS")
    _reset_peak(on_cuda)
    if step == "training":
        optimizer = build_optimizer(cfg, model.train())
        with autocast(model.device, dtype):
            loss = sum(model(samples).values())
        loss.backward()
        optimizer.step()
    else:
        with torch.inference_mode(), autocast(model.device, dtype):
            model.predict_label_maps(samples)
    peak = torch.cuda.max_memory_allocated() if on_cuda else _resident("VmHWM")
    sizes = {"before_mb": before, "peak_mb": peak, "step_mb": peak - before}
    return {name: round(size / 2**20) for name, size in sizes.items()}


def _reset_peak(on_cuda: bool) -> None:
    """Forget what building and loading took."""
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _resident(field: str) -> int:
    """Bytes of resident memory: "VmRSS" now, "VmHWM" the peak."""
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        for line in file:
            if line.startswith(f"{field}:"):
                return 1024 * int(line.split()[1])
    # Not Linux: the peak since the start, in bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
