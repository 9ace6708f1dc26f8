"""Where the time of OffSeg goes, by kind of operation, and what the machine would allow.

::

    python benchmarks/inference_profile.py [--output FILE]     all groups, each in its own process
    python benchmarks/inference_profile.py --plan              their commands, to be run one by one
    python benchmarks/inference_profile.py --model offseg_t    one group
        [--size 512 512] [--threads 2] [--repeats 30] [--output FILE]

A group is a model at a size; merged into FILE, it replaces the same group there. Two forms of the
model (see ``inference.py``), the authors' order of operations and the
deployed one, give logits in turn; then each is profiled. Of every kind of operation this tells

calls, ms       each operation timed by itself: the sum of their medians over the calls;
best            the sum of their shortest times;
GFLOP           two per multiply-add of convolutions and matrix products;
GELU            values that it is applied to, often in the pass of a convolution or product;
bytes           of all tensors that the operations read and write, each operation by itself;
floor           GFLOP at the peak of large matrix products and GELU at the rate at which it goes
                through a tensor in the cache, where there are any; else bytes at the rate at which
                a tensor is copied, the best of several sizes.

The floor of a form is the sum of its operations' floors: what it would take if every product ran
like a large one, all else like a copy, and nothing between the operations. Other operations than
these, or fewer of them, have another floor. Calls whose operations are timed take turns with
others; what a call takes beyond the operations' medians is Python's and that of views, less about
a microsecond that timing adds to each operation. "At best" is the sum of the shortest times and
this remainder, or the shortest call if that took less.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from common import check_group, machine, merge_groups, run_plan
from inference_forms import (
    AUTHORS,
    DEPLOYED,
    MODELS,
    build_own,
    make_forms,
    make_images,
    to_label_maps,
    to_logits,
)
from operation_kinds import KINDS, Profile, Work, profile_kinds

from offseg_d2.analysis import gemm_peaks, measure_interleaved, speedup

_COPY_SIZES = tuple(1 << n for n in (20, 22, 24, 26))  # bytes
_GELU_VALUES = 1 << 18  # a megabyte
# Times as fast as the authors' order.
_TARGETS = {"logits": 4.0, "label maps": 5.0}
_OTHER_TARGETS = {"logits": 1.5, "label maps": 1.5}  # of models that are not OffSeg-T, B or L

KEYS = ("model", "size", "dtype", "threads")  # of a group
PLAN = [
    ["--model", "offseg_t"],
    ["--model", "offseg_b"],
    ["--model", "offseg_l"],
    ["--model", "offseg_t", "--size", "1024", "2048", "--min-repeats", "4", "--repeats", "5"],
]


def copy_rate() -> float:
    """Bytes per second, read and written, of the fastest copy of a tensor."""
    best = 0.0
    for size in _COPY_SIZES:
        source = torch.ones(size // 4)
        target = torch.empty_like(source)
        for _ in range(10):
            begin = time.perf_counter()
            target.copy_(source)
            best = max(best, 2 * size / (time.perf_counter() - begin))
    return best


def gelu_rate() -> float:
    """Values per second of GELU at its best, in place and in the cache."""
    values, best = torch.zeros(_GELU_VALUES), 0.0
    for _ in range(50):
        begin = time.perf_counter()
        torch.ops.aten.gelu_(values)
        best = max(best, len(values) / (time.perf_counter() - begin))
    return best


def make_rows(
    work: dict[str, Work], peak: float, rate: float, gelus: float
) -> list[dict[str, Any]]:
    """One row for each kind that occurs.

    Args:
        work: by kind.
        peak: operations per second of matrix products.
        rate: bytes per second of a copy.
        gelus: values per second of GELU.
    """
    rows = []
    for kind in KINDS:
        if kind not in work:
            continue
        done = work[kind]
        flops, taken = 2 * done.macs, done.seconds
        floor = flops / peak + done.gelus / gelus + done.other_bytes / rate
        rows.append(
            {
                "kind": kind,
                "calls": done.calls,
                "ms": round(1000 * taken, 2),
                "best_ms": round(1000 * done.best, 2),
                "gflop": round(flops / 1e9, 3) if flops else None,
                "gflops": round(flops / taken / 1e9, 1) if flops and taken else None,
                "share_of_gemm_peak": round(flops / taken / peak, 3) if flops and taken else None,
                "mega_gelus": round(done.gelus / 1e6, 2) if done.gelus else None,
                "megabytes": round(done.bytes / 1e6, 1),
                "floor_ms": round(1000 * floor, 2),
            }
        )
    return rows


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Both forms: latency in turn, then profiles, between two measurements of the machine."""
    setting = {"model": args.model, "size": list(args.size), "dtype": "float32", **machine()}
    images = make_images(1, *args.size)
    built = make_forms(build_own(args.model), torch.float32)
    models = {form: built[form] for form in (AUTHORS, DEPLOYED)}
    goals = {"logits": to_logits, "label maps": to_label_maps}
    with torch.inference_mode():
        peaks, rate, gelus = [gemm_peaks()], copy_rate(), gelu_rate()
        ways: dict[str, Callable[[], Any]] = {
            f"{goal} {form}": lambda call=call, model=model: call(model, images)
            for goal, call in goals.items()
            for form, model in models.items()
        }
        timings = measure_interleaved(ways, seconds=args.seconds, min_repeats=args.min_repeats)
        peaks, rate = [*peaks, gemm_peaks()], max(rate, copy_rate())
        gelus = max(gelus, gelu_rate())
    with torch.no_grad():  # inference mode hides what operations are made of
        found = {
            form: profile_kinds(model, lambda model=model: to_logits(model, images), args.repeats)
            for form, model in models.items()
        }
    best = {name: max(each[name] for each in peaks) for name in peaks[0]}
    peak = max(best.values())
    forms = []
    for form in models:
        profile = found[form]
        rows = make_rows(profile.work, peak, rate, gelus)
        ms = {goal: round(1000 * timings[f"{goal} {form}"].median, 1) for goal in goals}
        sums = _sums(rows)
        sums |= _calls(profile, sums)
        forms.append({"form": form, "ms": ms, **sums, "rows": rows})
    ratios = {
        goal: round(speedup(timings[f"{goal} {AUTHORS}"], timings[f"{goal} {DEPLOYED}"]), 2)
        for goal in goals
    }
    return {
        **setting,
        "repeats": args.repeats,
        "gemm_gflops": {name: round(value / 1e9, 1) for name, value in best.items()},
        "copy_gigabytes_per_second": round(rate / 1e9, 1),
        "giga_gelus_per_second": round(gelus / 1e9, 2),
        "goals": goals_of(forms, ratios, peak, targets_of(args.model)),
        "forms": forms,
    }


