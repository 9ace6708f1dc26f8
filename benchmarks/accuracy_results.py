"""Results of the accuracy experiment: the JSON files and what they say.

Differences are paired: the arm's score minus the plain arm's with the same seed.
"""

import contextlib
import fcntl
import json
import math
import os
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accuracy_rows import Run, read_json
from accuracy_suites import ARM_TITLES, ARMS, CHANGES, Suite
from common import machine
from scipy.stats import t as student

from offseg_d2.utils.io import write_atomically

Row = dict[str, Any]
_CONFIDENCE = 0.95
_FEWEST_SEEDS = 3  # of a verdict


class Results:
    """The rows of one suite, in a file that is complete at any moment.

    Args:
        folder: of all results.
        name: of the suite.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.path = folder / f"{name}.json"

    def rows(self) -> list[Row]:
        """Rows in the order of condition, arm, seed."""
        content = read_json(self.path)
        return [] if content is None else content["rows"]

    def find(self, run: Run) -> Row | None:
        """The row of a run.

        Raises:
            ValueError: it was made by another recipe.
        """
        for row in self.rows():
            if _key(row) == run.key:
                if row["recipe"] != run.recipe or row["config"] != run.suite.config:
                    raise ValueError(
                        f"{self.path} must hold runs of the present recipe, but its row "
                        f"{run.name} has another one; move the file away to begin anew."
                    )
                return row
        return None

    def add(self, row: Row, suite: Suite) -> None:
        """Add a row, or replace the one of the same run."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked():
            rows = [other for other in self.rows() if _key(other) != _key(row)]
            rows.append({**row, "machine": machine()})
            conditions, arms = list(suite.conditions), list(ARMS)
            rows.sort(
                key=lambda r: (
                    _place(conditions, r["condition"]), _place(arms, r["arm"]), r["seed"]
                )
            )  # fmt: skip
            head = {"suite": self.name, "title": suite.title, "config": suite.config}
            lines = ",\n".join(json.dumps(r) for r in rows)  # one a line: small differences in git
            text = f'{json.dumps(head)[:-1]}, "rows": [\n{lines}\n]}}\n'
            write_atomically(str(self.path), lambda file: file.write(text.encode()))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        lock = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def _key(row: Row) -> tuple[str, str, int]:
    return row["condition"], row["arm"], row["seed"]


def _place(order: Sequence[str], name: str) -> int:
    return order.index(name) if name in order else len(order)


@dataclass(frozen=True)
class Estimate:
    """Mean of values and how sure it is.

    Attributes:
        mean: arithmetic mean.
        deviation: sample standard deviation, NaN for one value.
        half_width: of the interval of the mean by Student's t, NaN for one value.
        count: number of values.
    """

    mean: float
    deviation: float
    half_width: float
    count: int


def estimate(values: Sequence[float], confidence: float = _CONFIDENCE) -> Estimate:
    """Mean, sample standard deviation and t-interval of at least one value."""
    count = len(values)
    if count < 2:
        return Estimate(values[0], math.nan, math.nan, count)
    deviation = statistics.stdev(values)
    quantile = float(student.ppf((1 + confidence) / 2, count - 1))
    half_width = quantile * deviation / math.sqrt(count)
    return Estimate(statistics.fmean(values), deviation, half_width, count)


def scores(rows: Sequence[Row], condition: str, arm: str, metric: str = "mIoU") -> dict[int, float]:
    """Seed -> final score."""
    return {
        row["seed"]: row["final"][metric]
        for row in rows
        if (row["condition"], row["arm"]) == (condition, arm)
    }


def paired_differences(
    rows: Sequence[Row], condition: str, arm: str, baseline: str = "plain"
) -> dict[int, float]:
    """Seed -> score minus that of the arm ``baseline``, for seeds that both arms have."""
    base, own = scores(rows, condition, baseline), scores(rows, condition, arm)
    return {seed: own[seed] - base[seed] for seed in sorted(own.keys() & base.keys())}


def summary(rows: Sequence[Row], suite: Suite) -> str:
    """Table of the final mIoU of each arm, in Markdown."""
    lines = [
        f"**{suite.title}**: final mIoU on `{suite.test_set or suite.curve_set}`, mean ± sample "
        "standard deviation over seeds; difference to plain by seed, with the 95 % interval of "
        "its mean (Student's t)",
        "",
        "| condition | arm | seeds | mIoU | minus plain | by seed |",
        "|---|---|---|---|---|---|",
    ]
    for condition in suite.conditions:
        for arm in ARMS:
            values = scores(rows, condition, arm)
            if values:
                lines.append(_line(rows, condition, arm, values))
    digests = sorted({code["digest"] for row in rows for code in row["code"]})
    if len(digests) > 1:
        lines += [
            "",
            f"The runs were made with {len(digests)} states of the code: {digests}. An asterisk "
            "marks a seed whose two runs were made by different ones.",
        ]
    return "\n".join(lines)


