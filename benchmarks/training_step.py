"""Time and memory of a training step, against the authors' order of operations.

::

    python benchmarks/training_step.py [--config-file FILE ...] [--output FILE]

Forward and backward pass of one batch, in three forms of the same model with the same weights:

baseline  the authors' order of operations (``authors_order``), every layer a module of its own,
          logits resized to the image before the cross-entropy;
ours      the model as it is trained;
frugal    the same with `MODEL.BACKBONE.ACTIVATION_CHECKPOINTING`: the blocks are computed
          again in the backward pass.

Times are taken in turn in one process; reported is the fastest, as other load on the machine only
adds to it. Peak memory is that of a process for each form, as the operating system reports it, the
median of several processes (what the allocator cannot use again differs from one to the next);
`libraries` is what such a process takes before the first step. The optimizer's step is the same in
all forms and is not counted.
"""

import argparse
import copy
import json
import os
import statistics
import sys
import time

import torch
from authors_order import authors_order
from common import in_new_process, machine, peak_memory, write_json
from detectron2.modeling import build_model
from detectron2.structures import Instances
from detectron2.utils.file_io import PathManager
from torch import nn

import offseg_d2.modeling  # noqa: F401  (registers the models)
from offseg_d2.config import load_config
from offseg_d2.engine import checkpoint_activations

MODELS = os.path.join(os.path.dirname(__file__), "..", "configs", "base", "models")
DEFAULT = ("offseg_t", "segformer_b0", "segnext_t", "mask2former_offseg_t")
NUM_CLASSES = 150
FORMS = ("baseline", "ours", "frugal")
MEGABYTE = 2**20


def in_form(model: nn.Module, form: str) -> nn.Module:
    """The model itself or a copy in another form, in training mode."""
    if form == "baseline":
        model = authors_order(model)
    if form == "frugal":
        model = copy.deepcopy(model)
        if not checkpoint_activations(model.backbone):
            sys.exit(f"The blocks of the backbone {type(model.backbone).__name__} are not known.")
    return model.train()


def build(config_file: str) -> nn.Module:
    options = ["MODEL.DEVICE", "cpu", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", NUM_CLASSES]
    torch.manual_seed(0)
    return build_model(load_config(config_file, options))


def make_batch(batch: int, size: int) -> list[dict]:
    """Noise images, blocks of 32 x 32 pixels of one class each."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(batch):
        image = torch.randint(0, 256, (3, size, size), generator=generator, dtype=torch.uint8)
        blocks = torch.randint(0, NUM_CLASSES, (size // 32 + 1,) * 2, generator=generator)
        labels = blocks.repeat_interleave(32, 0).repeat_interleave(32, 1)[:size, :size]
        classes = labels.unique()[:20]
        masks = labels == classes[:, None, None]
        instances = Instances((size, size), gt_classes=classes, gt_masks=masks)
        samples.append({"image": image, "sem_seg": labels, "instances": instances})
    return samples


def step(model: nn.Module, samples: list[dict]) -> tuple[float, float]:
    """Seconds and loss of one forward and backward pass."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)  # dropped paths and random points
    start = time.perf_counter()
    loss = sum(model(samples).values())
    loss.backward()
    return time.perf_counter() - start, loss.item()


def memory(form: str, config_file: str, batch: int, size: int, threads: int) -> tuple[int, int]:
    """Bytes before the first step and at the peak, for a process that takes two steps."""
    torch.set_num_threads(threads)
    model, samples = build(config_file), make_batch(batch, size)
    model, before = in_form(model, form), peak_memory()
    for _ in range(2):
        step(model, samples)
    return before, peak_memory()


def median_memory(form: str, args: argparse.Namespace, config_file: str) -> dict[str, int]:
    """MB of :func:`memory`, the median of several processes."""
    options = (form, config_file, args.batch, args.size, args.threads)
    found = [in_new_process(memory, *options) for _ in range(args.processes)]
    before, peak = (statistics.median_low(values) for values in zip(*found, strict=True))
    return {"libraries_mb": before // MEGABYTE, "peak_mb": peak // MEGABYTE}


def measure(args: argparse.Namespace, config_file: str) -> dict:
    """One row of the result: seconds, memory and gradients of each form."""
    peaks = {form: median_memory(form, args, config_file) for form in FORMS}
    model, samples = build(config_file), make_batch(args.batch, args.size)
    models = {form: in_form(model, form) for form in FORMS}
    losses = {form: step(models[form], samples)[1] for form in FORMS}  # also the warm-up
    gradients = {form: [p.grad.clone() for p in models[form].parameters()] for form in FORMS}
    times = {form: [] for form in FORMS}
    for _ in range(args.rounds):
        for form in FORMS:
            times[form].append(step(models[form], samples)[0])
    name = os.path.splitext(os.path.basename(config_file))[0]
    row = {"model": name, "batch": args.batch, "size": args.size, "classes": NUM_CLASSES}
    for form in FORMS:
        seconds = round(min(times[form]), 3)
        row[form] = {"seconds": seconds, **peaks[form], "loss": losses[form]}
        if form != "baseline":
            row[form] |= compare(row["baseline"], row[form])
            pairs = zip(gradients["baseline"], gradients[form], strict=True)
            apart = torch.stack([(a - b).norm() / a.norm().clamp_min(1e-12) for a, b in pairs])
            row[form]["median_relative_gradient_difference"] = float(apart.median())
    return row


def compare(base: dict, ours: dict) -> dict[str, float]:
    beyond = [form["peak_mb"] - form["libraries_mb"] for form in (ours, base)]
    return {
        "times_faster": round(base["seconds"] / ours["seconds"], 2),
        "memory_ratio": round(ours["peak_mb"] / base["peak_mb"], 3),
        "memory_ratio_beyond_libraries": round(beyond[0] / beyond[1], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    defaults = [os.path.normpath(os.path.join(MODELS, f"{name}.yaml")) for name in DEFAULT]
    parser.add_argument("--config-file", nargs="+", default=defaults, metavar="FILE")
    parser.add_argument("--batch", type=int, default=2, help="images")
    parser.add_argument("--size", type=int, default=512, help="side of the images in pixels")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="measured steps of each form")
    parser.add_argument(
        "--processes", type=int, default=3, help="that measure memory, of each form"
    )
    parser.add_argument("--output", default="", metavar="FILE", help="add the rows to this JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    if args.output and PathManager.isfile(args.output):
        with PathManager.open(args.output) as file:
            rows = json.load(file)["rows"]
    for config_file in args.config_file:
        row = measure(args, config_file)
        print(row, flush=True)
        same = ("model", "batch", "size")
        rows = [old for old in rows if any(old[key] != row[key] for key in same)] + [row]
        if args.output:
            write_json(args.output, {**machine(), "rows": rows})


if __name__ == "__main__":
    main()
