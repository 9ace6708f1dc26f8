"""Whatever moment SIGKILL comes at: no checkpoint is broken and resuming loses little."""

import contextlib
import io
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from offseg_d2.checkpoint import load_checkpoint_file
from offseg_d2.engine import Trainer, TrainLoop
from tests.common import SMALL_OFFSEG, offseg_config, seed_all
from tests.distributed.run_ranks import run_ranks
from tests.engine.tiny import assert_same_weights, make_trainer

PERIOD = 3
KILLED_AT = 14  # an iteration after which a checkpoint is due
OPTIONS = (
    *("SOLVER.MAX_ITER", 30, "SOLVER.CHECKPOINT_PERIOD", PERIOD),
    *("SOLVER.KEEP_CHECKPOINTS", 2, "TEST.EVAL_PERIOD", 10),
)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def train(directory: Path, prepare: Callable[[], None] = lambda: None) -> None:
    """Resume the run in ``directory`` as far as it gets."""
    prepare()
    trainer = make_trainer(directory, *OPTIONS)
    trainer.resume_or_load(resume=True)
    print("started at", trainer.start_iter)
    trainer.train()


def damaged_files(directory: Path) -> list[str]:
    """Names of checkpoints that cannot be read."""
    damaged = []
    for path in directory.glob("*.pth"):
        try:
            load_checkpoint_file(str(path))
        except Exception:
            damaged.append(path.name)
    return damaged


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


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, torch.Tensor]:
    """Final weights of a run that is not killed."""
    directory = tmp_path_factory.mktemp("whole")
    (ended,) = run_ranks(directory, train, directory, number=1)
    assert ended.status == 0, ended.log
    return load_checkpoint_file(str(directory / "model_final.pth"))["model"]


@pytest.mark.parametrize(
    "moment",
    [
        die_in_an_iteration,
        die_while_writing,
        die_before_the_rename,
        die_between_checkpoint_and_tag,
        die_before_deleting_the_oldest,
    ],
)
def test_killed_run_resumes_from_a_whole_checkpoint_and_ends_with_the_same_weights(
    tmp_path, undisturbed, moment
):
    (killed,) = run_ranks(tmp_path, train, tmp_path, moment, number=1)
    assert killed.status == -signal.SIGKILL, killed.log
    assert damaged_files(tmp_path) == []
    (ended,) = run_ranks(tmp_path, train, tmp_path, number=1)
    assert ended.status == 0, ended.log
    assert any(f"started at {KILLED_AT + 1 - lost}\n" in ended.log for lost in range(PERIOD + 1))
    assert damaged_files(tmp_path) == []
    assert not list(tmp_path.glob(".tmp*"))
    final = load_checkpoint_file(str(tmp_path / "model_final.pth"))["model"]
    assert_same_weights(final, undisturbed)


# ---------------------------------------------------------------------- many kills of several

# Writing a checkpoint takes milliseconds; this makes it long enough to be hit, in seconds.
WRITING = 0.5


def train_offseg(directory: Path) -> None:
    """Go on with a small OffSeg on drawn shapes, with a data-loader worker in each process."""
    os.setpgid(0, 0)  # to be killed together with its workers
    torch.save = _slow_save(torch.save)
    seed_all()
    cfg = offseg_config(
        *SMALL_OFFSEG,
        *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 8, "DATASETS.TRAIN", ("shapes_train",)),
        *("DATASETS.TEST", (), "INPUT.CROP.SIZE", [64, 64], "INPUT.RESIZE.SCALE", [128, 96]),
        *("INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute"),
        *("SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 40, "SOLVER.WARMUP_ITERS", 2),
        *("SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.KEEP_CHECKPOINTS", 2),
        *("SOLVER.LR_SCHEDULER_NAME", "WarmupPoly", "SOLVER.EMA.ENABLED", True),
        *("DATALOADER.NUM_WORKERS", 1, "SEED", 1, "OUTPUT_DIR", str(directory)),
    )
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()


def _slow_save(save: Any) -> Any:
    def save_slowly(data: Any, file: Any) -> None:
        whole = io.BytesIO()
        save(data, whole)
        content = whole.getvalue()
        for part in range(10):
            file.write(content[part * len(content) // 10 : (part + 1) * len(content) // 10])
            file.flush()
            time.sleep(WRITING / 10)

    return save_slowly


class Killer:
    """Kills all processes at a random moment, or while the second checkpoint is written.

    The first one is let through, as otherwise the run would never come further than that.
    """

    def __init__(self, directory: Path, while_writing: bool, moment: float) -> None:
        self.directory, self.while_writing, self.moment = directory, while_writing, moment

    def last(self) -> str:
        path = self.directory / "last_checkpoint"
        return path.read_text() if path.exists() else ""

    def __call__(self, pids: list[int]) -> None:
        end, before = time.monotonic() + self.moment, self.last()
        while all(os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
                  for pid in pids):  # fmt: skip
            writes = any(self.directory.glob(".tmp-*model*")) and self.last() != before
            if writes if self.while_writing else time.monotonic() > end:
                break
            time.sleep(0.005)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


def same(first: Any, second: Any) -> bool:
    """Return True if two checkpoints' entries are equal bit for bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


@pytest.mark.slow
def test_two_processes_killed_again_and_again_end_in_the_same_state(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    ended = run_ranks(whole, train_offseg, whole, seconds=600)
    assert [end.status for end in ended] == [0, 0], ended[0].log[-3000:]
    rng, killed = random.Random(0), 0
    for number in range(12):
        killer = Killer(parts, number % 2 == 1, rng.uniform(0.0, ended[0].seconds / 3))
        results = run_ranks(parts, train_offseg, parts, seconds=600, during=killer)
        assert {end.status for end in results} <= {0, -signal.SIGKILL}, results[0].log[-3000:]
        assert damaged_files(parts) == []
        killed += results[0].status != 0
    assert killed >= 6
    results = run_ranks(parts, train_offseg, parts, seconds=600)
    assert [end.status for end in results] == [0, 0], results[0].log[-3000:]
    expected, final = (
        load_checkpoint_file(str(path / "model_final.pth")) for path in (whole, parts)
    )
    for name in ("model", "optimizer", "scheduler", "ema", "iteration", "seed", "sampler"):
        assert same(expected[name], final[name]), name
