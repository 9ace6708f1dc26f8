"""Kills a real training with SIGKILL again and again, and compares what comes out in the end.

::

    python -m tests.chaos.survive_kills [--kills 20] [--processes 2] [--directory DIR]

A small OffSeg learns drawn shapes in several processes with data-loader workers. Every second kill
waits until a checkpoint is being written; the others come at random moments. After each kill every
checkpoint must be readable, and the run must go on. The final weights, optimizer state included,
must equal those of an undisturbed run bit for bit. Prints survived / tried; exit status 1 if they
differ or the weights do.
"""

import argparse
import contextlib
import io
import os
import random
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from offseg_d2.checkpoint import load_checkpoint_file
from offseg_d2.engine import Trainer
from tests.common import SMALL_OFFSEG, offseg_config, seed_all
from tests.distributed.ranks import Ended, run_ranks

ITERATIONS, PERIOD = 40, 2
# Writing a checkpoint takes milliseconds; this makes it long enough to be hit, in seconds.
WRITING = 0.5
TOO_LONG = 600.0


def train(directory: Path) -> None:
    """Go on with the run in ``directory``, in each of its processes."""
    os.setpgid(0, 0)  # to be killed together with its workers
    torch.save = _slow_save(torch.save)
    seed_all()
    cfg = offseg_config(
        *SMALL_OFFSEG,
        *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 8, "DATASETS.TRAIN", ("shapes_train",)),
        *("DATASETS.TEST", (), "INPUT.CROP.SIZE", [64, 64], "INPUT.RESIZE.SCALE", [128, 96]),
        *("INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute"),
        *("SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", ITERATIONS, "SOLVER.WARMUP_ITERS", 2),
        *("SOLVER.CHECKPOINT_PERIOD", PERIOD, "SOLVER.KEEP_CHECKPOINTS", 2),
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


def is_writing(directory: Path) -> bool:
    return any(directory.glob(".tmp-*model*"))


def kill_all(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def is_running(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def kill_later(
    directory: Path, while_writing: bool, latest: float, rng: random.Random, pids: list[int]
) -> None:
    """Kill all processes at a random moment, or while the second checkpoint from now is written.

    The first one is let through, as otherwise the run would never come further than that.
    """
    start = time.monotonic()
    moment = rng.uniform(0.0, latest)
    before = last_checkpoint_of(directory)
    while all(map(is_running, pids)):
        if while_writing and is_writing(directory) and last_checkpoint_of(directory) != before:
            time.sleep(rng.uniform(0.0, WRITING))
            break
        if not while_writing and time.monotonic() - start > moment:
            break
        time.sleep(0.005)
    kill_all(pids)


def last_checkpoint_of(directory: Path) -> str:
    path = directory / "last_checkpoint"
    return path.read_text() if path.exists() else ""


def damaged_files(directory: Path) -> list[str]:
    damaged = []
    for path in directory.glob("*.pth"):
        try:
            load_checkpoint_file(str(path))
        except Exception as error:
            damaged.append(f"{path.name}: {error}")
    return damaged


def describe(ended: list[Ended], directory: Path, damaged: list[str]) -> str:
    at = last_checkpoint_of(directory) or "nothing saved yet"
    state = "finished" if all(end.status == 0 for end in ended) else "killed"
    return f"{state}, last checkpoint: {at}" + "".join(f"; DAMAGED {name}" for name in damaged)


def chaos(root: Path, kills: int, processes: int, seconds: float) -> tuple[int, list[Path]]:
    """Kill runs ``kills`` times, each up to ``seconds`` after a start, and let the last one end.

    A run that ended before it was to be killed does not count: the next one begins anew.

    Returns:
        the survived kills, and the folders of the runs, all of them finished.
    """
    rng = random.Random(0)
    tried = survived = 0
    runs = [_new_run(root, 0)]
    while True:
        directory, while_writing = runs[-1], tried % 2 == 1

        during = partial(kill_later, directory, while_writing, seconds, rng)
        if tried == kills:
            during = _let_run
        ended = run_ranks(
            directory, train, directory, number=processes, seconds=TOO_LONG, during=during
        )
        failed = [end.log for end in ended if end.status not in (0, -signal.SIGKILL)]
        damaged = damaged_files(directory)
        finished = all(end.status == 0 for end in ended)
        what = "run" if finished else f"kill {tried + 1} {_MOMENTS[while_writing]}"
        print(f"{what}: {describe(ended, directory, damaged)}", flush=True)
        for log in failed:
            print(log[-2000:], flush=True)
        if finished and tried == kills:
            return survived, runs
        if finished:
            runs.append(_new_run(root, len(runs)))
            continue
        assert tried < kills, "the run did not end, though nobody killed it"
        tried += 1
        survived += not damaged and not failed


_MOMENTS = {True: "while writing", False: "at random"}


def _let_run(pids: list[int]) -> None:
    pass


def _new_run(root: Path, number: int) -> Path:
    path = root / f"killed_{number + 1}"
    path.mkdir(parents=True)
    return path


def same(first: Any, second: Any) -> bool:
    """Whether two checkpoints' entries are equal bit for bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--directory", default="", help="to keep the runs; default: a temporary one"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(args.directory or temporary)
        undisturbed = root / "undisturbed"
        undisturbed.mkdir(parents=True)
        whole = run_ranks(undisturbed, train, undisturbed, number=args.processes, seconds=TOO_LONG)
        assert all(end.status == 0 for end in whole), whole[0].log[-3000:]
        print(f"undisturbed run: {whole[0].seconds:.0f} s, {ITERATIONS} iterations", flush=True)
        survived, runs = chaos(root, args.kills, args.processes, whole[0].seconds / 3)
        expected = load_checkpoint_file(str(undisturbed / "model_final.pth"))
        final = [load_checkpoint_file(str(run / "model_final.pth")) for run in runs]
    entries = ("model", "optimizer", "scheduler", "ema", "iteration", "seed", "sampler")
    different = [
        f"{run.name}: {name}"
        for run, state in zip(runs, final, strict=True)
        for name in entries
        if not same(expected[name], state[name])
    ]
    equal = f"final states of {len(runs)} runs: equal bit for bit"
    print(f"different after all: {different}" if different else equal)
    print(f"survived {survived} / {args.kills} tried")
    sys.exit(bool(different) or survived != args.kills)


if __name__ == "__main__":
    main()
