"""Angles between class vectors and the pixels of their classes, before and after the offsets.

::

    python benchmarks/misalignment.py output/accuracy/scenes_classes/*both*seed1 \\
        --output benchmarks/results/accuracy/misalignment.json

Takes finished trainings with offsets, such as ``accuracy.py`` leaves them, and measures on the
images and labels of their last configuration's ``DATASETS.TEST``, see
:mod:`offseg_d2.visualization.misalignment`.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import machine, write_json
from detectron2.config import CfgNode
from torch import Tensor

from offseg_d2.config import load_config
from offseg_d2.data import build_test_loader
from offseg_d2.engine.evaluation import build_evaluator
from offseg_d2.inference.predictor import Predictor
from offseg_d2.utils.cli import report_user_errors
from offseg_d2.visualization.misalignment import Misalignment, misalignment
from offseg_d2.visualization.offset_trace import trace_offsets


def angles_of_images(cfg: CfgNode, dataset: str) -> Iterator[Misalignment]:
    """The angles in each image of a data set with labels."""
    model = Predictor(cfg).model
    read_label = build_evaluator(cfg, dataset).read_label
    for (sample,) in build_test_loader(cfg, dataset):
        trace = trace_offsets(model, sample)
        labels = torch.as_tensor(read_label(sample), dtype=torch.float32)[None, None]
        resized = F.interpolate(labels, trace.image_size, mode="nearest-exact")
        yield misalignment(trace, resized[0, 0].to(torch.int64))


def measure(folder: Path) -> dict[str, Any]:
    """The row of a finished training: means over images, by class and in all."""
    weights = str(folder / "model_final.pth")
    cfg = load_config(
        str(folder / "config.yaml"), ["MODEL.WEIGHTS", weights, "DATALOADER.NUM_WORKERS", 0]
    )
    dataset = cfg.DATASETS.TEST[0]
    images = list(angles_of_images(cfg, dataset))
    before, after = (
        torch.stack([getattr(image, name) for image in images]).nanmean(dim=0)
        for name in ("before", "after")
    )
    common = torch.tensor([image.common for image in images]).nanmean()
    return {
        "run": f"{folder.parent.name}/{folder.name}",
        "dataset": dataset,
        "images": len(images),
        "before": _degrees(before),
        "after": _degrees(after),
        "common": None if common.isnan() else round(float(common), 4),
    }


def _degrees(angles: Tensor) -> list[float | None]:
    return [None if angle != angle else round(angle, 2) for angle in angles.tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, help="finished trainings")
    parser.add_argument("--output", required=True, metavar="FILE", help="JSON")
    args = parser.parse_args()
    rows = [measure(folder) for folder in args.folders]
    write_json(args.output, {"rows": rows, "machine": machine()})


if __name__ == "__main__":
    sys.exit(report_user_errors(main))
