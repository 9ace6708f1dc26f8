"""Plots of the accuracy experiment: convergence of each arm, and gain against variation."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accuracy_page import FEWEST_SEEDS
from accuracy_results import Row, by_seed, estimate, paired_differences
from accuracy_suites import ARMS, SUITES, Suite
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from offseg_d2.utils.io import write_atomically
from offseg_d2.visualization.curves import Curve, draw_band, join_curves, to_png


def draw_plots(rows: Sequence[Row], name: str, folder: Path) -> list[Path]:
    """Draw arms with at least three seeds.

    Returns:
        paths of the pictures; none without such an arm.
    """
    suite = SUITES[name]
    counts = Counter((row["condition"], row["arm"]) for row in rows)
    rows = [r for r in rows if counts[r["condition"], r["arm"]] >= FEWEST_SEEDS]
    if not rows:
        return []
    figures = {"convergence": draw_convergence(rows, suite)}
    if len(suite.conditions) > 1:
        figures["gain"] = draw_gain(rows, suite)
    paths = [folder / f"accuracy_{name}_{kind}.png" for kind in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        write_atomically(str(path), to_png(figure))
        print(f"drew {path}")
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
            if chosen := list(by_seed(rows, condition, arm).values()):
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
    _legend(figure, panels[0], columns=len(conditions))
    return figure


def _legend(figure: Figure, panels: Iterable[Axes], columns: int) -> None:
    """One legend below all panels, where it covers nothing; curves are labelled with their arm."""
    found: dict[str, Any] = {}
    for axes in panels:
        for handle, arm in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(arm, handle)
    arms = [arm for arm in ARMS if arm in found]
    figure.legend(
        [found[arm] for arm in arms],
        [ARMS[arm].title for arm in arms],
        **{"loc": "outside lower center", "ncols": columns, "fontsize": 8, "frameon": False},
    )


def _draw_arm(scores: Axes, losses: Axes, arm: str, rows: Sequence[Row]) -> None:
    def curves(key: str, values: str) -> list[Curve]:
        return [Curve(np.array(r[key]["iterations"]), np.array(r[key][values])) for r in rows]

    color = ARMS[arm].color
    draw_band(scores, join_curves(curves("curve", "mIoU")), arm, color, marker="o")
    smooth = [Curve(c.iterations, _smooth(c.values)) for c in curves("loss", "value")]
    draw_band(losses, join_curves(smooth), arm, color)


def _smooth(values: np.ndarray, width: int = 5) -> np.ndarray:
    """Running mean over ``width`` points, fewer at the ends."""
    kernel = np.ones(min(width, len(values)))
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")


def draw_gain(rows: Sequence[Row], suite: Suite) -> Figure:
    """Difference to the plain arm by strength of the variation: each seed, mean and t-interval."""
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    figure.set_facecolor("white")
    axes = figure.add_subplot()
    axes.axhline(0, color=ARMS["plain"].color, linewidth=1)
    arms = [arm for arm in ARMS if arm != "plain" and any(row["arm"] == arm for row in rows)]
    strengths = [strength for strength, _ in suite.conditions.values()]
    step = 0.02 * (max(strengths) - min(strengths) or 1.0)
    for index, arm in enumerate(arms):
        color, points = ARMS[arm].color, []
        for condition, (strength, _) in suite.conditions.items():
            values = list(paired_differences(rows, condition, arm).values())
            if values:
                x = strength + step * (index - (len(arms) - 1) / 2)
                points.append((x, estimate(values)))
                axes.plot([x] * len(values), values, ".", color=color, alpha=0.5)
        if not points:
            continue
        x, means, bars = zip(*((x, e.mean, e.half_width) for x, e in points), strict=True)
        axes.errorbar(x, means, bars, color=color, label=arm, marker="o", capsize=3)
    axes.set(
        xlabel="within-class variation between images",
        ylabel="mIoU minus that of plain (points)",
        xticks=strengths,
        xticklabels=[f"{strength:.0%}" for strength in strengths],
        title=suite.title,
    )
    axes.title.set_fontsize(10)
    _tidy(axes)
    _legend(figure, [axes], columns=2)
    return figure


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
