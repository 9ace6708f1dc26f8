"""Draw mIoU against multiply-accumulates or latency, for the models of some files.

::

    offseg plot-tradeoff --rows paper mine.csv --dataset ade20k --output tradeoff.png
    offseg plot-tradeoff --rows measured.json --x latency_ms --output latency.png

A file is JSON (a list of objects, or an object with the list as "rows") or CSV with a header, with
"model", "miou" and the axis; "family" joins models by a line. "paper" stands for the numbers of the
OffSeg paper, which come from counters that differ between families.
"""

import argparse
from collections.abc import Sequence

from offseg_d2.utils.cli import report_user_errors

PAPER = "paper"
AXES = ("macs_g", "latency_ms", "parameters_m")


def make_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rows", nargs="+", default=["paper"], metavar="FILE", help='files, or "paper" (default)')
    add("--x", default="macs_g", metavar="COLUMN", help=f"such as {', '.join(AXES)} (%(default)s)")
    add("--dataset", default="", help="only rows of this one, such as ade20k; needed of several")
    add("--title", help="above the picture; by default the dataset")
    add("--output", required=True, metavar="FILE.png", help="the picture")
    return parser


def _title(args: argparse.Namespace, rows: list[dict]) -> str:
    dataset = args.dataset or next((row["dataset"] for row in rows if row.get("dataset")), "")
    source = ", numbers of the paper (counters differ between families)"
    return f"{dataset}{source * (PAPER in args.rows)}".removeprefix(", ")


def run(args: argparse.Namespace) -> None:
    from offseg_d2.analysis.tradeoff import plot_tradeoff, read_rows, select_rows
    from offseg_d2.utils.io import write_atomically

    rows = select_rows([row for file in args.rows for row in read_rows(file)], args.x, args.dataset)
    title = args.title if args.title is not None else _title(args, rows)
    picture = plot_tradeoff(rows, args.x, title)
    write_atomically(args.output, picture)
    print(f"{len(rows)} models: {args.output}")


def main(arguments: Sequence[str] | None = None) -> None:
    report_user_errors(run, make_parser().parse_args(arguments))
