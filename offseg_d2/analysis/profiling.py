"""Where the time of an inference goes: by operator, and by part of the model."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from offseg_d2.analysis.module_watch import part_of, watch_modules

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
        rows with "operator", "ms" and "calls" (of one call of ``call``) and "share" (of all).
    """
    call()
    on_cuda = torch.cuda.is_initialized()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_cuda
    with profile(activities=activities) as profiler:
        for _ in range(repeats):
            call()
    times = {
        event.key: (
            event.self_device_time_total if on_cuda else event.self_cpu_time_total,
            event.count,
        )
        for event in profiler.key_averages()
    }
    total = max(sum(microseconds for microseconds, _ in times.values()), 1e-9)
    slowest = sorted(times.items(), key=lambda item: -item[1][0])[:rows]
    return [
        {
            "operator": name,
            "ms": round(microseconds / repeats / 1000, 3),
            "share": round(microseconds / total, 4),
            "calls": round(count / repeats),
        }
        for name, (microseconds, count) in slowest
    ]


def profile_parts(
    model: nn.Module, call: Callable[[], Any], *, repeats: int = 5, depth: int = 1
) -> dict[str, float]:
    """Seconds that one call spends in each part of the model.

    Args:
        model: what ``call`` runs.
        call: one inference; it runs once more to warm up.
        repeats: calls that are averaged.
        depth: see :func:`~offseg_d2.analysis.module_watch.part_of`.

    Returns:
        part -> seconds; what is spent outside of all modules is called "(rest)". They add up to
        the whole.
    """
    call()
    clock = _Clock()
    with watch_modules(model, clock.enter, clock.leave):
        for _ in range(repeats):
            clock.start()
            call()
            clock.leave("")
    parts: Counter[str] = Counter()
    for name, seconds in clock.seconds.items():
        parts[part_of(name, depth) or REST] += seconds / repeats
    return dict(sorted(parts.items(), key=lambda item: -item[1]))


class _Clock:
    """Seconds spent in each module, without the modules in it."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._running: list[str] = []
        self._since = 0.0

    def start(self) -> None:
        self._running, self._since = [""], self._now()

    def enter(self, name: str) -> None:
        self._book()
        self._running.append(name)

    def leave(self, name: str) -> None:
        self._book()
        self._running.pop()

    def _book(self) -> None:
        now = self._now()
        self.seconds[self._running[-1]] += now - self._since
        self._since = now

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter()
