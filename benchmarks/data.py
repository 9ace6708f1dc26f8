"""Training samples per second: this project's mapper and one as it is usually written, in turn.

::

    python benchmarks/data.py [--seconds 4] [--workers 2] [--cases camvid ...] [--output FILE]

One thread reads, decodes, resizes, crops, flips and distorts frames from the page cache into
tensors. Cases: CamVid (480x360 JPEG, if DETECTRON2_DATASETS holds it), 2048x1024 frames as PNG (as
Cityscapes stores them) and as JPEG, and 2048x1536 photographs resized as ADE20K's are, without and
with ``INPUT.REDUCED_JPEG_DECODING``. The large frames are CamVid's, enlarged, with noise.

The usual mapper stands in ``usual_mapper.py``. Both take turns on the same samples; images per
second are those of the mean time, as the random scale decides what an image costs. With
``--workers`` both are also read through a ``DataLoader``.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from common import machine, write_json
from data_frames import camvid_is_there, write_dataset
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MapDataset
from usual_mapper import UsualMapper

from offseg_d2.analysis import measure_interleaved
from offseg_d2.config import load_config
from offseg_d2.data import build_mapper, build_train_loader
from offseg_d2.data.datasets import ensure_registered
from offseg_d2.data.sampler import sample_rng

CONFIGS = Path(__file__).resolve().parents[1] / "configs/base/datasets"
BATCH, LOADER_BATCHES = 8, 10
# name -> height, width, suffix, configuration whose scale and crop are taken
CASES = {
    "camvid": (360, 480, ".jpg", "camvid.yaml"),
    "cityscapes_png": (1024, 2048, ".png", "cityscapes.yaml"),
    "cityscapes_jpeg": (1024, 2048, ".jpg", "cityscapes.yaml"),
    "photograph": (1536, 2048, ".jpg", "ade20k.yaml"),
    "photograph_reduced": (1536, 2048, ".jpg", "ade20k.yaml"),
}
Mapper = Callable[[dict[str, Any]], dict[str, Any]]


def make_cfg(case: str, folder: Path) -> CfgNode:
    height, width, suffix, config = CASES[case]
    name = "camvid_train"
    if case != "camvid":
        name = write_dataset(folder / case, (height, width), suffix)
        ensure_registered([name])
    options = {
        "DATASETS.TRAIN": (name,),
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 11,
        "MODEL.DEVICE": "cpu",
        "SOLVER.IMS_PER_BATCH": BATCH,
        "INPUT.CROP.ENABLED": True,
        "INPUT.CROP.TYPE": "absolute",
        "INPUT.REDUCED_JPEG_DECODING": case.endswith("reduced"),
        "SEED": 0,
    }
    pairs = [entry for pair in options.items() for entry in pair]
    return load_config(str(CONFIGS / config), pairs)


def run_over(mapper: Mapper, samples: list[dict[str, Any]]) -> Callable[[], Any]:
    """A call that maps the next sample, with random numbers of its own."""
    positions = itertools.count()

    def call() -> Any:
        position = next(positions)
        with sample_rng(0, position):
            return mapper(samples[position % len(samples)])

    return call


def usual_loader(mapper: Mapper, samples: list[dict[str, Any]], workers: int) -> Iterator:
    endless = MapDataset(samples * (2 * BATCH * LOADER_BATCHES // len(samples) + 1), mapper)
    loader = torch.utils.data.DataLoader(
        endless,
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=lambda _: cv2.setNumThreads(0),
    )
    return iter(loader)


def loader_speed(batches: Iterator) -> float:
    """Images per second of a loader; two batches start it."""
    for _ in range(2):
        next(batches)
    begin = time.perf_counter()
    for _ in range(LOADER_BATCHES):
        next(batches)
    return BATCH * LOADER_BATCHES / (time.perf_counter() - begin)


def run_case(case: str, folder: Path, seconds: float, workers: int) -> dict[str, Any]:
    cfg = make_cfg(case, folder)
    ours = build_mapper(cfg, is_train=True)
    samples = DatasetCatalog.get(cfg.DATASETS.TRAIN[0])
    usual = UsualMapper(cfg, *CASES[case][:2], ours.label_lut.values)
    calls = {name: run_over(m, samples) for name, m in (("usual", usual), ("ours", ours))}
    timings = measure_interleaved(calls, seconds=seconds)
    means = {name: float(np.mean(timing.times)) for name, timing in timings.items()}
    row: dict[str, Any] = {
        "case": case,
        "ours": {"images_per_s": round(1 / means["ours"], 2), **timings["ours"].as_dict()},
        "usual": {"images_per_s": round(1 / means["usual"], 2), **timings["usual"].as_dict()},
        "ratio": round(means["usual"] / means["ours"], 2),
    }
    if workers:
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = workers
        speed = {
            "usual": loader_speed(usual_loader(usual, samples, workers)),
            "ours": loader_speed(iter(build_train_loader(cfg))),
        }
        row["loader"] = {name: round(value, 1) for name, value in speed.items()}
        row["loader"]["ratio"] = round(speed["ours"] / speed["usual"], 2)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="of each mapper in each case")
    parser.add_argument("--workers", type=int, default=0, help="of a DataLoader; 0: none is run")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--output", default="", metavar="FILE", help="write the rows as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    cases = [case for case in args.cases if case != "camvid" or camvid_is_there()]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            rows.append(run_case(case, Path(folder), args.seconds, args.workers))
            print(rows[-1], flush=True)
    if args.output:
        write_json(args.output, {**machine(), "opencv": cv2.__version__, "rows": rows})


if __name__ == "__main__":
    main()
