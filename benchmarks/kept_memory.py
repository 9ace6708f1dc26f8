"""What it gains that a process on a CPU keeps freed memory (``offseg_d2.process_memory``).

::

    python benchmarks/kept_memory.py [--calls 20] [--threads 2] [--output FILE]

Training steps (forward, backward, optimizer) of the CamVid recipes on noise, and label maps of a
512x512 image by a deployed model. The setting concerns a process as a whole, so there are two: one
with the C library as it is, one that keeps freed memory, as the command line programs do on a CPU.
They take turns call by call, while the other one sleeps; each begins as often. Page faults are
those of one call: pages that the operating system clears and hands out. Training steps end with
AdamW, whatever the recipe's optimizer.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import machine, write_json
from detectron2.modeling import build_model

import offseg_d2.modeling  # noqa: F401  (registers the models)
from offseg_d2.config import load_config
from offseg_d2.deploy import optimize
from offseg_d2.process_memory import keep_freed_memory, own_settings

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
RECIPES = ("offseg_mobilenetv2", "segformer_b0", "segnext_t")
PREDICTED = "offseg_t"
WAYS = ("usual", "kept")
_WARM_UP = 3  # calls


def training_step(recipe: str) -> Callable[[], Any]:
    """One step of a CamVid recipe, always on the same batch of noise."""
    cfg = load_config(
        str(CONFIGS / "camvid" / f"{recipe}_offset_cpu.yaml"),
        ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""],
    )
    model = build_model(cfg).train()
    size = tuple(cfg.INPUT.CROP.SIZE)
    batch = []
    for _ in range(cfg.SOLVER.IMS_PER_BATCH):
        labels = torch.randint(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, size)
        batch.append(
            {"image": torch.randint(256, (3, *size), dtype=torch.uint8), "sem_seg": labels}
        )
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5)

    def step() -> None:
        optimizer.zero_grad()
        sum(model(batch).values()).backward()
        optimizer.step()

    return step


def label_map(name: str) -> Callable[[], Any]:
    """A label map of a 512x512 image by a deployed model with 150 classes."""
    options = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "TEST.SEM_SEG.MODE", "whole"]
    cfg = load_config(str(CONFIGS / "ade20k" / f"{name}_offset_160k.yaml"), options)
    model = optimize(build_model(cfg).eval())
    image = torch.randint(256, (3, 16, 16), dtype=torch.uint8)
    image = image.repeat_interleave(32, 1).repeat_interleave(32, 2)
    return torch.inference_mode()(lambda: model.predict_label_maps([{"image": image}]))


def work(args: argparse.Namespace) -> None:
    """In a process of its own: a call for each line of the input, told in a line of the output."""
    if args.way == "kept":
        keep_freed_memory()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    call = label_map(args.case) if args.case == PREDICTED else training_step(args.case)
    for _ in sys.stdin:
        before, begin = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        call()
        seconds = time.perf_counter() - begin
        after = resource.getrusage(resource.RUSAGE_SELF)
        faults, peak = after.ru_minflt - before.ru_minflt, after.ru_maxrss // 1024
        print(json.dumps({"seconds": seconds, "faults": faults, "peak_mb": peak}), flush=True)


def measure(args: argparse.Namespace, case: str) -> dict[str, Any]:
    """One row: a process of either way, which take turns call by call.

    ``times_faster`` is the median of the ratios of two calls in succession, ``spread`` their
    quartiles.
    """
    command = [sys.executable, __file__, "--case", case, "--threads", str(args.threads)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = {way: subprocess.Popen([*command, "--way", way], **pipes) for way in WAYS}
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    try:
        for turn in range(_WARM_UP + args.calls):
            for way in WAYS if turn % 2 else reversed(WAYS):
                print(file=workers[way].stdin, flush=True)
                line = workers[way].stdout.readline()
                if not line:
                    sys.exit(f"The process of {case}, {way}, has ended: see above.")
                found[way].append(json.loads(line))
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    row: dict[str, Any] = {"case": case, "predicts": case == PREDICTED}
    for way, calls in found.items():
        row[way] = {
            "seconds": statistics.median(call["seconds"] for call in calls[_WARM_UP:]),
            "faults": statistics.median_low(call["faults"] for call in calls[_WARM_UP:]),
            "peak_mb": calls[-1]["peak_mb"],
        }
    pairs = zip(*([call["seconds"] for call in found[way][_WARM_UP:]] for way in WAYS), strict=True)
    quartiles = statistics.quantiles([usual / kept for usual, kept in pairs], n=4)
    row["times_faster"], row["spread"] = quartiles[1], [quartiles[0], quartiles[2]]
    print(row, flush=True)
    return row


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=20, help="that are timed, of either way")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", default="", help="JSON file to write")
    parser.add_argument("--case", choices=[*RECIPES, PREDICTED], help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.case:
        work(args)
        return
    if own := own_settings():
        sys.exit(f"`{own[0]}` must not be set for this benchmark: it decides what is kept.")
    if not keep_freed_memory():
        sys.exit("The C library of this process cannot be told to keep freed memory.")
    result = {**machine(), "threads": args.threads, "calls": args.calls}
    result["rows"] = [measure(args, case) for case in (*RECIPES, PREDICTED)]
    if args.output:
        write_json(args.output, result)


if __name__ == "__main__":
    main()