def _sums(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {
        "operations_ms": round(sum(row["ms"] for row in rows), 1),
        "best_ms": round(sum(row["best_ms"] for row in rows), 1),
        "gflop": round(sum(row["gflop"] or 0 for row in rows), 2),
        "floor_ms": round(sum(row["floor_ms"] for row in rows), 1),
    }


def _calls(profile: Profile, sums: dict[str, float]) -> dict[str, float]:
    """What whole calls take, and what they would at best.

    Args:
        profile: of the form.
        sums: of its operations.
    """
    call, shortest = round(1000 * profile.median, 1), round(1000 * profile.shortest, 1)
    # Of calls that took turns; negative where timing each operation made them longer.
    between = round(call - sums["operations_ms"], 1)
    at_best = round(min(sums["best_ms"] + max(between, 0.0), shortest), 1)
    return {
        "call_ms": call,
        "shortest_ms": shortest,
        "between_ms": between,
        "at_best_ms": at_best,
    }


def targets_of(model: str) -> dict[str, float]:
    """How many times as fast as the authors' order the deployed form shall be, by goal."""
    return _TARGETS if model.startswith("offseg_") else _OTHER_TARGETS


def goals_of(
    forms: list[dict[str, Any]],
    ratios: dict[str, float],
    peak: float,
    targets: dict[str, float],
) -> list[dict[str, Any]]:
    """What the targets ask for, and what the deployed form would reach at its floor.

    What comes after the logits is taken as it is.

    Args:
        forms: the authors' order and the deployed form.
        ratios: measured, by goal.
        peak: operations per second of matrix products.
        targets: times as fast, by goal.
    """
    authors, deployed = forms
    rows = []
    for goal, target in targets.items():
        after = deployed["ms"][goal] - deployed["ms"]["logits"]
        allowed = authors["ms"][goal] / target
        left = allowed - after
        rows.append(
            {
                "goal": goal,
                "authors_ms": authors["ms"][goal],
                "deployed_ms": deployed["ms"][goal],
                "times_as_fast": ratios[goal],
                "target": target,
                "target_ms": round(allowed, 1),
                "share_of_gemm_peak": _share(deployed["gflop"], deployed["ms"]["logits"], peak),
                "target_share_of_gemm_peak": _share(deployed["gflop"], left, peak),
                "times_as_fast_at_best": round(
                    authors["ms"][goal] / (deployed["at_best_ms"] + after), 2
                ),
                "times_as_fast_at_floor": round(
                    authors["ms"][goal] / (deployed["floor_ms"] + after), 2
                ),
            }
        )
    return rows


def _share(gflop: float, ms: float, peak: float) -> float | None:
    return round(1e12 * gflop / ms / peak, 3) if ms > 0 else None


def print_result(result: dict[str, Any]) -> None:
    print(f"{result['model']} {result['size']}: {result['dtype']}")
    print(f"GEMM {result['gemm_gflops']}, copy {result['copy_gigabytes_per_second']} GB/s")
    for form in result["forms"]:
        print(f"{form['form']}: {form['ms']}, operations {form['operations_ms']} ms")
        for row in form["rows"]:
            print("  " + "  ".join(f"{key} {value}" for key, value in row.items()))
        print(f"  {form['gflop']} GFLOP, floor {form['floor_ms']} ms")
    for goal in result["goals"]:
        print(goal)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=sorted(MODELS), metavar="NAME", help="one group")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("H", "W"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0, help="of timed calls, each way")
    parser.add_argument("--min-repeats", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=30, help="calls whose operations are timed")
    parser.add_argument("--plan", action="store_true", help="print the commands of all groups")
    parser.add_argument("--output", default="", metavar="FILE", help="merge the group into it")
    args = parser.parse_args()
    check_group(
        parser, args, bool(args.model), ("size", "min_repeats", "repeats"), (*KEYS, "forms")
    )
    if args.model:
        torch.set_num_threads(args.threads)
        result = measure(args)
        print_result(result)
        if args.output:
            merge_groups(args.output, [result], KEYS)
        return
    run_plan(__file__, PLAN, args)


if __name__ == "__main__":
    main()
