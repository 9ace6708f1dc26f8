"""Check the files of datasets: every image and label map is read, every fault is reported.

::

    offseg check camvid_train camvid_val camvid_test
    offseg check camvid_train --output checked --json checked/report.json

Finds missing, empty, truncated and unreadable files, label maps of a wrong format, size or with ids
that the dataset does not know, images that EXIF turns away from their label maps, names that occur
twice, and more; counts the classes. For a folder:ROOT:SPLIT without classes.json it prints the one
that the label files suggest. Exit status: 0 if all is well, 1 if there are faults, 2 after a
mistake of the user, which is reported in one sentence.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from offseg_d2.utils.cli import report_user_errors


def make_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="registered datasets")
    parser.add_argument("--output", metavar="DIR", help="folder for pictures of class frequencies")
    parser.add_argument("--json", metavar="FILE", help="write all that is found there")
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        help="processes that read; 0 reads in this one (default: one per processor, %(default)s)",
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="print at most N faults of a kind (default: all)"
    )
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="how images are read, such as INPUT.MAX_VALUE_16_BIT 4095; the last argument",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Check and report; returns the exit status."""
    from detectron2.utils.logger import setup_logger

    from offseg_d2.config import load_config
    from offseg_d2.data import ImageSettings
    from offseg_d2.data.inspection import (
        check_datasets,
        format_json,
        format_report,
        plot_classes,
        propose_class_file,
    )
    from offseg_d2.utils.io import file_stem, require_writable_folder, write_atomically

    setup_logger(name="offseg_d2")
    if args.output:
        require_writable_folder(args.output, "--output")
    if args.json:
        require_writable_folder(os.path.dirname(args.json) or ".", "--json")
    proposals = {text for name in args.names if (text := propose_class_file(name))}
    if proposals:
        print(*sorted(proposals), sep="\n\n")
        return 1
    settings = ImageSettings.from_config(load_config("", args.opts))
    reports = check_datasets(args.names, args.workers, settings)
    for report in reports:
        print(format_report(report, args.limit), end="\n\n")
        if args.output:
            path = os.path.join(args.output, f"{file_stem(report.name)}_classes.png")
            write_atomically(path, plot_classes(report))
            print(f"Class frequencies: {path}\n")
    if args.json:
        write_atomically(args.json, format_json(reports).encode())
    return 0 if all(report.is_clean for report in reports) else 1


def main(arguments: Sequence[str] | None = None) -> None:
    sys.exit(report_user_errors(run, make_parser().parse_args(arguments)))
