"""Analyse models: parameters, multiply-accumulates, time, memory, and where they go.

::

    offseg analyze --config-file configs/ade20k/offseg_t_offset_160k.yaml \
        --tasks parameters macs fvcore latency memory profile --size 512 512 --threads 2

Several --config-file are compared. Weights are random unless MODEL.WEIGHTS is given among the KEY
VALUE pairs at the end; no dataset is needed. Time goes to label maps of random images, whose
regions cost more than those of a trained model.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from offseg_d2.utils.cli import report_user_errors

TASKS = ("parameters", "macs", "fvcore", "latency", "memory", "profile")
DTYPES = ("float32", "bfloat16", "float16")


def make_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", required=True, action="append", metavar="FILE", help="may be repeated")
    add("--tasks", nargs="+", default=["parameters", "macs"], help=", ".join(TASKS))
    add("--size", nargs=2, type=int, default=(512, 512), metavar=("H", "W"), help="of the images")
    add("--batch", type=int, default=1, help="images at once (MACs are those of one)")
    add("--threads", type=int, help="of PyTorch (default: as it chooses)")
    add("--dtype", default="float32", choices=DTYPES, help="half types: mixed precision")
    add("--device", default="cpu", help="cpu or cuda")
    add("--depth", type=int, default=1, help="how deep parts are divided")
    add("--seconds", type=float, default=5.0, help="of each measurement of time")
    add("--deploy", action="store_true", help="also the form of offseg_d2.deploy.optimize")
    add("--output", metavar="FILE", help="write the results as JSON")
    add("opts", nargs="*", metavar="KEY VALUE", help="changes of the configurations")
    return parser


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    args = make_parser().parse_args(arguments)
    # --tasks takes all that follows; a key has dots, a task none
    split = next((i for i, task in enumerate(args.tasks) if "." in task), len(args.tasks))
    args.tasks, args.opts = args.tasks[:split], [*args.tasks[split:], *args.opts]
    return args


def run(args: argparse.Namespace) -> None:
    import torch

    from offseg_d2 import analysis
    from offseg_d2.config import load_config
    from offseg_d2.utils.io import write_atomically

    analysis.check_tasks(args.tasks)
    args.threads = torch.get_num_threads() if args.threads is None else args.threads
    if args.threads < 1:
        raise ValueError(f"`--threads` must be positive, but is {args.threads}.")
    torch.set_num_threads(args.threads)
    opts = ["MODEL.DEVICE", args.device, "MODEL.WEIGHTS", "", *args.opts]
    settings = {name: getattr(args, name) for name in ("dtype", "deploy", "seconds", "depth")}
    settings["inputs"] = analysis.InputSpec(*args.size, args.batch)
    subjects = []
    for path in map(Path, args.config_file):  # a run's own config.yaml is named by its folder
        name = path.stem if path.stem != "config" else path.resolve().parent.name
        subjects.append(analysis.Subject(name, load_config(str(path), opts), **settings))
    results = analysis.analyze(subjects, args.tasks)
    print(analysis.format_results(results))
    if args.output:
        setting = {**vars(args), "machine": analysis.machine()}
        text = json.dumps({"setting": setting, **results}, indent=1)
        write_atomically(args.output, text.encode())


def main(arguments: Sequence[str] | None = None) -> None:
    report_user_errors(run, parse_args(arguments))
