"""Results of analyses as text tables."""

import textwrap
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

GIGA = 10**9


def format_results(results: Sequence[dict[str, Any]]) -> str:
    """Tables of each model and, of several models, one that compares them.

    Args:
        results: as :func:`offseg_d2.analysis.tasks.analyze` gives them.
    """
    sections = []
    for result in results:
        sections += [
            f"{result['model']}: {_FORMATS[task](content)}"
            for task, content in result.items()
            if task in _FORMATS
        ]
    sections.append(f"overview\n{_overview(results)}")
    return "\n\n".join(sections)


def _table(rows: Sequence[Sequence[Any]], headers: Sequence[str], decimals: int = 1) -> str:
    """Names on the left, numbers and percentages on the right."""
    align = ("left", *["right"] * (len(headers) - 1))
    padded = [[*row, *[None] * (len(headers) - len(row))] for row in rows]
    return tabulate(padded, headers, intfmt=",", floatfmt=f".{decimals}f", colalign=align)


def _shape(content: dict[str, Any]) -> str:
    return " x ".join(map(str, content["input"]))


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.1f} %"


def _parameters(content: dict[str, Any]) -> str:
    rows = [[part, count] for part, count in content["parts"].items()]
    return f"parameters\n{_table([*rows, ['total', content['total']]], ['part', 'parameters'])}"


def _macs(content: dict[str, Any]) -> str:
    forms = content["forms"]
    lines = {
        "convolutions with their biases, as the paper prints": "convolutions_with_bias",
        "all operations": "all",
    }
    rows = [[title, *(form[key] / GIGA for form in forms.values())] for title, key in lines.items()]
    rows.append(["all operations, by kind:"])
    for kind in content["counted"]:
        rows.append([f"- {kind}", *(form["kinds"][kind] / GIGA for form in forms.values())])
    rows.append(["all operations, by part:"])
    for part in forms["model"]["parts"]:
        rows.append([f"- {part}", *(_giga(form["parts"].get(part)) for form in forms.values())])
    rules = [f"  {kind}: {rule}" for kind, rule in content["counted"].items()]
    ignored = sorted({name for form in forms.values() for name in form["not_counted"]})
    return "\n".join(
        [
            f"billions of multiply-accumulates of one image, input {_shape(content)}, to logits",
            _table(rows, ["G", *forms], decimals=3),
            "what counts as one:",
            *rules,
            textwrap.fill(f"  not counted: {', '.join(ignored)}", 100, subsequent_indent="    "),
        ]
    )


def _giga(count: int | None) -> float | None:
    return None if count is None else count / GIGA


def _latency(content: dict[str, Any]) -> str:
    rows = [
        [
            name,
            _time(form["logits"]),
            _time(form["label_map"]),
            form["gflops"],
            _percent(form["share_of_peak"]),
        ]
        for name, form in content["forms"].items()
    ]
    headers = ["form", "to logits, ms", "to label map, ms", "GFLOP/s", "of the GEMM peak"]
    threads = content["threads"]
    return (
        f"latency, input {_shape(content)}, {content['dtype']}, {content['device']}, {threads} "
        f"thread{'s' * (threads != 1)}, label maps by {content['label_map_mode']} inference\n"
        f"{_table(rows, headers)}\n"
        "times: median (10th to 90th percentile), all forms in turn\n"
        "roofline: GFLOP/s are two per multiply-accumulate (all operations) over the time to "
        "logits;\n"
        f"  the GEMM peak, the best large matrix product measured now, is "
        f"{content['gemm_peak_gflops']} GFLOP/s"
    )


def _time(timing: dict[str, Any]) -> str:
    return "{median_ms:.1f} ({p10_ms:.1f} to {p90_ms:.1f})".format(**timing)


def _memory(content: dict[str, Any]) -> str:
    rows = [
        [f"{name}, {step}", peak["peak_mb"], peak["step_mb"]]
        for name, form in content["forms"].items()
        for step, peak in form.items()
    ]
    headers = ["form, step", "peak, MB", "beyond the loaded model, MB"]
    of_what = "of a process of its own" if content["device"] == "cpu" else "on the device"
    return (
        f"memory {of_what}, {content['device']}, batch {content['batch']}, 1 MB = 2^20 bytes\n"
        f"{_table(rows, headers)}"
    )


def _profile(content: dict[str, Any]) -> str:
    parts = [
        [
            row["part"],
            row["ms"],
            _percent(row["share"]),
            row.get("gflops"),
            _percent(row.get("share_of_peak")),
        ]
        for row in content["parts"]
    ]
    operators = [
        [row["operator"], row["ms"], _percent(row["share"]), row["calls"]]
        for row in content["operators"]
    ]
    return (
        f"time of the form '{content['form']}' to label maps, by part\n"
        + _table(parts, ["part", "ms", "share", "GFLOP/s", "of the GEMM peak"])
        + "\n(rest): normalising the image, and from logits to the label map"
        + "\n\nby operator (slower, as each is recorded)\n"
        + _table(operators, ["operator", "ms", "share", "calls"])
    )


_FORMATS = {
    "parameters": _parameters,
    "macs": _macs,
    "latency": _latency,
    "memory": _memory,
    "profile": _profile,
}


def _overview(results: Sequence[dict[str, Any]]) -> str:
    """One row for each form of each model."""
    rows = []
    for result in results:
        tasks = {
            task: result.get(task, {}).get("forms", {}) for task in ("macs", "latency", "memory")
        }
        names = list(dict.fromkeys(name for forms in tasks.values() for name in forms)) or ["model"]
        for name in names:
            counted, timed, peaks = (forms.get(name, {}) for forms in tasks.values())
            rows.append(
                {
                    "model": result["model"],
                    "form": name,
                    "parameters, M": _scaled(result.get("parameters", {}).get("total"), 10**6),
                    "MACs of convolutions, G": _scaled(counted.get("convolutions_with_bias"), GIGA),
                    "all MACs, G": _scaled(counted.get("all"), GIGA),
                    "logits, ms": timed.get("logits", {}).get("median_ms"),
                    "label map, ms": timed.get("label_map", {}).get("median_ms"),
                    "inference, MB": peaks.get("inference", {}).get("peak_mb"),
                    "training, MB": peaks.get("training", {}).get("peak_mb"),
                }
            )
    used = [key for key in rows[0] if any(row[key] is not None for row in rows)]
    align = ["left" if key in ("model", "form") else "right" for key in used]
    return tabulate([[row[key] for key in used] for row in rows], used, colalign=align)


def _scaled(count: int | None, unit: int) -> float | None:
    return None if count is None else round(count / unit, 3)
