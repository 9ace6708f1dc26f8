"""Runs of the accuracy experiment, their recorded rows, and the statistics of their scores.

Differences are paired: the arm's score minus the other arm's with the same seed.
"""

import contextlib
import fcntl
import json
import math
import os
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accuracy_suites import ARMS, Suite
from common import machine
from scipy.stats import t as student

from offseg_d2.utils.io import write_atomically

Row = dict[str, Any]
SCORES = ("mIoU", "pACC", "mBIoU")
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        suite_name, suite: what it belongs to.
        condition: key of ``suite.conditions``.
        arm: key of ``ARMS``.
        seed: of the weights, the order of samples and their augmentation.
    """

    suite_name: str
    suite: Suite
    condition: str
    arm: str
    seed: int

    @property
    def full_name(self) -> str:
        """Its folder, below that of all runs."""
        parts = (self.condition, self.arm, f"seed{self.seed}")
        return f"{self.suite_name}/{'_'.join(part for part in parts if part)}"

    @property
    def recipe(self) -> dict[str, Any]:
        """Everything that is changed in the suite's configuration file."""
        changes = self.suite.conditions[self.condition][1]
        return {**self.suite.recipe, **changes, **ARMS[self.arm].overrides, "SEED": self.seed}

    def check_folder(self, folder: Path) -> None:
        """Note the recipe in the folder of a run; raise ValueError if it has another one."""
        path, wanted = folder / "recipe.json", {"config": self.suite.config, **self.recipe}
        found = read_json(path)
        if found is None:
            write_atomically(str(path), json.dumps(wanted, indent=1).encode())
        elif found != wanted:
            keys = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
            raise ValueError(f"{folder} holds a run of another recipe: it differs in {keys}.")


def list_runs(suites: Mapping[str, Suite], arms: Sequence[str], seeds: Iterable[int]) -> list[Run]:
    """List all runs, the first seed of everything first, so that partial results are balanced."""
    return [
        Run(name, suite, condition, arm, seed)
        for seed in seeds
        for name, suite in suites.items()
        for condition in suite.conditions
        for arm in arms
    ]


class Results:
    """The rows of one suite, in a file that is complete at any moment."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self) -> list[Row]:
        """Rows in the order of condition, arm, seed; none if the file does not exist yet."""
        content = read_json(self.path)
        return [] if content is None else content["rows"]

    def find(self, run: Run) -> Row | None:
        """The row of a run.

        Raises:
            ValueError: it was made by another recipe.
        """
        for row in self.rows():
            if _key(row) == (run.condition, run.arm, run.seed):
                if row["recipe"] != run.recipe or row["config"] != run.suite.config:
                    raise ValueError(
                        f"{self.path} must hold runs of the present recipe, but its row of "
                        f"{run.full_name} has another one; move the file away to start again."
                    )
                return row
        return None

    def add(self, row: Row, suite: Suite) -> None:
        """Add a row, or replace the one of the same run."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        conditions, arms = list(suite.conditions), list(ARMS)
        with self._locked():
            rows = [other for other in self.rows() if _key(other) != _key(row)]
            rows.append({**row, "machine": machine()})
            rows.sort(
                key=lambda r: (conditions.index(r["condition"]), arms.index(r["arm"]), r["seed"])
            )
            head = {"suite": self.path.stem, "title": suite.title, "config": suite.config}
            lines = ",\n".join(json.dumps(r) for r in rows)  # one a line: small differences in git
            text = f'{json.dumps(head)[:-1]}, "rows": [\n{lines}\n]}}\n'
            write_atomically(str(self.path), text.encode())

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


def curves_of(folder: Path, max_iter: int) -> dict[str, dict[int, float]]:
    """Losses ("loss") and scores of a run: iterations done -> value, from ``metrics.json``.

    What a resumed run repeated counts once.
    """
    curves: dict[str, dict[int, float]] = {}
    keys = {"total_loss": "loss", **{f"sem_seg/{name}": name for name in SCORES}}
    path = folder / "metrics.json"
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):  # a line that was being written at a kill
            entry = json.loads(line)
            done = min(entry["iteration"] + 1, max_iter)
            for key in keys.keys() & entry.keys():
                curves.setdefault(keys[key], {})[done] = entry[key]
    return {name: dict(sorted(values.items())) for name, values in curves.items()}


def report(folder: Path, test_set: str) -> Path:
    """Scores that --eval-only leaves in the folder of a run."""
    return folder / "inference" / test_set / "metrics.json"


def make_row(run: Run, folder: Path) -> Row:
    """Everything that is recorded of a finished run."""
    last, test_set = run.recipe["SOLVER.MAX_ITER"], run.suite.test_set
    curves = curves_of(folder, last)
    dataset, classes = run.recipe["DATASETS.TEST"][0], None
    final = {name: curves.get(name, {}).get(last) for name in SCORES}
    if test_set:
        content = read_json(report(folder, test_set))
        final = {name: content["summary"].get(name) for name in SCORES}
        classes = {entry["name"]: entry["IoU"] for entry in content["classes"]}
    digests = (folder / "code.txt").read_text().split()
    return {
        "condition": run.condition,
        "arm": run.arm,
        "seed": run.seed,
        "final": {
            "dataset": test_set or dataset,
            **{key: None if value is None else round(value, 3) for key, value in final.items()},
        },
        "classes": classes and {k: v and round(v, 2) for k, v in classes.items()},
        "curve": {
            "dataset": dataset,
            "iterations": list(curves["mIoU"]),
            "mIoU": [round(value, 3) for value in curves["mIoU"].values()],
        },
        "loss": {
            "iterations": list(curves["loss"]),
            "value": [round(value, 4) for value in curves["loss"].values()],
        },
        "config": run.suite.config,
        "recipe": run.recipe,
        "code": [{"digest": digest} for digest in dict.fromkeys(digests)],
    }


def read_json(path: Path) -> Any:
    """Content of a file, None if it is absent."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


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


def estimate(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Mean, sample standard deviation and t-interval of at least one value."""
    count = len(values)
    if count < 2:
        return Estimate(values[0], math.nan, math.nan, count)
    deviation = statistics.stdev(values)
    quantile = float(student.ppf((1 + confidence) / 2, count - 1))
    half_width = quantile * deviation / math.sqrt(count)
    return Estimate(statistics.fmean(values), deviation, half_width, count)


def by_seed(rows: Iterable[Row], condition: str, arm: str) -> dict[int, Row]:
    """Seed -> row of the runs of an arm."""
    return {r["seed"]: r for r in rows if (r["condition"], r["arm"]) == (condition, arm)}


def paired_differences(
    rows: Sequence[Row], condition: str, arm: str, baseline: str = "plain"
) -> dict[int, float]:
    """Seed -> mIoU minus that of the arm ``baseline``, for seeds that both arms have."""
    base, own = by_seed(rows, condition, baseline), by_seed(rows, condition, arm)
    return {
        seed: own[seed]["final"]["mIoU"] - base[seed]["final"]["mIoU"]
        for seed in sorted(own.keys() & base.keys())
    }
