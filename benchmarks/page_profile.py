"""Section of ``inference_profile.py``: where the time goes, and what the machine would allow."""

from collections.abc import Iterator
from typing import Any

from page import machine_line, number, percent, section, setting_line, table

COMMAND = (
    "python benchmarks/inference_profile.py --output benchmarks/results/inference_profile.json"
)
HEADER = [
    *("kind of operation", "calls", "ms", "best, ms", "GFLOP", "GFLOP/s", "of GEMM peak"),
    *("million GELU", "MB", "floor, ms"),
]


@section("inference_profile", "Where the time of inference goes", order=12)
def inference_profile(result: dict[str, Any]) -> Iterator[str]:
    """Targets of all groups first, then each group's verdict and operations."""
    groups = result["groups"]
    yield (
        "From a uint8 image, one at a time, the authors' order of operations and the deployed form "
        "in turn, random weights. The floor of an operation is its GFLOP at the GEMM peak (the "
        "faster of `torch.mm` and a product with weights that are packed beforehand) and its GELU "
        "at the rate at which it goes through a tensor in the cache, or where it has neither, its "
        "bytes at the rate of the best copy of several sizes, read and written."
    )
    yield table(
        ["model, goal", "authors' order, ms", "deployed, ms", "times as fast", "target",
         "target, ms", "of GEMM peak", "target needs", "times as fast at best", "at the floor"],
        [_goal_row(group, goal) for group in groups for goal in group["goals"]],
    )  # fmt: skip
    yield (
        "Of GEMM peak: all convolutions and matrix products of the deployed form in the time to "
        "its logits, whatever else happens in it. Target needs: the same share if the target were "
        "met, the way from logits to label maps taking as long as now. At best: if each operation "
        "of a call took the shortest time that it was ever seen to take, and what lies between "
        "the operations (Python, views) as long as now; or the shortest call, if that took less. "
        "At the floor: the logits in the time of the floor, the rest as now."
    )
    yield (
        "In the tables below each operation is timed by itself in several calls: the sums of the "
        "medians, and of the shortest times; timing adds about a microsecond to each. What a call "
        "takes beyond the medians lies between the operations. CARAFE of the authors' order is "
        "elementwise: its multiply-adds count as bytes."
    )
    for group in groups:
        yield from _group(group)
    yield f"`{COMMAND}`"


def _name(group: dict[str, Any]) -> str:
    return f"{group['model']}, {setting_line(group, batch=1)}"


def _group(group: dict[str, Any]) -> Iterator[str]:
    """Verdict on the targets, and the operations of each form."""
    yield f"### {_name(group)}"
    gemm = ", ".join(f"{name} {number(value)}" for name, value in group["gemm_gflops"].items())
    yield (
        f"Large matrix products reach (GFLOP/s): {gemm}; a copy "
        f"{number(group['copy_gigabytes_per_second'])} GB/s; GELU "
        f"{number(group['giga_gelus_per_second'])} billion values a second. Calls whose operations "
        f"are timed: {group['repeats']}. {machine_line(group)}"
    )
    yield from _verdict(group)
    for form in group["forms"]:
        yield f"One call to logits, {form['form']}:"
        total = [
            *("all operations", sum(row["calls"] for row in form["rows"]), form["operations_ms"]),
            *(form["best_ms"], form["gflop"], None, None, None, None, form["floor_ms"]),
        ]
        yield table(HEADER, [*map(_row, form["rows"]), total])
        yield (
            f"Whole calls in turn with these take {number(form['call_ms'])} ms, at the shortest "
            f"{number(form['shortest_ms'])} ms; "
            + (
                f"{number(form['between_ms'])} ms lie between the operations."
                if form["between_ms"] > 0
                else "what lies between the operations is less than their timing adds."
            )
        )


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
    after = goal["deployed_ms"] - deployed["ms"]["logits"]
    needed = deployed["at_best_ms"] + after
    return (
        f" With every operation at the shortest of {repeats} calls at once it would take "
        f"{number(deployed['at_best_ms'])} ms to the logits"
        + (f" and {number(after)} ms from there, together {number(needed)} ms" if after else "")
        + (
            ": **more than the target**, which needs faster operations, others, or fewer."
            if needed > goal["target_ms"]
            else ", which would meet the target."
        )
    )


def _goal_row(group: dict[str, Any], goal: dict[str, Any]) -> list[Any]:
    needed = goal["target_share_of_gemm_peak"]
    return [
        f"{_name(group)}, to {goal['goal']}",
        goal["authors_ms"],
        goal["deployed_ms"],
        f"{goal['times_as_fast']:.2f}",
        f"{goal['target']:g}",
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
