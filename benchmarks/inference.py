"""Time the forms of the models and the models of other libraries, from uint8 images to label maps.

::

    python benchmarks/inference.py [--output FILE]             all groups
    python benchmarks/inference.py --plan                      their commands, to be run one by one
    python benchmarks/inference.py --models offseg_t           forms of these models, a group each
        [--size 512 512] [--batch 1] [--threads 2] [--rounds 9] [--output FILE]
    python benchmarks/inference.py --peers                     one group: other libraries' models

Forms: the authors' order of operations (``authors_order/``), the model as it is built ("eager"),
where it exists ``offseg_d2.deploy.optimize(model)`` ("deployed"), and the model's ONNX file
(``offseg_d2.export``) run by OpenVINO and by onnxruntime in float32. Each runs in a process of its
own. Within a group they take turns, one call each in every round, on the same images; a ratio is
the median over the rounds. Normalisation of the images is included, label maps have their size.
Results are merged into FILE, where they replace those of the same group.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from common import check_group, machine, merge_groups, run_plan
from inference_forms import (
    DEPLOYED,
    EAGER,
    FORMS,
    MODELS,
    ONNXRUNTIME,
    OPENVINO,
    PEER,
    Run,
    boundary_share,
    build_own,
    export_own,
    make_images,
    open_form,
)
from peers import PEERS

from offseg_d2.deploy import has_deployed_form

HOSTS = (
    *("offseg_t", "offseg_b", "offseg_l", "segformer_b0", "segformer_b1", "segformer_b2"),
    *("segnext_t", "segnext_s", "segnext_b", "mask2former_offseg_t", "mask2former_swin_t"),
)
PLAN = [
    *(["--models", name] for name in HOSTS),
    ["--models", "offseg_t", "--batch", "8"],
    ["--models", "offseg_t", "--size", "1024", "2048", "--rounds", "5"],
    ["--peers"],
]
# The project's models beside the peers; the first is what the others are compared with.
BESIDE_PEERS = {
    ("offseg_t", DEPLOYED): "OffSeg-T",
    ("offseg_t", EAGER): "OffSeg-T",
    ("offseg_b", DEPLOYED): "OffSeg-B",
    ("segformer_b0", EAGER): "SegFormer-B0",
    ("segformer_b1", EAGER): "SegFormer-B1",
    ("mask2former_swin_t", EAGER): "Mask2Former Swin-T",
}
KEYS = ("model", "size", "batch", "threads")  # of a group
OWN_ARGUMENTS = ("size", "batch", "rounds")
WARMUP = 2  # rounds that do not count

_run: Run  # of a worker process


def _open(threads: int, form: str, name: str, shape: tuple[int, int, int], path: str) -> None:
    """Prepare a form in a process of its own."""
    global _run
    torch.set_num_threads(threads)
    _run = open_form(form, name, make_images(*shape), path)


def _time() -> float:
    """Milliseconds of one call in that process."""
    begin = time.perf_counter()
    _run()
    return 1000 * (time.perf_counter() - begin)


def _labels() -> np.ndarray:
    return _run()


def measure(
    forms: Sequence[tuple[str, str]], args: argparse.Namespace, onnx_file: str = ""
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Time forms in turn, each in a process of its own.

    Args:
        forms: form and model of each.
        args: with "size", "batch", "threads" and "rounds".
        onnx_file: of the model.

    Returns:
        (forms, rounds) milliseconds, and the label maps (B, H, W) of each.
    """
    spawn, shape = multiprocessing.get_context("spawn"), (args.batch, *args.size)
    with ExitStack() as stack:
        workers = []
        for form, name in forms:
            given = (args.threads, form, name, shape, onnx_file)
            pool = ProcessPoolExecutor(1, spawn, initializer=_open, initargs=given)
            workers.append(stack.enter_context(pool))
        labels = [worker.submit(_labels).result() for worker in workers]
        rounds = [
            [worker.submit(_time).result() for worker in workers]
            for _ in range(WARMUP + args.rounds)
        ]
    return np.array(rounds[WARMUP:]).T, labels


def measure_forms(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Measure all forms of one model."""
    forms = [form for form in FORMS if form != DEPLOYED or has_deployed_form(build_own(name))]
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/{name}.onnx"
        export_own(name, path, make_images(args.batch, *args.size))
        times, labels = measure([(form, name) for form in forms], args, path)
    rows = [
        {
            "form": form,
            **make_row(row, times[0]),
            "label_agreement": float((found == labels[0]).mean()),
        }
        for form, row, found in zip(forms, times, labels, strict=True)
    ]
    runtimes = {package: version(package) for package in ("openvino", "onnxruntime")}
    group = {"model": name, "rows": rows, "runtimes": runtimes}
    group["several_classes_in_4x4"] = round(boundary_share(labels[0]), 3)
    if DEPLOYED in forms:
        by_form = dict(zip(forms, times, strict=True))
        best = min(by_form[OPENVINO], by_form[ONNXRUNTIME], key=np.median)
        gain = float(np.median(best / by_form[DEPLOYED]))
        group["deployed_to_best_runtime"] = round(gain, 2)
    return group


def measure_peers(args: argparse.Namespace) -> dict[str, Any]:
    """The project's models and those of other libraries."""
    peers = [(PEER, name) for name in PEERS]
    times, _ = measure([(form, name) for name, form in BESIDE_PEERS] + peers, args)
    names = [(title, f"offseg_d2, {form}") for (_, form), title in BESIDE_PEERS.items()]
    names += [(name, library) for name, (library, _) in PEERS.items()]
    rows = [
        {"model": model, "library": library, **make_row(row, times[0])}
        for (model, library), row in zip(names, times, strict=True)
    ]
    return {"model": "peers", "rows": sorted(rows, key=lambda row: row["ms"])}


def make_row(times: np.ndarray, baseline: np.ndarray) -> dict[str, Any]:
    """Median and spread of a form's times in milliseconds, compared with the baseline's."""
    p10, median, p90 = (round(float(ms), 1) for ms in np.percentile(times, (10, 50, 90)))
    return {
        "ms": median,
        "p10_ms": p10,
        "p90_ms": p90,
        "rounds": len(times),
        "times_as_fast": round(float(np.median(baseline / times)), 2),
    }


def run_group(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure and print the groups that the arguments name."""
    setting = {"size": list(args.size), "batch": args.batch}
    groups = [{**measure_forms(args, name), **setting, **machine()} for name in args.models]
    if args.peers:
        groups.append({**measure_peers(args), **setting, **machine()})
    for group in groups:
        height, width = group["size"]
        print(
            f"{group['model']}, {group['batch']} x {height}x{width}, {group['threads']} threads; "
            f"deployed to best runtime {group.get('deployed_to_best_runtime')}"
        )
        for row in group["rows"]:
            print("  " + "  ".join(f"{value!s:>14}" for value in row.values()), flush=True)
    return groups


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=[], metavar="NAME")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--plan", action="store_true", help="print the commands of all groups")
    parser.add_argument("--output", default="", metavar="FILE", help="merge the groups into it")
    args = parser.parse_args()
    check_group(parser, args, bool(args.models or args.peers), OWN_ARGUMENTS, (*KEYS, "rows"))
    if not (args.models or args.peers):
        run_plan(__file__, PLAN, args)
        return
    torch.set_num_threads(args.threads)
    groups = run_group(args)
    if args.output:
        merge_groups(args.output, groups, KEYS)


if __name__ == "__main__":
    main()
