"""Pictures of what accuracy costs: mIoU against multiply-accumulates or latency.

Rows come from files: JSON (a list of objects, or an object with the list as "rows") or CSV with a
header. A row has "model", "miou" and what is on the other axis; rows of one "family" are joined by
a line; "dataset" may be filtered for. ``paper_results.json`` holds the numbers of the paper.
"""

import csv
import io
import json
import math
from collections.abc import Sequence
from importlib import resources
from typing import Any

from detectron2.utils.file_io import PathManager

PAPER = "paper"  # in place of a file: the numbers of the paper
AXES = {
    "macs_g": "multiply-accumulates (G)",
    "latency_ms": "latency (ms)",
    "parameters_m": "parameters (millions)",
}
LABEL_SIZE = 7  # points

Row = dict[str, Any]


def read_rows(path: str) -> list[Row]:
    """Rows of a JSON or CSV file, or of the paper (``path`` "paper").

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not of the form above.
    """
    if path == PAPER:
        text = resources.files("offseg_d2.analysis").joinpath("paper_results.json").read_text()
        return json.loads(text)["rows"]
    if not PathManager.isfile(path):
        raise FileNotFoundError(f"The file of rows {path} does not exist.")
    with PathManager.open(path) as file:
        text = file.read()
    if path.endswith(".csv"):
        return list(csv.DictReader(io.StringIO(text)))
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from None
    rows = content.get("rows") if isinstance(content, dict) else content
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f'{path} must hold a list of objects, or an object with them as "rows".')
    return rows


def select_rows(rows: Sequence[Row], axis: str, dataset: str = "") -> list[Row]:
    """Rows of a dataset that have a value on the axis, with numbers for their text.

    Args:
        rows: as :func:`read_rows` gives them.
        axis: a key of ``AXES``, or any other name of a column of numbers.
        dataset: keep only rows of this one, and those that name none; "" keeps all.

    Raises:
        ValueError: a number is not positive, a name is missing, no row is left, or rows of several
            datasets are, whose scores are no matter of one picture.
    """
    chosen = []
    for row in rows:
        if dataset and row.get("dataset", dataset) != dataset:
            continue
        if any(row.get(key) in (None, "") for key in (axis, "miou")):
            continue
        if not row.get("model"):
            raise ValueError(f'Every row must have a "model", but {row} has none.')
        chosen.append({**row, axis: _number(row, axis), "miou": _number(row, "miou")})
    if not chosen:
        of_dataset = f" of dataset {dataset!r}" if dataset else ""
        raise ValueError(f'At least one row{of_dataset} must have "{axis}" and "miou".')
    datasets = sorted({str(row["dataset"]) for row in chosen if row.get("dataset")})
    if len(datasets) > 1:
        raise ValueError(f"`--dataset` must be one of {datasets} for these rows, but is ''.")
    return chosen


def _number(row: Row, key: str) -> float:
    try:
        value = float(row[key])
    except (TypeError, ValueError):
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(
            f'"{key}" of {row["model"]!r} must be a positive number, but is {row[key]!r}.'
        )
    return value


def plot_tradeoff(rows: Sequence[Row], axis: str, title: str = "") -> bytes:
    """Draw mIoU against one axis, which is logarithmic.

    Args:
        rows: as :func:`select_rows` gives them.
        axis: the horizontal one.
        title: above the picture.

    Returns:
        a PNG.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(9, 6), dpi=120)
    axes = figure.add_axes((0.07, 0.09, 0.91, 0.85))
    axes.set_xscale("log")
    families: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row[axis]):
        families.setdefault(str(row.get("family") or row["model"]), []).append(row)
    for index, (family, members) in enumerate(families.items()):
        ours = "offseg" in family.lower() or "offset" in family.lower()
        axes.plot(
            [row[axis] for row in members],
            [row["miou"] for row in members],
            color=f"C{index % 10}",
            marker="os^Dv"[index // 10 % 5],
            linewidth=2.2 if ours else 1.0,
            markersize=8 if ours else 5,
            zorder=3 if ours else 2,
            label=family,
        )
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.14, y=0.06)
    axes.set(xlabel=AXES.get(axis, axis), ylabel="mIoU (%)", title=title)
    axes.autoscale_view()
    _name_marks(axes, rows, axis)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=LABEL_SIZE, loc="best", ncols=2)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _name_marks(axes: Any, rows: Sequence[Row], axis: str) -> None:
    """Write each model's name where it covers fewest of the other marks and names."""
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    marks = axes.transData.transform([(row[axis], row["miou"]) for row in rows])
    boxes = [Bbox.from_extents(*(mark - 6), *(mark + 6)) for mark in marks]  # pixels
    # Offset in points and the side of the text that lies there.
    sides = [((7, 0), "left"), ((-7, 0), "right"), ((0, 10), "center"), ((0, -10), "center")]
    sides += [((5, 8), "left"), ((5, -8), "left")]
    for row in rows:
        texts = [
            axes.annotate(
                str(row["model"]),
                (row[axis], row["miou"]),
                xytext=offset,
                ha=side,
                va="center",
                textcoords="offset points",
                fontsize=LABEL_SIZE,
                zorder=4,
                path_effects=[withStroke(linewidth=2.5, foreground="white")],
            )
            for offset, side in sides
        ]
        extents = [text.get_window_extent() for text in texts]
        best = min(range(len(sides)), key=lambda i: extents[i].count_overlaps(boxes))
        boxes.append(extents[best])
        for text in texts[:best] + texts[best + 1 :]:
            text.remove()
