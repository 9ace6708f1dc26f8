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
from tabulate import tabulate

from .check import ClassStatistics, DatasetReport
from .faults import Fault
from .faults import title as title_of

_MAX_SIZES_SHOWN = 3
_CLASSES_A_COLUMN = 50


def format_report(report: DatasetReport, limit: int | None = None) -> str:
    """Tell a report in text: counts, class table, faults grouped by kind, one line each.

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
    return "\n".join(lines)


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
        "records": report.num_records,
        "images": report.num_images,
        "labels": report.num_labels,
        "usable_records": report.num_usable,
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
    """All reports as one JSON document."""
    clean = all(report.is_clean for report in reports)
    document = {"clean": clean, "datasets": [report_to_dict(report) for report in reports]}
    return json.dumps(document, indent=1) + "\n"


def plot_classes(report: DatasetReport) -> bytes:
    """Draw the share of each class, the most frequent one on top, as a PNG file's content."""
    classes = report.classes
    order = np.argsort(-classes.pixels, kind="stable")[: np.count_nonzero(classes.pixels)]
    num_columns = max(math.ceil(len(order) / _CLASSES_A_COLUMN), 1)
    rows = max(math.ceil(len(order) / num_columns), 1)
    absent = textwrap.wrap(", ".join(classes.absent), width=95 * num_columns)
    # In inches. Fixed, because to measure hundreds of names takes matplotlib seconds.
    names = 0.5 + 0.075 * max((len(name) for name in classes.names), default=0)
    width, foot = num_columns * (names + 5.0), 0.35 + 0.16 * (len(absent) + bool(absent))
    height = 0.45 + 0.23 * rows + foot
    figure = Figure((width, height), dpi=110)
    lowest = 10.0 ** math.floor(math.log10(classes.shares[order].min(initial=1e-2) / 2))
    for column in range(num_columns):
        box = (column * (names + 5.0) + names, foot, 4.8, 0.23 * rows)
        axes = figure.add_axes(tuple(np.divide(box, (width, height, width, height))))
        _draw_bars(axes, classes, order[column * rows : (column + 1) * rows], rows, lowest)
    labels = _count(classes.num_labels, "label map")
    name = report.name if len(report.name) <= 50 else f"...{report.name[-47:]}"
    title = f"{name}: share of the labelled pixels of {labels}"
    figure.text(0.5, 1 - 0.25 / height, title, ha="center", va="center", fontsize=11)
    if absent:
        text = "\n".join([f"never ({len(classes.absent)}):", *absent])
        figure.text(0.1 / width, 0.05 / height, text, va="bottom", fontsize=8, color="crimson")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_bars(
    axes: Any, classes: ClassStatistics, chosen: np.ndarray, rows: int, lowest: float
) -> None:
    """Draw classes that occur as horizontal bars, from the top; ``rows`` would fill the axes."""
    places, shares = np.arange(len(chosen)), classes.shares[chosen]
    colors = [np.array(classes.colors[i]) / 255 for i in chosen]
    axes.barh(places, shares - lowest, left=lowest, color=colors, height=0.75,
              edgecolor="0.25", linewidth=0.5)  # fmt: skip
    for place, share in zip(places, shares, strict=True):
        axes.text(share, place, f" {100 * share:.2g}%", va="center", fontsize=8, color="0.2")
    axes.set_yticks(places, [f"{classes.names[i]}  {i}" for i in chosen], fontsize=8)
    axes.set_ylim(rows - 0.4, -0.6)
    axes.set_xscale("log")
    axes.set_xlim(lowest, 4.0)  # room for the numbers behind the bars
    ticks = [10.0**exponent for exponent in range(round(math.log10(lowest)), 1)]
    axes.set_xticks(ticks, [f"{100 * tick:g}%" for tick in ticks], fontsize=8)
    axes.minorticks_off()
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _headline(report: DatasetReport) -> str:
    return (
        f"{report.name}: {_count(report.num_records, 'record')}, "
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
        yield f"{_count(len(members), name)}: {title_of(kind)}"
        yield from (f"  {fault.path}: {fault.message}" for fault in members[:limit])
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