def changes(rows: Sequence[Row], suite: Suite) -> str:
    """Table of what single changes do, in Markdown; "" if no pair of arms has been run.

    A seed whose two runs were made by different states of the code is marked.
    """
    lines = []
    for before, after in CHANGES:
        for condition in suite.conditions:
            differences = paired_differences(rows, condition, after, before)
            if not differences:
                continue
            change = estimate(list(differences.values()))
            mixed = _mixed(rows, condition, before, after) & differences.keys()
            cells = [ARM_TITLES[before], ARM_TITLES[after], condition or "-", str(change.count)]
            cells += [_pm(change, change.half_width, "+"), _by_seed(differences, mixed)]
            lines.append(f"| {' | '.join(cells)} |")
    if not lines:
        return ""
    head = [
        "| from | to | condition | seeds | mIoU changes by | by seed |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join(head + lines)


def _states(rows: Sequence[Row], condition: str, arm: str) -> dict[int, list[str]]:
    """Seed -> states of the code that made its run."""
    return {
        row["seed"]: [code["digest"] for code in row["code"]]
        for row in rows
        if (row["condition"], row["arm"]) == (condition, arm)
    }


def _mixed(rows: Sequence[Row], condition: str, first: str, second: str) -> set[int]:
    """Seeds of two arms whose runs were made by different states of the code."""
    states, others = (_states(rows, condition, arm) for arm in (first, second))
    return {seed for seed in states.keys() & others.keys() if states[seed] != others[seed]}


def verdicts(rows: Sequence[Row], suite: Suite) -> list[str]:
    """What the differences to plain say, one sentence for each condition.

    Only arms with at least three seeds count; conditions without such an arm get no sentence. An
    arm is better or worse if an interval says so that holds for all comparisons of the suite
    together (Bonferroni: its error is 5 % over their number).
    """
    differences = {}
    for condition in suite.conditions:
        for arm in ARMS:
            values = list(paired_differences(rows, condition, arm).values())
            if arm != "plain" and len(values) >= _FEWEST_SEEDS:
                differences[condition, arm] = values
    confidence = 1 - (1 - _CONFIDENCE) / max(len(differences), 1)
    sentences = []
    for condition in suite.conditions:
        found: dict[str, list[str]] = {"better": [], "worse": [], "undecided": []}
        for (where, arm), values in differences.items():
            if where == condition:
                found[_verdict(estimate(values, confidence))].append(ARM_TITLES[arm])
        parts = [f"{kind}: {'; '.join(arms)}" for kind, arms in found.items() if arms]
        if parts:
            name = f"At {condition}, a" if condition else "A"
            how = (
                f"intervals that hold for all {len(differences)} comparisons of this suite together"
            )
            how = f"{how} (Bonferroni)" if len(differences) > 1 else "a 95 % interval"
            sentences.append(f"{name}gainst plain, by {how}: {'. '.join(parts)}.")
    return sentences


def _verdict(difference: Estimate) -> str:
    if difference.mean - difference.half_width > 0:
        return "better"
    return "worse" if difference.mean + difference.half_width < 0 else "undecided"


def _line(rows: Sequence[Row], condition: str, arm: str, values: Mapping[int, float]) -> str:
    score = estimate(list(values.values()))
    cells = [condition or "-", ARM_TITLES[arm], str(score.count), _pm(score, score.deviation, "")]
    differences = {} if arm == "plain" else paired_differences(rows, condition, arm)
    if differences:
        difference = estimate(list(differences.values()))
        cells.append(_pm(difference, difference.half_width, "+"))
        cells.append(_by_seed(differences, _mixed(rows, condition, "plain", arm)))
    else:
        cells += ["", ""]
    return f"| {' | '.join(cells)} |"


def _by_seed(differences: Mapping[int, float], marked: Collection[int] = ()) -> str:
    return ", ".join(
        f"{seed}: {value:+.2f}{'*' * (seed in marked)}" for seed, value in differences.items()
    )


def _pm(value: Estimate, spread: float, sign: str) -> str:
    text = f"{value.mean:{sign}.2f}"
    return text if math.isnan(spread) else f"{text} ± {spread:.2f}"
