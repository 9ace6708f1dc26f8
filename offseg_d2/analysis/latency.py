"""How long calls take: medians with their spread, several ways in turn, and the machine's peak."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from offseg_d2.deploy.packed import PackedLinear

GEMM_SIZES = (1024, 1536, 2048)
GEMM_REPEATS = 5


@dataclass(frozen=True)
class Timing:
    """What repeated calls took, in seconds.

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
        """From the seconds of each call; at least one."""
        p10, median, p90 = (float(value) for value in np.percentile(times, (10, 50, 90)))
        return cls(median, p10, p90, len(times), tuple(times))

    def as_dict(self) -> dict[str, float | int]:
        """For JSON: milliseconds with two decimals, without the single times."""
        values = {name: getattr(self, name) for name in ("median", "p10", "p90")}
        rounded = {f"{name}_ms": round(1000 * value, 2) for name, value in values.items()}
        return {**rounded, "repeats": self.repeats}

    def __str__(self) -> str:
        median, p10, p90 = (1000 * value for value in (self.median, self.p10, self.p90))
        return f"{median:.1f} ms ({p10:.1f} to {p90:.1f}, {self.repeats} calls)"


def measure(
    fn: Callable[[], Any], *, seconds: float = 5.0, warmup: int = 2, min_repeats: int = 5
) -> Timing:
    """Time one call again and again.

    Args:
        fn: called without arguments. Gradients are its own matter: wrap it, or the call of
            ``measure``, in ``torch.inference_mode()`` for inference.
        seconds: how long to go on.
        warmup: calls before the first that counts.
        min_repeats: calls that count at least, whatever they take.
    """
    return measure_interleaved({"": fn}, seconds=seconds, warmup=warmup, min_repeats=min_repeats)[
        ""
    ]


def measure_interleaved(
    callables: Mapping[str, Callable[[], Any]],
    *,
    seconds: float = 5.0,
    warmup: int = 2,
    min_repeats: int = 5,
) -> dict[str, Timing]:
    """Time several ways of doing something, one call of each in turn.

    A disturbance of the machine so hits all of them alike, which makes their ratio worth more than
    that of two separate measurements. All have the same number of repeats, and the same index of
    ``Timing.times`` is the same round.

    Args:
        callables: name -> function without arguments.
        seconds: how long to go on, per callable: ``len(callables) * seconds`` in all.
        warmup: rounds before the first that counts.
        min_repeats: rounds that count at least, whatever they take.
    """
    _check_positive(seconds=seconds, min_repeats=min_repeats)
    for _ in range(warmup):
        for fn in callables.values():
            _time(fn)
    times: dict[str, list[float]] = {name: [] for name in callables}
    end = time.perf_counter() + seconds * len(callables)
    repeats = 0
    while repeats < min_repeats or time.perf_counter() < end:
        for name, fn in callables.items():
            times[name].append(_time(fn))
        repeats += 1
    return {name: Timing.of(values) for name, values in times.items()}


def speedup(slow: Timing, fast: Timing) -> float:
    """How many times faster: the median over the rounds of both times' ratio.

    Raises:
        ValueError: the two do not stem from the same rounds.
    """
    if slow.repeats != fast.repeats:
        raise ValueError(
            f"Both timings must be of the same rounds, but have {slow.repeats} and {fast.repeats}."
        )
    return float(np.median(np.divide(slow.times, fast.times)))


def gemm_peak(
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    size: int | tuple[int, ...] = GEMM_SIZES,
) -> float:
    """Floating-point operations per second of the fastest way of :func:`gemm_peaks`."""
    return max(gemm_peaks(dtype, device, size).values())


def gemm_peaks(
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    size: int | tuple[int, ...] = GEMM_SIZES,
) -> dict[str, float]:
    """Floating-point operations per second of large square matrix products, with torch's threads.

    The practical upper bound of what a network can reach here: the best of several repeats and, if
    several are given, of several sizes. A multiplication and an addition count as two operations.

    Returns:
        "torch.mm", and "packed weights": one matrix rearranged beforehand, as the layers of
        ``offseg_d2.deploy`` have them (the usual product where that is not supported).
    """
    best = {"torch.mm": 0.0, "packed weights": 0.0}
    with torch.no_grad():
        for n in (size,) if isinstance(size, int) else size:
            left, right = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
            out, packed = torch.empty_like(left), PackedLinear(right, None)
            ways = {
                "torch.mm": lambda a=left, b=right, c=out: torch.mm(a, b, out=c),
                "packed weights": lambda a=left, b=packed: b(a),
            }
            for name, multiply in ways.items():
                multiply()
                seconds = min(_time(multiply) for _ in range(GEMM_REPEATS))
                best[name] = max(best[name], 2 * n**3 / seconds)
    return best


def _time(fn: Callable[[], Any]) -> float:
    """Seconds of one call; on a GPU until it has finished."""
    _synchronise()
    begin = time.perf_counter()
    fn()
    _synchronise()
    return time.perf_counter() - begin


def _synchronise() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if value <= 0:
            raise ValueError(f"`{name}` must be positive, but is {value!r}.")
