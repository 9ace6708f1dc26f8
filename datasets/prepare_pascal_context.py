"""Make the label files of Pascal Context from trainval_merged.json.

::

    python datasets/prepare_pascal_context.py
    python datasets/prepare_pascal_context.py --voc-dir /data/VOCdevkit/VOC2010

Writes VOC2010/SegmentationClassContext/*.png and, where they are missing, the lists
VOC2010/ImageSets/SegmentationContext/{train,val}.txt. Files that are there are left as they are:
interrupt it and run it again at will. ``python -X dev`` shows where an error was noticed.
"""

import argparse
import os

from offseg_d2.data.datasets import datasets_root
from offseg_d2.data.datasets.pascal_context_json import ANNOTATION_FILE, convert_annotations
from offseg_d2.utils.cli import report_user_errors


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--voc-dir",
        default=os.path.join(datasets_root(), "VOCdevkit", "VOC2010"),
        help="the folder VOC2010 (default: %(default)s)",
    )
    parser.add_argument(
        "--annotations",
        help=f"the annotation file (default: {ANNOTATION_FILE} in the folder VOC2010)",
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    annotations = args.annotations or os.path.join(args.voc_dir, ANNOTATION_FILE)
    done = report_user_errors(convert_annotations, annotations, args.voc_dir)
    print(f"{done.written} label files written, {done.skipped} were there already.")
    for path in done.lists:
        print(f"{path} written.")


if __name__ == "__main__":
    main()
