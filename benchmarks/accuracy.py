"""Do offsets help? Plain, class offset, feature offset, both, over several seeds, on the CPU.

::

    python benchmarks/accuracy.py --suite scenes camvid_offseg --runs-dir output/accuracy --jobs 2
    python benchmarks/accuracy.py --suite all --list
    python benchmarks/accuracy.py --suite all --summary

Each run is a call of tools/train_net.py in a folder of its own, by default with one thread (two of
them side by side are faster than one with two threads). Runs that are done are skipped, one that
was interrupted goes on; the script may be killed at any moment and started again. A finished run
adds its row to RESULTS/SUITE.json. First all arms with the first seed are run, then with the
next, so that what is there is balanced at any time.

``--summary`` prints means with their spread and paired differences, and draws the plots.
The recipes stand in accuracy_suites.py.
"""

import argparse
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from accuracy_results import Results, changes, summary
from accuracy_rows import Run, list_runs
from accuracy_runs import ROOT, TRAIN, Attempt, BusyError, RunError
from accuracy_suites import ARMS, DEFAULT_ARMS, SUITES, Suite

from offseg_d2.config import load_config
from offseg_d2.utils.cli import report_user_errors

_PATIENCE = 3600.0  # seconds
RESULTS = ROOT / "benchmarks" / "results" / "accuracy"


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", nargs="+", default=["all"], choices=["all", *SUITES])
    parser.add_argument("--arms", nargs="+", default=list(DEFAULT_ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--runs-dir", type=Path, default=ROOT / "output" / "accuracy")
    parser.add_argument("--results-dir", type=Path, default=RESULTS)
    parser.add_argument("--plots-dir", type=Path, default=ROOT / "docs")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--list", action="store_true", help="show what is done, run nothing")
    parser.add_argument("--summary", action="store_true", help="tables and plots, run nothing")
    args = parser.parse_args(arguments)
    for name in ("jobs", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, but is {getattr(args, name)}")
    return args


class Experiment:
    """Runs what is not done yet, several at a time.

    Args:
        runs: in their order.
        results_dir: folder of the rows.
        make_attempt: how to do a run.
    """

    def __init__(
        self, runs: Sequence[Run], results_dir: Path, make_attempt: Callable[[Run], Any]
    ) -> None:
        self.results = {run.suite_name: Results(results_dir, run.suite_name) for run in runs}
        self.todo = [run for run in runs if self.results[run.suite_name].find(run) is None]
        self.num_done = len(runs) - len(self.todo)
        self.make_attempt = make_attempt
        self.failed: list[str] = []
        self._active: set[Any] = set()
        self._busy: list[Run] = []
        self._lock = threading.Lock()
        self._stopping = False

    def go(self, jobs: int) -> bool:
        """Do all runs; returns whether none failed and none is left."""
        print(f"{self.num_done} runs are done, {len(self.todo)} to go.", flush=True)
        with ThreadPoolExecutor(jobs) as pool:
            finished = list(pool.map(self._do, self.todo))
            # What other processes were at, perhaps left by a killed script, is waited for.
            busy, self._busy = self._busy, []
            finished += pool.map(partial(self._do, patience=_PATIENCE), busy)
        left = len(self.todo) - finished.count(True)
        print(f"{left} runs are left, {len(self.failed)} of them failed: {self.failed}", flush=True)
        return left == 0

    def stop(self) -> None:
        """End the runs in progress with a checkpoint and begin no other."""
        self._stopping = True
        for attempt in list(self._active):
            attempt.stop()

    def _do(self, run: Run, patience: float = 0.0) -> bool:
        name, attempt = f"{run.suite_name}/{run.name}", self.make_attempt(run)
        self._active.add(attempt)
        if self._stopping:
            return False
        begin = time.monotonic()
        try:
            row = attempt(patience)
        except BusyError as error:
            self._busy.append(run)
            print(f"{name}: {error}", flush=True)
            return False
        except (RunError, OSError, ValueError) as error:
            self.failed.append(name)
            print(f"FAILED {name}: {error}", file=sys.stderr, flush=True)
            return False
        finally:
            self._active.discard(attempt)
        if row is None:
            print(f"{name}: stopped", flush=True)
            return False
        with self._lock:
            self.results[run.suite_name].add(row, run.suite)
        minutes = (time.monotonic() - begin) / 60
        print(f"{name}: mIoU {row['final']['mIoU']:.2f} after {minutes:.1f} min", flush=True)
        return True


def check_weights(suites: Iterable[Suite]) -> None:
    """Say at once, not run by run, which file with ImageNet weights is missing."""
    for suite in suites:
        weights = load_config(str(ROOT / suite.config)).MODEL.WEIGHTS
        weights = suite.recipe.get("MODEL.WEIGHTS", weights)
        if weights and not (ROOT / weights).is_file():
            raise FileNotFoundError(
                f"`MODEL.WEIGHTS` of {suite.config} must be there, but {ROOT / weights} is not; "
                "docs/OFFSET_LEARNING.md tells where torchvision's weights come from."
            )


def show_list(runs: Sequence[Run], results_dir: Path, runs_dir: Path) -> None:
    """Print the state of each run."""
    for run in runs:
        row = Results(results_dir, run.suite_name).find(run)
        state = "begun" if (runs_dir / run.suite_name / run.name).exists() else "-"
        if row is not None:
            state = f"mIoU {row['final']['mIoU']:6.2f}, {row['seconds'] / 60:5.1f} min"
        print(f"{run.suite_name + '/' + run.name:40} {state}")


def show_summary(names: Sequence[str], results_dir: Path, plots_dir: Path) -> None:
    """Print tables and draw plots of the suites that have rows."""
    from accuracy_plots import draw_plots  # only here: it imports matplotlib

    for name in names:
        rows = Results(results_dir, name).rows()
        if not rows:
            print(f"{name}: no run is done yet")
            continue
        print(f"\n{summary(rows, SUITES[name])}\n\n{changes(rows, SUITES[name])}\n")
        for path in draw_plots(rows, name, SUITES[name], plots_dir):
            print(f"drew {path}")


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_arguments(arguments)
    names = list(SUITES) if "all" in args.suite else list(dict.fromkeys(args.suite))
    runs = list_runs({name: SUITES[name] for name in names}, args.arms, args.seeds)
    if args.list or args.summary:
        if args.list:
            show_list(runs, args.results_dir, args.runs_dir)
        if args.summary:
            show_summary(names, args.results_dir, args.plots_dir)
        return 0
    check_weights(SUITES[name] for name in names)
    runs_dir = args.runs_dir.resolve()
    experiment = Experiment(
        runs, args.results_dir, lambda run: Attempt(run, runs_dir, args.threads, TRAIN)
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: experiment.stop())
    return 0 if experiment.go(args.jobs) else 1


if __name__ == "__main__":
    sys.exit(report_user_errors(main))
