"""Section of ``inference_profile.py``: where the time goes, and what the machine would allow."""

from collections.abc import Iterator
from typing import Any

from page import number, origin, percent, section, table

COMMAND = (
    "python benchmarks/inference_profile.py --output benchmarks/results/inference_profile.json"
)
HEADER = [
    *("kind of operation", "calls", "ms", "best, ms", "GFLOP", "GFLOP/s", "of GEMM peak"),
    *("million GELU", "MB", "floor, ms"),
]


@section("inference_profile", "Where the time of inference goes", order=12)
def inference_profile(result: dict[str, Any]) -> Iterator[str]:
    """Targets first, then each form."""
    height, width = result["size"]
    gemm = ", ".join(f"{name} {number(value)}" for name, value in result["gemm_gflops"].items())
    yield (
        f"{result['model']}, 1 × {height}×{width}, {result['dtype']}, from a uint8 image, the two "
        f"forms in turn. Large matrix products reach (GFLOP/s): {gemm}; the larger one is the GEMM "
        f"peak. A copy reaches {number(result['copy_gigabytes_per_second'])} GB/s, read and "
        "written, at the best of several sizes; GELU goes through "
        f"{number(result['giga_gelus_per_second'])} billion values a second in the cache. The "
        "floor of an operation is its GFLOP at the GEMM peak and its GELU at that rate, or where "
        "it has neither, its bytes at the rate of the copy."
    )
    yield table(
        ["goal", "authors' order, ms", "deployed, ms", "times as fast", "target", "target, ms",
         "of GEMM peak", "target needs", "times as fast at best", "at the floor"],
        [_goal_row(goal) for goal in result["goals"]],
    )  # fmt: skip
    yield (
        "Of GEMM peak: all convolutions and matrix products of the deployed form in the time to "
        "its logits, whatever else happens in it. Target needs: the same share if the target were "
        "met, the way from logits to label maps taking as long as now. At best: if each operation "
        "of a call took the shortest time that it was ever seen to take, and what lies between "
        "the operations (Python, views) as long as now. At the floor: the logits in the time of "
        "the floor, the rest as now."
    )
    yield from _verdict(result)
    for form in result["forms"]:
        yield f"### Operations of one call to logits, {form['form']}"
        total = [
            *("all operations", sum(row["calls"] for row in form["rows"]), form["operations_ms"]),
            *(form["best_ms"], form["gflop"], None, None, None, None, form["floor_ms"]),
        ]
        yield table(HEADER, [*map(_row, form["rows"]), total])
        yield (
            f"A call that follows another of the same form takes {number(form['call_ms'])} ms, "
            + (
                f"{number(form['between_ms'])} ms more than its operations."
                if form["between_ms"] >= 0
                else "no more than its operations, which the timing makes longer."
            )
        )
    yield (
        f"Each operation is timed by itself in {result['repeats']} calls: the sums of the medians, "
        "and of the shortest times; timing adds about a microsecond to each. What a call takes "
        "beyond the medians lies between the operations. CARAFE of the authors' order is "
        "elementwise: its multiply-adds count as bytes."
    )
    yield origin(result, COMMAND)


def _verdict(result: dict[str, Any]) -> Iterator[str]:
    """One paragraph for each target that is missed."""
    deployed = result["forms"][-1]
    with_products = [row for row in deployed["rows"] if row["gflop"]]
    products = sum(row["ms"] for row in with_products)
    floor = 1000 * sum(row["gflop"] for row in with_products) / max(result["gemm_gflops"].values())
    other = deployed["operations_ms"] - products
    for goal in result["goals"]:
        if goal["times_as_fast"] >= goal["target"]:
            continue
        yield (
            f"The target for {goal['goal']} is missed. Convolutions and products of the deployed "
            f"form, the GELU in their pass included, take {number(products)} ms (at the GEMM peak, "
            f"without GELU, it would be {number(floor)} ms), all else takes {number(other)} ms. "
            f"The target leaves {number(goal['target_ms'])} ms for everything"
            + (
                f", so that {percent(goal['target_share_of_gemm_peak'])} of the GEMM peak would "
                "have to be kept up from the image to the logits."
                if goal["target_share_of_gemm_peak"] is not None
                else ", less than the way from logits to label maps takes alone."
            )
            + _limit(deployed, goal, result["repeats"])
        )


def _limit(deployed: dict[str, Any], goal: dict[str, Any], repeats: int) -> str:
    """Whether these operations met a target if all were at their best at once."""
    best, between = deployed["best_ms"], deployed["between_ms"]
    after = goal["deployed_ms"] - deployed["ms"]["logits"]
    needed = best + between + after
    return (
        f" The shortest times of all its operations in {repeats} calls add up to {number(best)} "
        f"ms, what lies between them takes {number(between)} ms"
        + (f" and the label map {number(after)} ms" if after else "")
        + f", together {number(needed)} ms: "
        + (
            "**even with every operation at its best at once the target would be missed**; it "
            "needs other operations than these, or fewer."
            if needed > goal["target_ms"]
            else "the target would be met only with every operation at its best at once."
        )
    )


def _goal_row(goal: dict[str, Any]) -> list[Any]:
    needed = goal["target_share_of_gemm_peak"]
    return [
        goal["goal"],
        goal["authors_ms"],
        goal["deployed_ms"],
        f"{goal['times_as_fast']:.2f}",
        f"{goal['target']:.0f}",
        goal["target_ms"],
        percent(goal["share_of_gemm_peak"]),
        None if needed is None else percent(needed),
        f"{goal['times_as_fast_at_best']:.2f}",
        f"{goal['times_as_fast_at_floor']:.2f}",
    ]


def _row(row: dict[str, Any]) -> list[Any]:
    share = row["share_of_gemm_peak"]
    return [
        *(row["kind"], row["calls"], row["ms"], row["best_ms"], row["gflop"], row["gflops"]),
        None if share is None else percent(share),
        *(row["mega_gelus"], row["megabytes"], row["floor_ms"]),
    ]
