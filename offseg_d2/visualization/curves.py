"""Curves of several training runs: read from ``metrics.json``, gathered over seeds, drawn together.

Runs whose names differ in the seed alone (``plain_seed1``, ``plain_seed2``) form a group, of which
mean and spread are drawn. A band reaches from the lowest to the highest run.
"""

import base64
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from detectron2.utils.file_io import PathManager
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

LOSS = "total_loss"
_SCORE = re.compile(r"(?:(?P<dataset>.+)/)?sem_seg/mIoU")
_SEED = re.compile(r"[_.-](?:seed[_-]?|s)\d+(?=$|[_.-])")
_FILE = "metrics.json"
# Okabe and Ito's colours, which also the colour-blind can distinguish; then again, dashed.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_TEMPLATE = "curves.html.j2"


class Curve(NamedTuple):
    """Values over the iterations, ascending, as ``metrics.json`` counts them."""

    iterations: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class RunCurves:
    """One run.

    Attributes:
        name: of its folder.
        curves: quantity as ``metrics.json`` calls it -> curve.
    """

    name: str
    curves: Mapping[str, Curve]


class Band(NamedTuple):
    """Several curves as one: at each iteration that all of them reach."""

    iterations: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    count: int


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed alone.

    Attributes:
        name: what their names have in common.
        runs: in the order they were given.
    """

    name: str
    runs: Sequence[RunCurves]

    def band(self, quantity: str) -> Band | None:
        """Mean and spread of a quantity; None if not all of the runs have it."""
        if any(quantity not in run.curves for run in self.runs):
            return None
        return join_curves([run.curves[quantity] for run in self.runs])


def read_runs(paths: Sequence[str]) -> list[RunCurves]:
    """Read run folders, or folders of run folders.

    Raises:
        FileNotFoundError: a folder is absent, or neither it nor a folder in it holds a run.
        ValueError: a ``metrics.json`` holds neither losses nor scores, or two runs have one name.
    """
    folders: dict[str, None] = {}
    for path in paths:
        folders.update(dict.fromkeys(_run_folders(path.rstrip("/"))))
    runs = [read_run(folder) for folder in folders]
    names = [run.name for run in runs]
    if len(set(names)) == len(names):
        return runs
    # The same names in several folders: the folders distinguish them.
    parents = [os.path.basename(os.path.dirname(os.path.abspath(folder))) for folder in folders]
    full = [f"{parent}/{name}" for parent, name in zip(parents, names, strict=True)]
    if len(set(full)) < len(full):
        raise ValueError(f"Run folders must have different names, but are {list(folders)}.")
    return [RunCurves(name, run.curves) for name, run in zip(full, runs, strict=True)]


def _run_folders(path: str) -> list[str]:
    if not PathManager.isdir(path):
        raise FileNotFoundError(f"'{path}' must be a folder of a run, but is no folder.")
    if PathManager.isfile(os.path.join(path, _FILE)):
        return [path]
    below = [os.path.join(path, name) for name in sorted(PathManager.ls(path))]
    found = [folder for folder in below if PathManager.isfile(os.path.join(folder, _FILE))]
    if not found:
        raise FileNotFoundError(
            f"'{path}' must be a folder of a run or hold such folders, "
            f"but there is no {_FILE} in it or in a folder in it."
        )
    return found


def read_run(folder: str) -> RunCurves:
    """Read ``metrics.json``. What a resumed run has done twice counts as it was the last time."""
    points: dict[str, dict[int, float]] = {}
    path = os.path.join(folder, _FILE)
    with PathManager.open(path) as file:
        for line in file:
            try:
                entry = json.loads(line)
                done = int(entry["iteration"])
            except (ValueError, KeyError, TypeError):  # cut off when the run was killed
                continue
            for key, value in entry.items():
                is_wanted = key == LOSS or _SCORE.fullmatch(key)
                if is_wanted and isinstance(value, int | float) and np.isfinite(value):
                    points.setdefault(key, {})[done] = float(value)
    if not points:
        raise ValueError(f"'{path}' must hold losses or scores, but holds none yet.")
    name = os.path.basename(os.path.abspath(folder))
    return RunCurves(name, {key: _to_curve(values) for key, values in points.items()})


def _to_curve(values: Mapping[int, float]) -> Curve:
    iterations = sorted(values)
    return Curve(np.array(iterations), np.array([values[i] for i in iterations]))


def group_runs(runs: Sequence[RunCurves]) -> list[Group]:
    """Gather runs whose names differ in ``_seed1``, ``_s1`` or the like alone."""
    groups: dict[str, list[RunCurves]] = {}
    for run in runs:
        groups.setdefault(_SEED.sub("", run.name), []).append(run)
    return [Group(name, members) for name, members in groups.items()]


def join_curves(curves: Sequence[Curve]) -> Band:
    """Mean and range of curves, as far as all of them go; between their points they are straight.

    Points of one curve that another lacks (a score lost when a run was killed) do no harm so.
    """
    first = max(curve.iterations[0] for curve in curves)
    last = min(curve.iterations[-1] for curve in curves)
    every = np.unique(np.concatenate([curve.iterations for curve in curves]))
    iterations = every[(every >= first) & (every <= last)]
    values = np.stack([np.interp(iterations, *curve) for curve in curves])
    return Band(iterations, values.mean(0), values.min(0), values.max(0), len(curves))


def quantities(groups: Sequence[Group]) -> list[str]:
    """Quantities that at least one group has: the loss first, then the scores."""
    keys = {key for group in groups for run in group.runs for key in run.curves}
    known = [key for key in keys if any(group.band(key) for group in groups)]
    return sorted(known, key=lambda key: (key != LOSS, key))


def quantity_title(quantity: str) -> str:
    """Label of an axis."""
    match = _SCORE.fullmatch(quantity)
    if match is None:
        return "training loss"
    return f"mIoU on {match['dataset']} (%)" if match["dataset"] else "mIoU (%)"


def draw_band(
    axes: Axes, band: Band, label: str, color: str, style: str = "-", marker: str = ""
) -> None:
    """Draw the mean as a line and the range as a band."""
    if len(band.iterations) == 1:
        marker = marker or "o"
    axes.plot(band.iterations, band.mean, style, color=color, marker=marker, label=label)
    if band.count > 1:
        axes.fill_between(band.iterations, band.low, band.high, color=color, alpha=0.15, lw=0)


def draw_runs(groups: Sequence[Group]) -> Figure:
    """One panel a quantity, one colour a group."""
    keys = quantities(groups)
    figure = Figure(figsize=(5.6 * len(keys), 4.2), layout="constrained")
    figure.set_facecolor("white")
    panels = figure.subplots(1, len(keys), squeeze=False)[0]
    for axes, key in zip(panels, keys, strict=True):
        for index, group in enumerate(groups):
            band = group.band(key)
            if band is not None and len(band.iterations):
                label = f"{group.name} ({band.count} runs)" if band.count > 1 else group.name
                style = "-" if index < len(_COLORS) else "--"
                color = _COLORS[index % len(_COLORS)]
                draw_band(axes, band, label, color, style, "" if key == LOSS else "o")
        axes.set(xlabel="iterations", ylabel=quantity_title(key))
        axes.set_xlim(left=0)  # the same for all panels, also with a single evaluation at the end
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, frameon=False)
    return figure


def to_png(figure: Figure, dpi: int = 130) -> bytes:
    """Encode a figure."""
    figure.set_dpi(dpi)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def render_page(groups: Sequence[Group], picture: bytes) -> str:
    """One HTML file with the picture and a table of last and best values; it loads nothing."""
    environment = Environment(
        loader=FileSystemLoader(os.path.dirname(__file__)),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    keys = quantities(groups)
    return environment.get_template(_TEMPLATE).render(
        picture=base64.b64encode(picture).decode("ascii"),
        titles=[quantity_title(key) for key in keys],
        rows=[
            {"name": group.name, "runs": [r.name for r in group.runs],
             "cells": [_last(group, key) for key in keys]}
            for group in groups
        ],
    )  # fmt: skip


def _last(group: Group, quantity: str) -> dict[str, float | int] | None:
    """Mean and sample standard deviation of the runs' last values, where all are that far."""
    if any(quantity not in run.curves for run in group.runs):
        return None
    ends = [(run.curves[quantity].iterations[-1], run.curves[quantity].values[-1])
            for run in group.runs]  # fmt: skip
    values = [value for _, value in ends]
    return {
        "mean": float(np.mean(values)),
        "deviation": float(np.std(values, ddof=1)) if len(values) > 1 else -1.0,
        "first_end": int(min(end for end, _ in ends)),
        "last_end": int(max(end for end, _ in ends)),
    }
