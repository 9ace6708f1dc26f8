"""How fast the models predict: three forms of each in turn, and the models of other libraries.

::

    python benchmarks/inference.py [--output FILE]             all groups, each in its own process
    python benchmarks/inference.py --plan                      their commands, to be run one by one
    python benchmarks/inference.py --models offseg_t           one group: forms of these models
        [--size 512 512] [--batch 1] [--threads 2] [--dtype float32] [--compile] [--output FILE]
    python benchmarks/inference.py --peers                     one group: other libraries' models

A group is what takes turns, one call each in every round, on the same images; a ratio is the
median over the rounds. Results of a group are merged into FILE, where they replace those of the
same group. From a uint8 image, normalisation included,

logits      at the stride at which the head gives them (of a mask-query model: class and mask of
            each query);
label maps  at the image's size.

Forms: the authors' order of operations (``authors_order/``), the model as it is built ("eager"),
and ``offseg_d2.deploy.optimize(model)`` ("deployed"). Weights are random (``inference_forms.py``
tells what that means). Under ``--dtype bfloat16`` the deployed form has its backbone in bfloat16,
all others run under autocast. GMACs count convolutions and matrix products, for all alike; the
share of the GEMM peak is two operations per MAC and second, against the best large matrix product
of the same type on the same threads, the weights packed beforehand or not.
"""

import argparse
from typing import Any

import torch
from common import check_group, machine, merge_groups, run_plan
from inference_forms import (
    AUTHORS,
    DEPLOYED,
    DTYPES,
    EAGER,
    LABEL_MAPS,
    LOGITS,
    MODELS,
    Way,
    build_own,
    count_gmacs,
    in_form,
    largest_difference,
    make_forms,
    make_images,
    open_share,
    to_label_maps,
    to_logits,
)
from peers import PEERS, build_peer, run_peer
from torch import nn

from offseg_d2.analysis import Timing, gemm_peaks, measure_interleaved, speedup

PLAN = [
    ["--models", "offseg_t", "--compile"],
    *(
        ["--models", name]
        for name in (
            *("offseg_b", "offseg_l", "segformer_b0", "segformer_b1", "segnext_t"),
            *("mask2former_offseg_t", "mask2former_swin_t"),
        )
    ),
    ["--models", "offseg_t", "--batch", "8"],
    ["--models", "offseg_t", "--size", "1024", "2048", "--min-repeats", "4"],
    ["--models", "offseg_t", "--dtype", "bfloat16"],
    ["--peers"],
    ["--peers", "--dtype", "bfloat16"],
]
# What stands beside the peers, all deployed; the first is what the others are compared with.
BESIDE_PEERS = {
    "offseg_t": "OffSeg-T",
    "offseg_b": "OffSeg-B",
    "segformer_b0": "SegFormer-B0",
    "segformer_b1": "SegFormer-B1",
    "mask2former_swin_t": "Mask2Former Swin-T",
}
KEYS = ("model", "size", "batch", "dtype", "threads")  # of a group
OWN_ARGUMENTS = ("size", "batch", "dtype", "compile", "min_repeats", "warmup")
OWN, BACKBONE_ALONE = "offseg_d2", "EfficientFormerV2-S1, backbone alone"


