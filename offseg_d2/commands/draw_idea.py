"""Draw docs/idea.png (or another file): what offset learning does to toy features in the plane."""

import argparse
from collections.abc import Sequence

from offseg_d2.utils.cli import report_user_errors


def make_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", nargs="?", default="docs/idea.png", help="default %(default)s")
    return parser


def run(args: argparse.Namespace) -> None:
    from offseg_d2.visualization.idea import draw_idea

    draw_idea(args.output)


def main(arguments: Sequence[str] | None = None) -> None:
    report_user_errors(run, make_parser().parse_args(arguments))
