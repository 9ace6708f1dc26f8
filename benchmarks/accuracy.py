"""Do offsets help? Plain, class offset, feature offset, both, over several seeds, on the CPU.

::

    python benchmarks/accuracy.py --suite scenes camvid_offseg --runs-dir output/accuracy --jobs 2
    python benchmarks/accuracy.py --suite all --list
    python benchmarks/accuracy.py --suite all --plots

Each run is a call of tools/train_net.py in a folder of its own, by default with one thread (two of
them side by side are faster than one with two threads). Runs that are done are skipped, one that
was interrupted is resumed; the script may be killed at any moment and started again. A finished run
adds its row to RESULTS/SUITE.json. First all arms with the first seed are run, then with the
next, so that what is there is balanced at any time.

The recipes stand in accuracy_suites.py; ``make_page.py`` writes docs/ACCURACY.md from the rows.
"""

import argparse
import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from accuracy_results import Results, Row, Run, curves_of, list_runs, make_row, read_json, report
from accuracy_suites import ARMS, DEFAULT_ARMS, SUITES, Suite

from offseg_d2.config import load_config
from offseg_d2.utils.cli import report_user_errors

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "accuracy"
TRAIN = (sys.executable, str(ROOT / "tools" / "train_net.py"))


class Experiment:
    """Does runs that are not done yet, several at a time.

    Args:
        runs_dir: folder of all runs.
        results_dir: folder of the rows.
        threads: of each training process.
        command: program that trains, with the arguments of tools/train_net.py.
    """

    def __init__(
        self, runs_dir: Path, results_dir: Path, threads: int = 1, command: Sequence[str] = TRAIN
    ) -> None:
        self.runs_dir = runs_dir
        self.results_dir = results_dir
        self.threads = threads
        self.command = command

    def results(self, run: Run) -> Results:
        """The file that has, or will have, the row of a run."""
        return Results(self.results_dir / f"{run.suite_name}.json")

    def go(self, runs: Sequence[Run], jobs: int) -> list[str]:
        """Do all runs in their order.

        Returns:
            names of those that failed.
        """
        todo = [run for run in runs if self.results(run).find(run) is None]
        print(f"{len(runs) - len(todo)} runs are done, {len(todo)} to go.", flush=True)
        pool = ThreadPoolExecutor(jobs)
        try:
            succeeded = list(pool.map(self._try, todo))
        finally:
            pool.shutdown(cancel_futures=True)  # an interrupt from the keyboard ends the trainings
        return [run.full_name for run, success in zip(todo, succeeded, strict=True) if not success]

    def _try(self, run: Run) -> bool:
        try:
            row = self.train_and_evaluate(run)
        except (subprocess.CalledProcessError, OSError, ValueError) as error:
            print(f"FAILED {run.full_name}: {error}", file=sys.stderr, flush=True)
            return False
        self.results(run).add(row, run.suite)
        print(f"{run.full_name}: mIoU {row['final']['mIoU']:.2f}", flush=True)
        return True

    def train_and_evaluate(self, run: Run) -> Row:
        """Do one run, as far as it is not done yet.

        Raises:
            CalledProcessError: training or evaluation failed; output.txt in the folder has why.
            ValueError: the folder holds a run of another recipe.
        """
        folder = self.runs_dir / run.full_name
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "lock", "w") as lock:
            # The training inherits the lock: one that outlives a killed script is waited for.
            os.set_inheritable(lock.fileno(), True)
            fcntl.flock(lock, fcntl.LOCK_EX)
            run.check_folder(folder)
            last = run.recipe["SOLVER.MAX_ITER"]
            scores = curves_of(folder, last).get("mIoU", {})
            if last not in scores or not (folder / "model_final.pth").exists():
                self._execute(run, folder, ["--resume"], {})
            test_set = run.suite.test_set
            if test_set and read_json(report(folder, test_set)) is None:
                weights = str(folder / "model_final.pth")
                changes = {"DATASETS.TEST": [test_set], "MODEL.WEIGHTS": weights}
                self._execute(run, folder, ["--eval-only"], changes)
            return make_row(run, folder)

    def _execute(self, run: Run, folder: Path, flags: list[str], changes: dict) -> None:
        threads = {f"{name}_NUM_THREADS": str(self.threads) for name in ("OMP", "MKL", "OPENBLAS")}
        values = {**run.recipe, "OUTPUT_DIR": str(folder), **changes}
        options = [text for key, value in values.items() for text in (key, as_option(value))]
        with open(folder / "code.txt", "a") as code:
            code.write(f"{code_digest()}\n")
        with open(folder / "output.txt", "ab") as output:
            subprocess.run(
                [*self.command, "--config-file", run.suite.config, *flags, *options],
                cwd=ROOT,
                env={**os.environ, **threads, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                close_fds=False,
                check=True,
            )


def as_option(value: object) -> str:
    """A value as the command line of tools/train_net.py takes it."""
    return repr(value) if not isinstance(value, str) or not value else value


def code_digest() -> str:
    """Digest of the code that trains: rows of different ones are marked on the page."""
    digest = hashlib.sha256()
    for path in sorted([*(ROOT / "offseg_d2").rglob("*.py"), ROOT / "tools" / "train_net.py"]):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def check_weights(suites: Iterable[Suite]) -> None:
    """Raise FileNotFoundError, before anything runs, if a file with ImageNet weights is missing."""
    for suite in suites:
        weights = load_config(str(ROOT / suite.config)).MODEL.WEIGHTS
        weights = suite.recipe.get("MODEL.WEIGHTS", weights)
        if weights and not (ROOT / weights).is_file():
            raise FileNotFoundError(
                f"`MODEL.WEIGHTS` of {suite.config} must be there, but {ROOT / weights} is not; "
                "docs/OFFSET_LEARNING.md says where torchvision's weights come from."
            )


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", nargs="+", default=["all"], choices=["all", *SUITES])
    parser.add_argument("--arms", nargs="+", default=list(DEFAULT_ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--runs-dir", type=Path, default=ROOT / "output" / "accuracy")
    parser.add_argument("--results-dir", type=Path, default=RESULTS)
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--list", action="store_true", help="show what is done, run nothing")
    parser.add_argument("--plots", action="store_true", help="draw into docs/, run nothing")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_arguments(arguments)
    names = list(SUITES) if "all" in args.suite else list(dict.fromkeys(args.suite))
    runs = list_runs({name: SUITES[name] for name in names}, args.arms, args.seeds)
    experiment = Experiment(args.runs_dir.resolve(), args.results_dir, args.threads)
    if args.list:
        for run in runs:
            row = experiment.results(run).find(run)
            state = f"mIoU {row['final']['mIoU']:.2f}" if row else "-"
            print(f"{run.full_name:48} {state}")
    if args.plots:
        from accuracy_plots import draw_plots  # only here: it imports matplotlib

        for name in names:
            draw_plots(Results(args.results_dir / f"{name}.json").rows(), name, ROOT / "docs")
    if args.list or args.plots:
        return 0
    check_weights(SUITES[name] for name in names)
    failed = experiment.go(runs, args.jobs)
    print(f"{len(failed)} runs failed: {failed}", flush=True)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(report_user_errors(main))