def measure_forms(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """All forms of one model, to logits and to label maps."""
    dtype, images = DTYPES[args.dtype], make_images(args.batch, *args.size)
    forms = make_forms(build_own(name), dtype, args.compile)
    ways: dict[tuple[str, str], Way] = {}
    for form, model in forms.items():
        gmacs = None
        for goal, call in ((LOGITS, to_logits), (LABEL_MAPS, to_label_maps)):
            run = in_form(form, dtype, call, model, images)
            gmacs = gmacs or count_gmacs(run)  # nothing is counted between logits and labels
            ways[goal, form] = Way(run, gmacs)
    timings = time_ways({" ".join(key): way for key, way in ways.items()}, args)
    with torch.inference_mode():
        labels = {form: ways[LABEL_MAPS, form].run() for form in (AUTHORS, DEPLOYED)}
        scores = {form: ways[LOGITS, form].run() for form in (AUTHORS, DEPLOYED)}
    rows = []
    for (goal, form), way in ways.items():
        timing, baseline = (timings[f"{goal} {x}"] for x in (form, AUTHORS))
        rows.append(make_row(timing, baseline, way.gmacs, goal=goal, form=form))
    return {
        "model": name,
        "rows": sorted(rows, key=lambda row: row["goal"] == LABEL_MAPS),
        "label_agreement": float((labels[AUTHORS] == labels[DEPLOYED]).double().mean()),
        "largest_logit_difference": largest_difference(*scores.values()),
        "several_classes_in_4x4": round(open_share(labels[AUTHORS]), 3),
    }


def measure_peers(args: argparse.Namespace) -> dict[str, Any]:
    """Label maps of the project's deployed models and of other libraries'."""
    dtype, images = DTYPES[args.dtype], make_images(args.batch, *args.size)
    ways: dict[tuple[str, str], Way] = {}

    def add(name: str, library: str, form: str, *call: Any) -> None:
        run = in_form(form, dtype, *call)
        ways[name, library] = Way(run, count_gmacs(run))

    for name, title in BESIDE_PEERS.items():
        forms = make_forms(build_own(name), dtype)
        add(title, f"{OWN}, deployed", DEPLOYED, to_label_maps, forms[DEPLOYED], images)
        if name == "offseg_t":
            add(title, f"{OWN}, eager", EAGER, to_label_maps, forms[EAGER], images)
            backbone = forms[DEPLOYED]
            add(BACKBONE_ALONE, f"{OWN}, deployed", DEPLOYED, run_backbone, backbone, images)
    for name in PEERS:
        peer = build_peer(name, (args.size[0], args.size[1]))
        add(name, peer.library, "peer", run_peer, peer, images)
    timings = time_ways({" | ".join(key): way for key, way in ways.items()}, args)
    baseline = next(iter(timings.values()))
    rows = [
        make_row(timing, baseline, way.gmacs, model=name, library=library)
        for ((name, library), way), timing in zip(ways.items(), timings.values(), strict=True)
    ]
    return {"model": "peers", "rows": sorted(rows, key=lambda row: row["ms"])}


def run_backbone(model: nn.Module, images: torch.Tensor) -> Any:
    """(B, 3, H, W) uint8 -> features of all levels."""
    return model.backbone(torch.stack([model.normalise(image) for image in images]))


def time_ways(ways: dict[str, Way], args: argparse.Namespace) -> dict[str, Timing]:
    """Time all of them in turn."""
    with torch.inference_mode():
        return measure_interleaved(
            {name: way.run for name, way in ways.items()},
            seconds=args.seconds / len(ways),
            warmup=args.warmup,
            min_repeats=args.min_repeats,
        )


def make_row(timing: Timing, baseline: Timing, gmacs: float | None, **names: str) -> dict[str, Any]:
    """What is written of one way, but for its share of the GEMM peak."""
    return {
        **names,
        "ms": round(1000 * timing.median, 1),
        "p10_ms": round(1000 * timing.p10, 1),
        "p90_ms": round(1000 * timing.p90, 1),
        "rounds": timing.repeats,
        "times_as_fast": round(speedup(baseline, timing), 2),
        "gmacs": None if gmacs is None else round(gmacs, 2),
    }


def add_peak(group: dict[str, Any], peaks: dict[str, float]) -> None:
    """Write down the GEMM peak, which way reaches it, and each row's share of it.

    Args:
        group: completed.
        peaks: operations per second of each way of multiplying large matrices.
    """
    way, peak = max(peaks.items(), key=lambda item: item[1])
    group["gemm_gflops"], group["gemm_way"] = round(peak / 1e9, 1), way
    for row in group["rows"]:
        gmacs = row["gmacs"]
        share = None if gmacs is None else round(2e12 * gmacs / row["ms"] / peak, 3)
        row["share_of_gemm_peak"] = share


def run_group(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure what the arguments name, in this process; prints each group."""
    dtype = DTYPES[args.dtype]
    setting = {"size": list(args.size), "batch": args.batch, "dtype": args.dtype, **machine()}
    peaks = gemm_peaks(dtype)
    groups = [{**measure_forms(args, name), **setting} for name in args.models]
    if args.peers:
        groups.append({**measure_peers(args), **setting})
    again = gemm_peaks(dtype)  # a disturbance of the one does not hit the other
    peaks = {way: max(peaks[way], again[way]) for way in peaks}
    for group in groups:
        add_peak(group, peaks)
    for group in groups:
        print_group(group)
    return groups


def print_group(group: dict[str, Any]) -> None:
    height, width = group["size"]
    print(
        f"{group['model']}, {group['batch']} x {height}x{width}, {group['dtype']}, "
        f"{group['threads']} threads, GEMM peak {group['gemm_gflops']} GFLOP/s "
        f"by {group['gemm_way']}"
    )
    for row in group["rows"]:
        names = [row[key] for key in ("goal", "form", "model", "library") if key in row]
        share = row["share_of_gemm_peak"]
        print(
            f"  {names[0]:38}{names[1]:36}{row['ms']:9.1f} ms ({row['p10_ms']}-{row['p90_ms']}, "
            f"{row['rounds']}x) {row['times_as_fast']:6.2f}x  {row['gmacs'] or 0:7.2f} GMAC  "
            f"{'' if share is None else f'{100 * share:.0f} % of peak'}"
        )
    for key in ("label_agreement", "largest_logit_difference", "several_classes_in_4x4"):
        if key in group:
            print(f"  {key}: {group[key]:.6g}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=[], metavar="NAME")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32")
    parser.add_argument("--compile", action="store_true", help="a fourth form, torch.compile")
    parser.add_argument("--seconds", type=float, default=60.0, help="of timed calls of a group")
    parser.add_argument("--min-repeats", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1, help="rounds that do not count")
    parser.add_argument("--plan", action="store_true", help="print the commands of all groups")
    parser.add_argument("--output", default="", metavar="FILE", help="merge the groups into it")
    args = parser.parse_args()
    check_group(parser, args, bool(args.models or args.peers), OWN_ARGUMENTS, (*KEYS, "rows"))
    if args.compile and not args.models:
        parser.error("`--compile` must stand with `--models`: the peers are not compiled.")
    torch.set_num_threads(args.threads)
    if args.models or args.peers:
        groups = run_group(args)
        if args.output:
            merge_groups(args.output, groups, KEYS)
        return
    run_plan(__file__, PLAN, args)


if __name__ == "__main__":
    main()
