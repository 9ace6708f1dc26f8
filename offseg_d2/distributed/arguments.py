"""Command-line arguments that say how many processes a run has."""

import argparse
from typing import Any


def add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what Detectron2's argument parser lacks."""
    parser.add_argument(
        "--num-processes",
        type=int,
        default=1,
        metavar="N",
        help="with --num-gpus 0: processes on the CPU, which exchange gradients through gloo",
    )


def launch_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of :func:`.launch.launch` from a command line."""
    names = ("num_gpus", "num_processes", "num_machines", "machine_rank", "dist_url")
    return {name: getattr(args, name) for name in names}
