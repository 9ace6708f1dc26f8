"""Draw what a model sees: colour overlays of images.

::

    python tools/demo.py --config-file configs/camvid/offseg_t_offset_cpu.yaml \
        --input frames/ more/*.jpg --output pictures --side-by-side \
        --opts MODEL.WEIGHTS output/camvid/offseg_t_offset_cpu/model_best.pth

Pictures have the names of their images. Exit status: 0, 1 if some images could not be read (the
others are drawn), 2 after a mistake of the user, which is told in one sentence.
"""

import argparse
import sys

from detectron2.utils.logger import setup_logger

from offseg_d2.cli import report_user_errors
from offseg_d2.config import load_config
from offseg_d2.predictor import Predictor, draw_files, find_images, output_paths


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="configuration")
    parser.add_argument(
        "--input",
        required=True,
        nargs="+",
        metavar="PATH",
        help="images, folders of images, or quoted patterns such as 'frames/*.jpg'",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the pictures")
    parser.add_argument(
        "--side-by-side", action="store_true", help="draw the image beside it, and a legend"
    )
    parser.add_argument(
        "--opacity", type=float, default=0.5, help="of the colours, 0 to 1 (default %(default)s)"
    )
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="changes of the configuration, such as MODEL.WEIGHTS FILE; the last argument",
    )
    args = parser.parse_args()
    if not 0.0 <= args.opacity <= 1.0:
        parser.error(f"`--opacity` must be in 0..1, but is {args.opacity}.")
    return args


def run(args: argparse.Namespace) -> int:
    """Draw all images; returns the exit status."""
    for name in ("fvcore", "offseg_d2"):
        setup_logger(name=name)
    cfg = load_config(args.config_file, args.opts)
    output_paths(find_images(args.input), args.output)  # mistakes show before the model loads
    predictor = Predictor(cfg)
    written, unreadable = draw_files(
        predictor, args.input, args.output, opacity=args.opacity, with_image=args.side_by_side
    )
    lie = "picture lies" if len(written) == 1 else "pictures lie"
    print(f"{len(written)} {lie} in {args.output}")
    for file in unreadable:
        print(f"not drawn: {file.reason}", file=sys.stderr)
    return 1 if unreadable else 0


def main() -> None:
    sys.exit(report_user_errors(run, parse_args()))


if __name__ == "__main__":
    main()
