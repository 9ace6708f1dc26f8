"""A training step and a label map on a pretended GPU: ours against the authors' order.

::

    python benchmarks/simulate_gpu.py [--models offseg_t ...] [--size 512 512] [--batch 2]
        [--classes 150] [--dtype float32] [--output benchmarks/results/simulated_gpu.json]

Nothing is measured: tensors without values go through the whole step, and the operations that a
GPU would be given are counted, see ``offseg_d2.analysis.simulation``. CARAFE is one operation in
both forms, as the authors' own CUDA code has it; their other parts are those of PyTorch.

The shortest possible time of a step is the largest of three: operations times the time to start
one, bytes over the bandwidth of the memory, and multiplications and additions over the peak.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from common import machine, write_json
from detectron2.config import CfgNode
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the step is that of the tests

from authors_order import fusion  # noqa: E402
from authors_order.swap import authors_order  # noqa: E402

from offseg_d2.config import load_config  # noqa: E402
from offseg_d2.layers import carafe  # noqa: E402
from offseg_d2.utils.cli import report_user_errors  # noqa: E402
from tests.simulation.steps import label_maps, training_step  # noqa: E402

MODELS = ("offseg_t", "segformer_b0", "segnext_t", "mask2former_offseg_t")
DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
FORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "authors' order": authors_order,
    "ours": lambda model: model,
}
START = 5e-6  # seconds to start an operation
# GPU -> bytes a second, float32 and 16-bit operations a second, of the makers' data sheets
GPUS = {
    "24 GB (RTX 4090)": (1.008e12, 82.6e12, 165e12),
    "80 GB (A100)": (2.039e12, 19.5e12, 312e12),
    "141 GB (H200)": (4.8e12, 67e12, 989e12),
}


def config(model: str, classes: int, classifier: str) -> CfgNode:
    groups = "mask_query" if model.startswith("mask2former") else "per_pixel"
    options = ["MODEL.DEVICE", "cpu", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", classes]
    options += ["MODEL.SEM_SEG_HEAD.CLASSIFIER", classifier, "SOLVER.PARAM_GROUPS", groups]
    return load_config(str(ROOT / f"configs/base/models/{model}.yaml"), options)


def row(args: argparse.Namespace, model: str, classifier: str, form: str, work: str) -> dict:
    """Counts of one piece of work."""
    cfg, size = config(model, args.classes, classifier), tuple(args.size)
    options: dict[str, Any] = {"convert": FORMS[form]}
    with mock.patch.object(fusion, "carafe", carafe):
        if work == "label map":
            cost = label_maps(cfg, size, **options)
        else:
            dtype = DTYPES[args.dtype]
            cost = training_step(cfg, size, dtype, batch_size=args.batch, **options)
    counts = {
        "operations": cost.kernels.total(),
        "waits": len(cost.waits),
        "bytes": cost.moved,
        "flops": cost.flops,
    }
    least = {name: shortest(counts, gpu, args.dtype) for name, gpu in GPUS.items()}
    names = {"model": model, "classifier": classifier, "work": work, "form": form}
    return {**names, **counts, "least_ms": least}


def shortest(counts: dict[str, int], gpu: tuple[float, float, float], dtype: str) -> float:
    """Milliseconds that a step takes at least."""
    bandwidth, single, half = gpu
    peak = single if dtype == "float32" else half
    times = counts["operations"] * START, counts["bytes"] / bandwidth, counts["flops"] / peak
    return round(1e3 * max(times), 2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="of configs/base/models")
    parser.add_argument("--classifiers", nargs="+", default=["offset"])
    parser.add_argument("--size", nargs=2, type=int, default=[512, 512], help="height and width")
    parser.add_argument("--batch", type=int, default=2, help="images of a training step")
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the training step")
    parser.add_argument("--output", metavar="FILE", help="JSON")
    args = parser.parse_args()
    rows = []
    for model in args.models:
        for classifier in args.classifiers:
            for work in ("training step", "label map"):
                for form in FORMS:
                    rows.append(row(args, model, classifier, form, work))
                    print(rows[-1], flush=True)
    if args.output:
        keys = ("size", "batch", "classes", "dtype")
        settings = {key: getattr(args, key) for key in keys}
        write_json(args.output, {**settings, "rows": rows, "machine": machine()})


if __name__ == "__main__":
    sys.exit(report_user_errors(main))
