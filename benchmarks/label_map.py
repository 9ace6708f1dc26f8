"""From logits to a label map: block by block, against resizing everything and taking the argmax.

::

    python benchmarks/label_map.py [--rounds 30] [--threads 2] [--output FILE]

Logits of 150 classes at stride 4 of a 512x683 image (128x171) become its label map. Both ways take
turns in each round; reported are medians, and the median of the rounds' ratios. Two layouts:
classes innermost, as the offset classifier gives them, and outermost, as a convolution does. Three
kinds of scores: "regions" (25 regions with smooth borders, as of a trained network), "many regions"
(350 of them) and "noise" (independent numbers, for which no shortcut exists).
"""

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from common import machine, write_json
from torch import Tensor

from offseg_d2.layers import bilinear, interpolated_argmax

NUM_CLASSES, MAP_SIZE, IMAGE_SIZE = 150, (128, 171), (512, 683)
REGIONS = {"regions": (5, 5), "many regions": (16, 22)}


def make_scores(kind: str) -> Tensor:
    """(1, K, h, w) logits."""
    torch.manual_seed(0)
    noise = torch.randn(1, NUM_CLASSES, *MAP_SIZE)
    if kind == "noise":
        return noise
    grid = REGIONS[kind]
    winner = torch.randint(NUM_CLASSES, grid)
    seeds = torch.randn(1, NUM_CLASSES, *grid)
    seeds.scatter_(1, winner[None, None], 6.0)
    return F.interpolate(seeds, size=MAP_SIZE, mode="bicubic") + 0.05 * noise


def everything(logits: Tensor) -> Tensor:
    resized = F.interpolate(logits, size=IMAGE_SIZE, mode="bilinear", align_corners=False)
    return resized.argmax(dim=1)[0]


def blocks(logits: Tensor) -> Tensor:
    rows, columns = (
        bilinear(before, after, dtype=logits.dtype, device=logits.device)
        for before, after in zip(MAP_SIZE, IMAGE_SIZE, strict=True)
    )
    return interpolated_argmax(logits[0], rows, columns)


def time_in_turn(calls: list[Callable[[], object]], rounds: int) -> np.ndarray:
    """(calls, rounds, 2) milliseconds, elapsed and of the processor; three rounds warm up."""
    times = np.zeros((len(calls), rounds + 3, 2))
    for number in range(rounds + 3):
        for index, call in enumerate(calls):
            elapsed, processor = time.perf_counter(), time.process_time()
            call()
            times[index, number] = time.perf_counter() - elapsed, time.process_time() - processor
    return 1000 * times[:, 3:]


def measure(kind: str, layout: str, rounds: int) -> dict:
    logits = make_scores(kind)
    if layout == "innermost":
        logits = logits.to(memory_format=torch.channels_last)
    agreement = float((everything(logits) == blocks(logits)).double().mean())
    times = time_in_turn([lambda: everything(logits), lambda: blocks(logits)], rounds)
    (plain, plain_cpu), (ours, ours_cpu) = np.median(times, axis=1)
    ratios = np.median(times[0] / times[1], axis=0)
    return {
        "scores": kind,
        "classes": layout,
        "everything_ms": round(plain, 1),
        "blocks_ms": round(ours, 1),
        "ratio": round(ratios[0], 2),
        "everything_processor_ms": round(plain_cpu, 1),
        "blocks_processor_ms": round(ours_cpu, 1),
        "processor_ratio": round(ratios[1], 2),
        "agreement": agreement,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", default="", metavar="FILE", help="write the rows as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{'scores':13} {'classes':10} {'everything':>12} {'blocks':>10} {'ratio':>6}  processor")
    rows = []
    with torch.inference_mode():
        for kind in (*REGIONS, "noise"):
            for layout in ("innermost", "outermost"):
                row = measure(kind, layout, args.rounds)
                rows.append(row)
                print(
                    f"{kind:13} {layout:10} {row['everything_ms']:9.1f} ms {row['blocks_ms']:7.1f} "
                    f"ms {row['ratio']:6.2f}  {row['everything_processor_ms']:.1f} : "
                    f"{row['blocks_processor_ms']:.1f} ms = {row['processor_ratio']:.2f}"
                    f"   agreement {100 * row['agreement']:.4f} %",
                    flush=True,
                )
    if args.output:
        write_json(args.output, {**machine(), "rounds": args.rounds, "rows": rows})
    else:
        print(json.dumps(machine()))


if __name__ == "__main__":
    main()
