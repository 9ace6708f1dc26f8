"""Label maps from logits: block by block, against resizing everything and taking the argmax.

::

    python benchmarks/label_map.py [--seconds 5] [--threads 2] [--output FILE]

Logits of 150 classes at stride 4 of a 512x683 image (128x171) become its label map. Both ways take
turns in each round; reported are medians, and the median of the rounds' ratios. Two layouts:
classes innermost, as the offset classifier gives them, and outermost, as a convolution does. Three
kinds of scores: "regions" (25 regions with smooth borders, as of a trained network), "many regions"
(350 of them) and "noise" (independent numbers, for which no shortcut exists).
"""

import argparse

import torch
import torch.nn.functional as F
from common import machine, write_json
from torch import Tensor

from offseg_d2.analysis import measure_interleaved, speedup
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


def measure(kind: str, layout: str, seconds: float) -> dict:
    """One row: the median of both ways, and the median of the rounds' ratios."""
    logits = make_scores(kind)
    if layout == "innermost":
        logits = logits.to(memory_format=torch.channels_last)
    agreement = float((everything(logits) == blocks(logits)).double().mean())
    calls = {"everything": lambda: everything(logits), "blocks": lambda: blocks(logits)}
    timings = measure_interleaved(calls, seconds=seconds)
    return {
        "scores": kind,
        "classes": layout,
        "everything_ms": round(1000 * timings["everything"].median, 1),
        "blocks_ms": round(1000 * timings["blocks"].median, 1),
        "ratio": round(speedup(timings["everything"], timings["blocks"]), 2),
        "agreement": agreement,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each way in each case")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", default="", metavar="FILE", help="write the rows as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    with torch.inference_mode():
        for kind in (*REGIONS, "noise"):
            for layout in ("innermost", "outermost"):
                rows.append(measure(kind, layout, args.seconds))
                print(rows[-1], flush=True)
    if args.output:
        write_json(args.output, {**machine(), "rows": rows})


if __name__ == "__main__":
    main()
