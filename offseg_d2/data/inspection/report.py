"""Reports of dataset checks: as text, as JSON, and the class frequencies as a picture."""

import io
import itertools
import json
import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from tabulate import tabulate

from offseg_d2.utils.cli import escape_controls
from offseg_d2.utils.fonts import fold, plot_with_names

from .check import ClassStatistics, DatasetReport
from .faults import FAULTS, WARNINGS, Fault

_MAX_SIZES_SHOWN = 3
_MAX_LINE = 40  # characters of a class name


def format_report(report: DatasetReport, limit: int | None = None) -> str:
    """Format a report as text: counts, class table, faults grouped by kind, one line each.

    Args:
        report: of one dataset.
        limit: lines of each kind of fault; None shows all.
    """
    lines = [_headline(report), f"Label map: {report.label_map}.", _describe_sizes(report)]
    if report.classes.num_labels:
        lines += ["", class_table(report.classes)]
    for name, faults in (("FAULT", report.faults), ("warning", report.warnings)):
        lines += _list_faults(name, faults, limit)
    lines += ["", f"{report.name}: {_verdict(report)}"]
    return escape_controls("\n".join(lines), keep="\n")


def class_table(classes: ClassStatistics) -> str:
    """Table of the classes with their pixels and label maps."""
    rows = [
        [index, name, _thousands(pixels), _percent(share), images, f"{images / total:.1%}"]
        for (index, name), pixels, share, images, total in zip(
            enumerate(classes.names),
            classes.pixels,
            classes.shares,
            classes.images,
            itertools.repeat(max(classes.num_labels, 1)),
        )
    ]
    everything = max(int(classes.pixels.sum()) + classes.ignored_pixels, 1)
    ignored = f"{classes.ignored_pixels / everything:.3%} of all"
    rows.append(["", "(ignored)", _thousands(classes.ignored_pixels), ignored, "", ""])
    return tabulate(
        rows,
        headers=["id", "class", "pixels", "share", "label maps", "of all"],
        colalign=["right", "left", "right", "right", "right", "right"],
        disable_numparse=True,
    )


def report_to_dict(report: DatasetReport) -> dict[str, Any]:
    """Turn a report into what JSON can hold."""
    classes = report.classes
    rows = zip(classes.names, classes.pixels, classes.shares, classes.images, strict=True)
    return {
        "name": report.name,
        "clean": report.is_clean,
        "label_map": report.label_map,
        "samples": report.num_samples,
        "images": report.num_images,
        "labels": report.num_labels,
        "usable_samples": report.num_usable,
        "sizes": [
            {"width": width, "height": height, "images": count}
            for (height, width), count in report.sizes.items()
        ],
        "classes": [
            {"id": i, "name": n, "pixels": int(p), "share": float(s), "label_maps": int(m)}
            for i, (n, p, s, m) in enumerate(rows)
        ],
        "ignored_pixels": classes.ignored_pixels,
        "faults": [fault._asdict() for fault in report.faults],
        "warnings": [fault._asdict() for fault in report.warnings],
    }


def format_json(reports: Sequence[DatasetReport]) -> str:
    """Format all reports as one JSON document."""
    clean = all(report.is_clean for report in reports)
    document = {"clean": clean, "datasets": [report_to_dict(report) for report in reports]}
    return json.dumps(document, indent=1) + "\n"


def plot_classes(report: DatasetReport) -> bytes:
    """Draw the share of each class, the most frequent one on top, as a PNG file's content."""
    with plot_with_names([*report.classes.names, report.name]):
        return _plot_classes(report)


def _plot_classes(report: DatasetReport) -> bytes:
    classes = report.classes
    chosen = np.argsort(-classes.pixels, kind="stable")[: np.count_nonzero(classes.pixels)]
    shares = classes.shares[chosen]
    lowest = 10.0 ** math.floor(math.log10(shares.min(initial=1e-2) / 2))
    names = [fold(f"{classes.names[i]}  {i}", _MAX_LINE) for i in chosen]
    lines = max((name.count("\n") + 1 for name in names), default=1)
    figure = Figure((9, 1.5 + 0.2 * lines * len(chosen)), dpi=100, layout="constrained")
    axes = figure.subplots()
    colors = [np.array(classes.colors[i]) / 255 for i in chosen]
    bars = axes.barh(np.arange(len(chosen)), shares, color=colors, edgecolor="0.25", linewidth=0.5)
    axes.bar_label(bars, [f" {100 * share:.2g}%" for share in shares], fontsize=8)
    axes.set_yticks(np.arange(len(chosen)), names, fontsize=8)
    axes.set_ylim(max(len(chosen), 1) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.set_xlim(lowest, 4.0)  # room for the numbers behind the bars
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    labels = _count(classes.num_labels, "label map")
    axes.set_title(
        fold(f"{report.name}: share of the labelled pixels of {labels}", 90), fontsize=11
    )
    if classes.absent:
        absent = f"never ({len(classes.absent)}): {', '.join(classes.absent)}"
        axes.set_xlabel(textwrap.fill(absent, width=110), fontsize=8, color="crimson")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _headline(report: DatasetReport) -> str:
    return (
        f"{report.name}: {_count(report.num_samples, 'sample')}, "
        f"{_count(report.num_images, 'image')}, {_count(report.num_labels, 'label map')}, "
        f"{report.num_usable} without fault."
    )


def _describe_sizes(report: DatasetReport) -> str:
    sizes = [
        f"{w}x{h} ({n})" for (h, w), n in itertools.islice(report.sizes.items(), _MAX_SIZES_SHOWN)
    ]
    rest = len(report.sizes) - len(sizes)
    return f"Sizes (images): {', '.join(sizes)}" + (f" and {rest} more." if rest else ".")


def _list_faults(name: str, faults: Sequence[Fault], limit: int | None) -> Iterator[str]:
    for kind, group in itertools.groupby(faults, lambda fault: fault.kind):
        members = list(group)
        yield ""
        yield f"{_count(len(members), name)}: {FAULTS.get(kind) or WARNINGS[kind]}"
        yield from (
            f"  {escape_controls(f'{fault.path}: {fault.message}')}" for fault in members[:limit]
        )
        if limit is not None and len(members) > limit:
            yield f"  ... and {len(members) - limit} more"


def _verdict(report: DatasetReport) -> str:
    files = len({fault.path for fault in report.faults})
    faults = f"{_count(len(report.faults), 'fault')} in {_count(files, 'file')}"
    warnings = _count(len(report.warnings), "warning")
    return f"{'clean' if report.is_clean else faults}, {warnings}."


def _count(number: int, noun: str) -> str:
    plural = noun + ("S" if noun.isupper() else "s")
    return f"{number} {noun if number == 1 else plural}"


def _percent(share: float) -> str:
    return f"{share:.3%}" if share else "never"


def _thousands(number: int) -> str:
    return f"{int(number):,}".replace(",", " ")
