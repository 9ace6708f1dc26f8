"""Trains the tiny model in child processes that are killed by SIGKILL, and resumes them.

Run as ``python -m tests.engine.kill_runner DIRECTORY NUMBER_OF_RANDOM_KILLS``. One process imports
everything and forks each training run, because importing costs more than the runs. Prints one JSON
line for each case.
"""

import contextlib
import io
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from offseg_d2.checkpoint import load_checkpoint_file
from offseg_d2.engine import TrainLoop
from tests.engine.tiny import make_trainer

PERIOD = 3
MAX_ITER = 30
KILLED_AT = 14  # an iteration after which a checkpoint is due
OPTIONS = (
    *("SOLVER.MAX_ITER", MAX_ITER, "SOLVER.CHECKPOINT_PERIOD", PERIOD),
    *("SOLVER.KEEP_CHECKPOINTS", 2, "TEST.EVAL_PERIOD", 10),
)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def note(path: Path, number: int) -> None:
    """Write a number so that a kill leaves the old one or the new one."""
    new = f"{path}.new"
    Path(new).write_text(str(number))
    os.rename(new, path)  # not os.replace, which some moments below take over


def train(directory: Path, prepare: Callable[[], None] = lambda: None) -> None:
    """Resume the run in ``directory`` as far as it gets, noting its progress in files."""
    prepare()
    trainer = make_trainer(directory, *OPTIONS)
    trainer.resume_or_load(resume=True)
    note(directory / "started_at", trainer.start_iter)
    after_step = trainer.after_step

    def after_step_and_note() -> None:
        note(directory / "iteration", trainer.iter)
        after_step()

    trainer.after_step = after_step_and_note
    trainer.train()


def in_child(function: Callable[..., None], *args) -> int:
    """Process id of a forked child that runs the function with its output thrown away."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    with contextlib.suppress(BaseException):
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        torch.set_num_threads(1)
        function(*args)
        status = 0
    os._exit(status)


def wait(pid: int) -> int:
    """Exit status of a child, negative if a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# ---------------------------------------------------------------------- moments to die at


def is_due(path: str) -> bool:
    return path.endswith(f"model_{KILLED_AT:07d}.pth")


def die_in_an_iteration() -> None:
    run_step = TrainLoop.run_step

    def run_step_or_die(self) -> None:
        if self.iter == KILLED_AT:
            die()
        run_step(self)

    TrainLoop.run_step = run_step_or_die


def die_while_writing() -> None:
    save = torch.save

    def save_half(data, file) -> None:
        whole = io.BytesIO()
        save(data, whole)
        content = whole.getvalue()
        if data["iteration"] == KILLED_AT and "optimizer" in data:
            file.write(content[: len(content) // 2])
            file.flush()
            die()
        file.write(content)

    torch.save = save_half


def _die_at_replace(before: Callable[[str], bool], after: Callable[[str], bool]) -> None:
    replace = os.replace

    def replace_or_die(source: str, target: str) -> None:
        if before(target):
            die()
        replace(source, target)
        if after(target):
            die()

    os.replace = replace_or_die


def die_before_the_rename() -> None:
    _die_at_replace(is_due, lambda target: False)


def die_between_checkpoint_and_tag() -> None:
    _die_at_replace(lambda target: False, is_due)


def die_before_deleting_the_oldest() -> None:
    remove = os.remove

    def remove_or_die(path: str) -> None:
        if os.path.exists(os.path.join(os.path.dirname(path), f"model_{KILLED_AT:07d}.pth")):
            die()
        remove(path)

    os.remove = remove_or_die


MOMENTS = (
    die_in_an_iteration,
    die_while_writing,
    die_before_the_rename,
    die_between_checkpoint_and_tag,
    die_before_deleting_the_oldest,
)


# ---------------------------------------------------------------------- cases


def damaged_files(directory: Path) -> list[str]:
    """Names of checkpoints that cannot be read."""
    damaged = []
    for path in directory.glob("*.pth"):
        try:
            load_checkpoint_file(str(path))
        except Exception:
            damaged.append(path.name)
    return damaged


def report(directory: Path, statuses: list[int], lost: int) -> dict:
    return {
        "statuses": statuses,
        "lost": lost,
        "damaged": damaged_files(directory),
        "temporary": [name for name in os.listdir(directory) if name.startswith(".tmp")],
    }


def noted(path: Path) -> int | None:
    return int(path.read_text()) if path.exists() else None


def lost_iterations(directory: Path, done: int | None) -> int:
    """Iterations that the last child had to repeat, if it came as far as to say so."""
    start = noted(directory / "started_at")
    return 0 if start is None or done is None else done + 1 - start


def kill_at_moment(directory: Path, moment: Callable[[], None]) -> dict:
    directory.mkdir()
    statuses = [wait(in_child(train, directory, moment))]
    done = noted(directory / "iteration")
    damaged = damaged_files(directory)
    statuses.append(wait(in_child(train, directory)))
    result = report(directory, statuses, lost_iterations(directory, done))
    return {**result, "damaged": damaged + result["damaged"]}


def kill_at_random(directory: Path, kills: int) -> dict:
    directory.mkdir()
    rng = random.Random(0)
    statuses, lost, damaged = [], 0, []
    for number in range(kills + 1):
        done = noted(directory / "iteration")
        (directory / "started_at").unlink(missing_ok=True)
        pid = in_child(train, directory)
        if number < kills:
            time.sleep(rng.uniform(0.05, 0.45))
            os.kill(pid, signal.SIGKILL)
        statuses.append(wait(pid))
        lost = max(lost, lost_iterations(directory, done))
        damaged += damaged_files(directory)
    result = report(directory, statuses, lost)
    return {**result, "damaged": damaged}


def main() -> None:
    root, kills = Path(sys.argv[1]), int(sys.argv[2])
    whole = root / "whole"
    whole.mkdir()
    assert wait(in_child(train, whole)) == 0
    cases = {moment.__name__: (kill_at_moment, moment) for moment in MOMENTS}
    cases["random"] = (kill_at_random, kills)
    expected = load_checkpoint_file(str(whole / "model_final.pth"))["model"]
    for name, (run, argument) in cases.items():
        result = run(root / name, argument)
        final = load_checkpoint_file(str(root / name / "model_final.pth"))["model"]
        same = all(torch.equal(final[key], expected[key]) for key in expected)
        print(json.dumps({"case": name, "same_weights": same, **result}), flush=True)


if __name__ == "__main__":
    main()
