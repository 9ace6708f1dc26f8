"""Plots of the accuracy experiment: convergence of each arm, and gain against variation."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accuracy_results import Row, estimate, paired_differences
from accuracy_suites import ARM_TITLES, ARMS, Suite
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from offseg_d2.utils.io import write_atomically
from offseg_d2.visualization.curves import Curve, draw_band, join_curves, to_png

_PALETTE = (
    "#555555",
    "#D55E00",
    "#0072B2",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#8B1A1A",
    "#000080",
    "#9E9E00",
    "#8C6BB1",
    "#00B3A4",
)
_COLORS = dict(zip(ARMS, _PALETTE, strict=True))


def draw_plots(rows: Sequence[Row], name: str, suite: Suite, folder: Path) -> list[Path]:
    """Draw what the rows allow.

    Returns:
        paths of the pictures.
    """
    figures = {"convergence": draw_convergence(rows, suite)}
    if len(suite.conditions) > 1:
        figures["gain"] = draw_gain(rows, suite)
    paths = []
    folder.mkdir(parents=True, exist_ok=True)
    for kind, figure in figures.items():
        path, picture = folder / f"accuracy_{name}_{kind}.png", to_png(figure)
        write_atomically(str(path), lambda file, picture=picture: file.write(picture))
        paths.append(path)
    return paths


def draw_convergence(rows: Sequence[Row], suite: Suite) -> Figure:
    """For each condition training loss and scores while training; mean and range over seeds."""
    conditions = [c for c in suite.conditions if any(row["condition"] == c for row in rows)]
    figure = Figure(figsize=(4.6 * len(conditions) + 1.5, 6.6), layout="constrained")
    figure.set_facecolor("white")
    figure.suptitle(suite.title, fontsize=11)
    panels = figure.subplots(2, len(conditions), squeeze=False, sharex=True, sharey="row")
    for column, condition in enumerate(conditions):
        scores, losses = panels[:, column]
        for arm in ARMS:
            chosen = [r for r in rows if (r["condition"], r["arm"]) == (condition, arm)]
            if chosen:
                _draw_arm(scores, losses, arm, chosen)
        strength = suite.conditions[condition][0]
        if condition:
            scores.set_title(f"variation {strength:.0%}", fontsize=10)
        losses.set(xlabel="iterations", yscale="log")
        if column == 0:
            scores.set_ylabel(f"mIoU on {suite.curve_set} (%)")
            losses.set_ylabel("training loss")
    for axes in panels.flat:
        _tidy(axes)
    names = {arm: f"{ARM_TITLES[arm]} ({_seeds(rows, arm)})" for arm in ARMS}
    _legend(figure, panels[0], names, columns=len(conditions))
    return figure


def _seeds(rows: Sequence[Row], arm: str) -> str:
    """Number of seeds of an arm, over all conditions."""
    counts = Counter(row["condition"] for row in rows if row["arm"] == arm).values()
    if not counts:
        return "none"
    least, most = min(counts), max(counts)
    return f"{least} seed{'s' * (most > 1)}" if least == most else f"{least} to {most} seeds"


def _legend(figure: Figure, panels: Iterable[Axes], names: Mapping[str, str], columns: int) -> None:
    """One legend below all panels, where it covers nothing; curves are labelled with their arm."""
    found: dict[str, Any] = {}
    for axes in panels:
        for handle, arm in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(arm, handle)
    arms = [arm for arm in ARMS if arm in found]
    figure.legend(
        [found[arm] for arm in arms],
        [names[arm] for arm in arms],
        **{"loc": "outside lower center", "ncols": columns, "fontsize": 8, "frameon": False},
    )


def _draw_arm(scores: Axes, losses: Axes, arm: str, rows: Sequence[Row]) -> None:
    def curves(key: str, values: str) -> list[Curve]:
        return [Curve(np.array(r[key]["iterations"]), np.array(r[key][values])) for r in rows]

    color = _COLORS[arm]
    draw_band(scores, join_curves(curves("curve", "mIoU")), arm, color, marker="o")
    smooth = [Curve(c.iterations, _smooth(c.values)) for c in curves("loss", "value")]
    draw_band(losses, join_curves(smooth), arm, color)


def _smooth(values: np.ndarray, width: int = 5) -> np.ndarray:
    """Running mean over ``width`` points, fewer at the ends."""
    kernel = np.ones(min(width, len(values)))
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")


def draw_gain(rows: Sequence[Row], suite: Suite) -> Figure:
    """Difference to the plain arm by strength of the variation: each seed, mean and t-interval.

    Of two seeds no interval is drawn: it would be as wide as the picture is high.
    """
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    figure.set_facecolor("white")
    axes = figure.add_subplot()
    axes.axhline(0, color=_COLORS["plain"], linewidth=1)
    arms = [arm for arm in ARMS if arm != "plain"]
    places = [strength for strength, _ in suite.conditions.values()]
    step = 0.02 * (max(places) - min(places) or 1.0)
    for index, arm in enumerate(arms):
        points: list[tuple[float, Any]] = []
        for condition, (strength, _) in suite.conditions.items():
            values = list(paired_differences(rows, condition, arm).values())
            if values:
                place = strength + step * (index - (len(arms) - 1) / 2)
                points.append((place, estimate(values)))
                axes.plot([place] * len(values), values, ".", color=_COLORS[arm], alpha=0.5)
        if points:
            x, means = [p for p, _ in points], [e.mean for _, e in points]
            bars = [e.half_width if e.count > 2 else math.nan for _, e in points]
            axes.errorbar(x, means, bars, color=_COLORS[arm], label=arm, marker="o", capsize=3)
    axes.set(
        xlabel="within-class variation between images",
        ylabel="mIoU minus that of plain (points)",
        xticks=places,
        xticklabels=[f"{place:.0%}" for place in places],
        title=suite.title,
    )
    axes.title.set_fontsize(10)
    _tidy(axes)
    _legend(figure, [axes], ARM_TITLES, columns=2)
    return figure


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
