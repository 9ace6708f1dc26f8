"""Time of calls: medians with their spread, several ways in turn, and the machine's peak."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.benchmark import Timer, timer

from offseg_d2.deploy.packed import PackedLinear

GEMM_SIZES = (1024, 1536, 2048)
GEMM_SECONDS = 0.5  # of each size and way


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated calls.

    Attributes:
        median: the middle of all repeats.
        p10, p90: 10th and 90th percentile, the spread.
        repeats: number of timed calls, warm-up not counted.
        times: all of them, in the order in which they were run.
    """

    median: float
    p10: float
    p90: float
    repeats: int
    times: tuple[float, ...] = field(repr=False, default=())

    @classmethod
    def of(cls, times: list[float]) -> "Timing":
        """Build it from the seconds of each call; at least one."""
        p10, median, p90 = (float(value) for value in np.percentile(times, (10, 50, 90)))
        return cls(median, p10, p90, len(times), tuple(times))

    def as_dict(self) -> dict[str, float | int]:
        """Values for JSON: milliseconds with two decimals, without the single times."""
        values = {name: getattr(self, name) for name in ("median", "p10", "p90")}
        rounded = {f"{name}_ms": round(1000 * value, 2) for name, value in values.items()}
        return {**rounded, "repeats": self.repeats}


def measure_interleaved(
    callables: Mapping[Any, Callable[[], Any]],
    *,
    seconds: float = 5.0,
    warmup: int = 2,
    min_repeats: int = 5,
) -> dict[Any, Timing]:
    """Time several ways of doing something, one call of each in turn.

    A disturbance of the machine so hits all of them alike, which makes their ratio worth more than
    that of two separate measurements. All have the same number of repeats, and the same index of
    ``Timing.times`` is the same round. On a GPU a call lasts until its kernels have finished.

    Args:
        callables: name -> function without arguments. Gradients are its own matter: wrap the
            measurement in ``torch.inference_mode()`` for inference.
        seconds: how long to go on, per callable: ``len(callables) * seconds`` in all.
        warmup: rounds before the first that counts.
        min_repeats: rounds that count at least, whatever they take.
    """
    for name, value in (("seconds", seconds), ("min_repeats", min_repeats)):
        if value <= 0:
            raise ValueError(f"`{name}` must be positive, but is {value!r}.")
    rounds: list[list[float]] = []
    end = float("inf")
    while len(rounds) < warmup + min_repeats or time.perf_counter() < end:
        if len(rounds) == warmup:
            end = time.perf_counter() + seconds * len(callables)
        rounds.append([_time(fn) for fn in callables.values()])
    times = zip(*rounds[warmup:], strict=True)
    return {name: Timing.of(list(values)) for name, values in zip(callables, times, strict=True)}


def speedup(slow: Timing, fast: Timing) -> float:
    """Factor by which one is faster: the median over the rounds of both times' ratio.

    Raises:
        ValueError: the two do not stem from the same rounds.
    """
    if slow.repeats != fast.repeats:
        raise ValueError(
            f"Both timings must be of the same rounds, but have {slow.repeats} and {fast.repeats}."
        )
    return float(np.median(np.divide(slow.times, fast.times)))


def gemm_peaks(
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    sizes: tuple[int, ...] = GEMM_SIZES,
) -> dict[str, float]:
    """Floating-point operations per second of large square matrix products, with torch's threads.

    The practical upper bound of what a network can reach here: the best of several repeats and
    sizes. A multiplication and an addition count as two operations.

    Returns:
        "torch.mm", and "packed weights": one matrix rearranged beforehand, as the layers of
        ``offseg_d2.deploy`` have them (the usual product where that is not supported).
    """
    best = {"torch.mm": 0.0, "packed weights": 0.0}
    with torch.no_grad():
        for n in sizes:
            left, right = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
            ways = {
                "torch.mm": ("torch.mm(a, b, out=c)", torch.empty_like(left)),
                "packed weights": ("c(a)", PackedLinear(right, None)),
            }
            for name, (statement, third) in ways.items():
                values = {"a": left, "b": right, "c": third}
                measured = Timer(
                    statement, globals=values, num_threads=torch.get_num_threads()
                ).blocked_autorange(min_run_time=GEMM_SECONDS)
                best[name] = max(best[name], 2 * n**3 / min(measured.times))
    return best


def _time(fn: Callable[[], Any]) -> float:
    begin = timer()  # which waits for a GPU
    fn()
    return timer() - begin
