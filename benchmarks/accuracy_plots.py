"""Plots of the accuracy experiment: curves of each arm, and gain against variation.

Only arms with at least three seeds are drawn.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from accuracy_page import FEWEST_SEEDS, plot_file
from accuracy_results import Row, by_seed, estimate, paired_differences
from accuracy_suites import ARMS, SUITES, Suite
from matplotlib.figure import Figure

from offseg_d2.utils.io import write_atomically
from offseg_d2.visualization.curves import LOSS, Curve, Group, RunCurves, draw_runs, to_png


def draw_plots(rows: Sequence[Row], name: str, folder: Path) -> list[Path]:
    """Draw the curves of each condition and, of several conditions, the gain.

    Returns:
        paths of the pictures.
    """
    suite, figures = SUITES[name], {}
    counts = Counter((row["condition"], row["arm"]) for row in rows)
    rows = [r for r in rows if counts[r["condition"], r["arm"]] >= FEWEST_SEEDS]
    for condition in suite.conditions:
        groups = [
            Group(arm.title, [_curves(row) for row in by_seed(rows, condition, key).values()])
            for key, arm in ARMS.items()
            if by_seed(rows, condition, key)
        ]
        if groups:
            figures[plot_file(name, "curves", condition)] = draw_runs(groups)
    if len(suite.conditions) > 1 and any(row["arm"] != "plain" for row in rows):
        figures[plot_file(name, "gain")] = draw_gain(rows, suite)
    for file, figure in figures.items():
        write_atomically(str(folder / file), to_png(figure))
    return [folder / file for file in figures]


def _curves(row: Row) -> RunCurves:
    quantities = {
        LOSS: ("loss", "value"),
        f"{row['curve']['dataset']}/sem_seg/mIoU": ("curve", "mIoU"),
    }
    curves = {
        quantity: Curve(np.array(row[key]["iterations"]), np.array(row[key][values]))
        for quantity, (key, values) in quantities.items()
    }
    return RunCurves(f"seed{row['seed']}", curves)


def draw_gain(rows: Sequence[Row], suite: Suite) -> Figure:
    """Difference to the plain arm along the suite's axis: each seed, mean and t-interval.

    The conditions stand at equal distances: 8, 32 and 150 classes would crowd at one end.
    """
    figure = Figure(figsize=(7.0, 4.6), layout="constrained")
    figure.set_facecolor("white")
    axes = figure.add_subplot()
    axes.axhline(0, color="#555555", linewidth=1)
    arms = [key for key in ARMS if key != "plain" and any(row["arm"] == key for row in rows)]
    for index, arm in enumerate(arms):
        points, shift = [], 0.04 * (index - (len(arms) - 1) / 2)
        for place, condition in enumerate(suite.conditions):
            values = list(paired_differences(rows, condition, arm).values())
            if values:
                x = place + shift
                points.append((x, estimate(values)))
                axes.plot([x] * len(values), values, ".", color=f"C{index}", alpha=0.5)
        x, means, bars = zip(*((x, e.mean, e.half_width) for x, e in points), strict=True)
        style = {"color": f"C{index}", "marker": "o", "capsize": 3}
        axes.errorbar(x, means, bars, label=ARMS[arm].title, **style)
    labels = [f"{position:g}" for position, _ in suite.conditions.values()]
    axes.set(xlabel=suite.axis, ylabel="mIoU minus that of plain")
    axes.set_xticks(range(len(labels)), labels)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False)
    return figure
