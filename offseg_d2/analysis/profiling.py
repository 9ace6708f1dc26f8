"""Time of an inference: by operator, and by part of the model."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import timer

from offseg_d2.analysis.complexity import split_by_part

REST = "(rest)"  # outside of all parts: normalising the image, making the label map


def profile_operators(call: Callable[[], Any], *, repeats: int = 3, rows: int = 15) -> list[dict]:
    """The operators that take most time, as torch.profiler sees them.

    Times are those of the operator itself, without operators that it calls; on CUDA those of its
    kernels. Profiling makes everything slower, small operators most; shares are what counts.

    Args:
        call: what to profile; it runs once more to warm up.
        repeats: calls that are averaged.
        rows: number of operators.

    Returns:
        rows with "name", "ms" and "calls" (of one call of ``call``) and "share, %" (of all).
    """
    call()
    on_cuda = torch.cuda.is_initialized()
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_cuda) as profiler:
        for _ in range(repeats):
            call()
    time_of = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    events = profiler.key_averages()
    total = max(sum(getattr(event, time_of) for event in events), 1e-9)
    return [
        {
            "name": event.key,
            "ms": round(getattr(event, time_of) / repeats / 1000, 3),
            "share, %": round(100 * getattr(event, time_of) / total, 2),
            "calls": round(event.count / repeats),
        }
        for event in sorted(events, key=lambda event: -getattr(event, time_of))[:rows]
    ]


def profile_parts(
    model: nn.Module, call: Callable[[], Any], *, repeats: int = 5, depth: int = 1
) -> dict[str, float]:
    """Seconds that one call spends in each part of the model.

    Args:
        model: what ``call`` runs.
        call: one inference; it runs once more to warm up.
        repeats: calls that are averaged.
        depth: see :func:`~offseg_d2.analysis.complexity.part_of`.

    Returns:
        part -> seconds; what is spent outside of all parts is called "(rest)". They add up to
        the whole.
    """
    call()
    totals, begun, handles = Counter({"": 0.0}), {}, []
    for name, module in model.named_modules():
        if name:

            def before(*args: Any, name: str = name) -> None:
                begun[name] = timer()

            def after(*args: Any, name: str = name) -> None:
                totals[name] += timer() - begun[name]

            handles.append(module.register_forward_pre_hook(before))
            handles.append(module.register_forward_hook(after))
    try:
        begin = timer()
        for _ in range(repeats):
            call()
        totals[""] = timer() - begin
    finally:
        for handle in handles:
            handle.remove()
    parts = split_by_part(totals, depth)
    return {
        part or REST: seconds / repeats
        for part, seconds in sorted(parts.items(), key=lambda item: -item[1])
    }
