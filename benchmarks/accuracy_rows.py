"""A run of the accuracy experiment: its name, its recipe, and what its folder tells."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accuracy_suites import ARMS, Suite

from offseg_d2.utils.io import write_atomically

_SCORES = ("mIoU", "pACC", "mBIoU")


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
    def key(self) -> tuple[str, str, int]:
        return self.condition, self.arm, self.seed

    @property
    def name(self) -> str:
        return "_".join(part for part in (self.condition, self.arm, f"seed{self.seed}") if part)

    @property
    def recipe(self) -> dict[str, Any]:
        """Everything that is changed in the suite's configuration file."""
        changes = self.suite.conditions[self.condition][1]
        return {**self.suite.recipe, **changes, **ARMS[self.arm], "SEED": self.seed}


def list_runs(suites: Mapping[str, Suite], arms: Sequence[str], seeds: Iterable[int]) -> list[Run]:
    """All runs, the first seed of everything first: what is there at any time is balanced."""
    return [
        Run(name, suite, condition, arm, seed)
        for seed in seeds
        for name, suite in suites.items()
        for condition in suite.conditions
        for arm in arms
    ]


@dataclass(frozen=True)
class Curve:
    """Scores of the curve's data set and mean losses, over the iterations done."""

    iterations: list[int]
    miou: list[float]
    loss_iterations: list[int]
    loss: list[float]
    last: dict[str, Any]  # all scores of the last point
    is_complete: bool
    seconds_per_iteration: float | None


def read_curve(folder: Path, max_iter: int) -> Curve:
    """Read ``metrics.json`` of a run; what a resumed run repeated counts once."""
    scores: dict[int, dict[str, Any]] = {}
    losses: dict[int, float] = {}
    times: list[float] = []
    path = folder / "metrics.json"
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:  # a line that was being written when the run was killed
            continue
        done = min(entry["iteration"] + 1, max_iter)
        if "sem_seg/mIoU" in entry:
            scores[done] = {key: entry.get(f"sem_seg/{key}") for key in _SCORES}
        if "total_loss" in entry:
            losses[done] = entry["total_loss"]
        if "time" in entry:
            times.append(entry["time"])
    points = sorted(scores)
    return Curve(
        iterations=points,
        miou=[round(scores[point]["mIoU"], 3) for point in points],
        loss_iterations=sorted(losses),
        loss=[round(losses[point], 4) for point in sorted(losses)],
        last=scores[points[-1]] if points else {},
        is_complete=max_iter in scores and (folder / "model_final.pth").exists(),
        seconds_per_iteration=round(sorted(times)[len(times) // 2], 3) if times else None,
    )


def report_file(folder: Path, test_set: str) -> Path:
    """Scores that --eval-only leaves in the folder of a run."""
    return folder / "inference" / test_set / "metrics.json"


def make_row(run: Run, folder: Path) -> dict[str, Any]:
    """Everything that is kept of a finished run."""
    curve = read_curve(folder, run.recipe["SOLVER.MAX_ITER"])
    curve_set, final, classes = run.recipe["DATASETS.TEST"][0], curve.last, None
    if run.suite.test_set:
        report = read_json(report_file(folder, run.suite.test_set))
        if report is None:
            raise ValueError(f"{folder} must hold scores of {run.suite.test_set}, but holds none.")
        final = {key: report["summary"].get(key) for key in _SCORES}
        classes = {entry["name"]: entry["IoU"] for entry in report["classes"]}
    attempts = read_json(folder / "attempts.json") or []
    return {
        "condition": run.condition,
        "arm": run.arm,
        "seed": run.seed,
        "final": {
            "dataset": run.suite.test_set or curve_set,
            **{key: None if value is None else round(value, 3) for key, value in final.items()},
        },
        "classes": classes and {k: v and round(v, 2) for k, v in classes.items()},
        "curve": {"dataset": curve_set, "iterations": curve.iterations, "mIoU": curve.miou},
        "loss": {"iterations": curve.loss_iterations, "value": curve.loss},
        "config": run.suite.config,
        "recipe": run.recipe,
        "seconds": round(sum(entry["seconds"] or 0.0 for entry in attempts), 1),
        "seconds_per_iteration": curve.seconds_per_iteration,
        "interruptions": sum(entry["seconds"] is None for entry in attempts),
        "code": list({json.dumps(entry["code"]): entry["code"] for entry in attempts}.values()),
    }


def read_json(path: Path) -> Any:
    """Content of a file, None if it is absent."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def write_json_atomically(path: Path, content: Any) -> None:
    """Write a file that is complete whenever it is there."""
    text = json.dumps(content, indent=1) + "\n"
    write_atomically(str(path), lambda file: file.write(text.encode()))
