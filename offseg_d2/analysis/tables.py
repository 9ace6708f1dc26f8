"""Results of analyses as text tables."""

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


def _parameters(content: dict[str, Any]) -> str:
    rows = [[part, count] for part, count in content["parts"].items()]
    table = tabulate([*rows, ["total", content["total"]]], ["part", "parameters"], intfmt=",")
    return f"parameters\n{table}"


def _macs(content: dict[str, Any]) -> str:
    forms = content["forms"]
    size = " x ".join(map(str, content["input"]))
    lines = {
        "convolutions, with biases (as the paper prints)": "convolutions_with_bias",
        "all operations": "all",
    }
    rows = [[title, *(form[key] / GIGA for form in forms.values())] for title, key in lines.items()]
    rows.append(["of these:"])
    for kind, rule in content["counted"].items():
        rows.append([f"  {kind}: {rule}", *(form["kinds"][kind] / GIGA for form in forms.values())])
    rows.append(["by part:"])
    for part in forms["model"]["parts"]:
        rows.append([f"  {part}", *(_giga(form["parts"].get(part)) for form in forms.values())])
    table = tabulate(rows, ["G", *forms], floatfmt=".3f")
    ignored = sorted({name for form in forms.values() for name in form["not_counted"]})
    return f"multiply-accumulates, input {size}\n{table}\nnot counted: {', '.join(ignored)}"


def _giga(count: int | None) -> float | None:
    return None if count is None else count / GIGA


def _latency(content: dict[str, Any]) -> str:
    rows = [
        [
            name,
            _time(form["logits"]),
            _time(form["label_map"]),
            form["gflops"],
            f"{100 * form['share_of_peak']:.1f} %",
        ]
        for name, form in content["forms"].items()
    ]
    headers = ["form", "to logits, ms", "to label map, ms", "GFLOP/s", "of the GEMM peak"]
    size = " x ".join(map(str, content["input"]))
    return (
        f"latency, input {size}, {content['dtype']}, {content['device']}, "
        f"{content['threads']} threads, label maps by {content['label_map_mode']} inference, "
        f"GEMM peak {content['gemm_peak_gflops']} GFLOP/s; median (10th to 90th percentile)\n"
        + tabulate(rows, headers)
    )


def _time(timing: dict[str, Any]) -> str:
    return "{median_ms:.1f} ({p10_ms:.1f} to {p90_ms:.1f})".format(**timing)


def _memory(content: dict[str, Any]) -> str:
    rows = [
        [name, step, peak["peak_mb"], peak["step_mb"]]
        for name, form in content["forms"].items()
        for step, peak in form.items()
    ]
    headers = ["form", "step", "peak, MB", "beyond the loaded model, MB"]
    return f"memory, {content['device']}, batch {content['batch']}\n{tabulate(rows, headers)}"


def _profile(content: dict[str, Any]) -> str:
    parts = [
        [
            row["part"],
            row["ms"],
            f"{100 * row['share']:.1f} %",
            row.get("gflops"),
            f"{100 * row['share_of_peak']:.1f} %" if row.get("gflops") else None,
        ]
        for row in content["parts"]
    ]
    operators = [
        [row["operator"], row["ms"], f"{100 * row['share']:.1f} %", row["calls"]]
        for row in content["operators"]
    ]
    return (
        f"time of the form '{content['form']}' to label maps, by part\n"
        + tabulate(parts, ["part", "ms", "share", "GFLOP/s", "of the GEMM peak"])
        + "\n\nby operator (slower, as each is recorded)\n"
        + tabulate(operators, ["operator", "ms", "share", "calls"])
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
                    "MACs, G": _scaled(counted.get("all"), GIGA),
                    "logits, ms": timed.get("logits", {}).get("median_ms"),
                    "label map, ms": timed.get("label_map", {}).get("median_ms"),
                    "inference, MB": peaks.get("inference", {}).get("peak_mb"),
                    "training, MB": peaks.get("training", {}).get("peak_mb"),
                }
            )
    used = [key for key in rows[0] if any(row[key] is not None for row in rows)]
    return tabulate([[row[key] for key in used] for row in rows], used)


def _scaled(count: int | None, unit: int) -> float | None:
    return None if count is None else round(count / unit, 3)
