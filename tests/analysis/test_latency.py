"""Timing: what is called, in which order, and how the numbers are put together."""

import json

import pytest
import torch

from offseg_d2.analysis import Timing, gemm_peaks, machine, measure_interleaved, speedup


def test_calls_take_turns_and_the_warm_up_does_not_count():
    order = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    timings = measure_interleaved(calls, seconds=1e-9, warmup=3, min_repeats=4)
    assert order == ["a", "b"] * 7
    assert [timing.repeats for timing in timings.values()] == [4, 4]


def test_measuring_goes_on_for_the_time_that_is_asked_for():
    timings = measure_interleaved({"": lambda: None}, seconds=0.02, warmup=0, min_repeats=1)
    timing = timings[""]
    assert timing.repeats > 1
    assert len(timing.times) == timing.repeats


def test_timing_states_median_and_percentiles():
    timing = Timing.of([0.001 * value for value in range(11, 0, -1)])
    assert (timing.median, timing.p10, timing.p90) == pytest.approx((0.006, 0.002, 0.010))
    assert timing.as_dict() == {"median_ms": 6.0, "p10_ms": 2.0, "p90_ms": 10.0, "repeats": 11}


def test_speedup_is_the_median_of_the_rounds():
    slow, fast = Timing.of([4.0, 9.0, 8.0]), Timing.of([2.0, 3.0, 8.0])
    assert speedup(slow, fast) == 2.0
    with pytest.raises(ValueError, match="same rounds, but have 3 and 1"):
        speedup(slow, Timing.of([1.0]))


@pytest.mark.parametrize("name", ["seconds", "min_repeats"])
def test_time_and_repeats_must_be_positive(name):
    with pytest.raises(ValueError, match=f"`{name}` must be positive, but is 0"):
        measure_interleaved({"": lambda: None}, **{name: 0})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peak_is_a_rate_of_operations(dtype):
    peaks = gemm_peaks(dtype, sizes=(64,))
    assert list(peaks) == ["torch.mm", "packed weights"]
    assert all(1e6 < peak < 1e15 for peak in peaks.values())


def test_machine_can_be_written_down():
    facts = json.loads(json.dumps(machine()))
    assert facts["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
