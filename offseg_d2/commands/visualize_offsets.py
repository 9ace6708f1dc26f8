"""Draw what the offsets of a trained model do to an image.

::

    offseg offsets --config-file configs/camvid/offseg_t_offset_cpu.yaml \
        --input frames/0001.jpg more/*.jpg --class car --output offsets.png \
        --opts MODEL.WEIGHTS output/camvid/offseg_t_offset_cpu/model_final.pth

The picture shows the first image; the class vectors are drawn for all of them. With
``--plain-weights`` its prediction is compared with that of a model that was trained with the plain
classifier, otherwise with the same model whose offsets are set to zero.
"""

import argparse
import sys
from collections.abc import Sequence

from offseg_d2.utils.cli import report_user_errors


def make_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="configuration")
    parser.add_argument("--input", required=True, nargs="+", metavar="PATH", help="images, folders")
    parser.add_argument("--output", required=True, metavar="FILE", help="picture, .png or .jpg")
    parser.add_argument("--class", dest="class_name", metavar="NAME", help="name or number")
    parser.add_argument("--pixel", type=int, nargs=2, metavar=("X", "Y"), help="in the first image")
    parser.add_argument("--plain-weights", metavar="FILE", help="of the plain classifier's model")
    parser.add_argument(
        "--max-pixels",
        type=float,
        default=200.0,
        metavar="MILLIONS",
        help="of an image; larger ones are not read (default %(default)g)",
    )
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="changes of the configuration, such as MODEL.WEIGHTS FILE; the last argument",
    )
    return parser


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser()
    args = parser.parse_args(arguments)
    if not args.output.lower().endswith((".png", ".jpg", ".jpeg")):
        parser.error(f"`--output` must end in .png or .jpg, but is {args.output!r}.")
    return args


def run(args: argparse.Namespace) -> None:
    from detectron2.utils.file_io import PathManager
    from detectron2.utils.logger import setup_logger

    from offseg_d2.config import load_config
    from offseg_d2.inference.offset_views import draw_offset_picture
    from offseg_d2.utils.io import write_picture

    for name in ("fvcore", "offseg_d2"):
        setup_logger(name=name)
    cfg = load_config(args.config_file, args.opts)
    picture = draw_offset_picture(
        cfg,
        args.input,
        class_name=args.class_name,
        pixel=None if args.pixel is None else tuple(args.pixel),
        plain_weights=args.plain_weights,
        max_pixels=round(args.max_pixels * 1e6),
    )
    folder = args.output.rpartition("/")[0]
    if folder:
        PathManager.mkdirs(folder)
    write_picture(args.output, picture)
    print(f"the picture lies in {args.output}")


def main(arguments: Sequence[str] | None = None) -> None:
    sys.exit(report_user_errors(run, parse_args(arguments)))
