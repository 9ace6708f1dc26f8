"""Draw loss and mIoU curves of several training runs together.

::

    offseg plot-runs output/camvid/offseg_t_offset_cpu output/camvid/offseg_t_plain_cpu
    offseg plot-runs output/accuracy/camvid_offseg --output output/curves

A folder is that of a run (it holds a metrics.json), or holds folders of runs. Runs whose names
differ in the seed alone (plain_seed1, plain_seed2) are drawn as their mean and their range. Written
are a picture, OUTPUT.png, and a page with the picture and a table, OUTPUT.html.
"""

import argparse
import os
from collections.abc import Sequence

from offseg_d2.utils.cli import report_user_errors


def make_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", metavar="DIR", help="of runs")
    parser.add_argument(
        "--output",
        default="output/curves",
        help="what to write, without ending (default: %(default)s)",
    )
    return parser


def run(args: argparse.Namespace) -> None:
    from offseg_d2.utils.io import write_atomically
    from offseg_d2.visualization.curves import draw_runs, group_runs, read_runs, render_page, to_png

    groups = group_runs(read_runs(args.folders))
    picture = to_png(draw_runs(groups))
    page = render_page(groups, picture).encode()
    os.makedirs(os.path.dirname(os.path.abspath(args.output)), exist_ok=True)
    for path, content in ((f"{args.output}.png", picture), (f"{args.output}.html", page)):
        write_atomically(path, lambda file, content=content: file.write(content))
        print(f"wrote {path}")


def main(arguments: Sequence[str] | None = None) -> None:
    report_user_errors(run, make_parser().parse_args(arguments))
