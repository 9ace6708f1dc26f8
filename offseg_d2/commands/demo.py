"""Draw what a model sees: colour overlays of images, videos and cameras.

::

    offseg demo --weights output/demo/model_final.pth --input frames/ film.mp4 \
        --output pictures --draw side-by-side

A checkpoint that this project trained carries its configuration; for others, and to change
something, name it: ``--config-file F ... --opts MODEL.WEIGHTS FILE KEY VALUE``. An exported model
needs none: ``--onnx model.onnx`` (see ``offseg export``); ``--runtime openvino`` runs it by
OpenVINO (see docs/EXPORT.md).

Pictures have the names of their images, and no input is ever overwritten. ``--webcam 0`` shows a
camera in a window, with ``--output DIR`` it is filmed into DIR/webcam.mp4 until Ctrl-C.
Exit status: 0; 1 if some files could not be read (the others are drawn); 2 after a mistake,
reported in one sentence.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from offseg_d2.utils.cli import escape_controls, report_user_errors

if TYPE_CHECKING:
    from offseg_d2.inference.onnx import OnnxSegmenter
    from offseg_d2.inference.predictor import Predictor

RUNTIMES = ("onnxruntime", "openvino")
STYLES = ("overlay", "side-by-side", "label-map")


def make_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--weights", metavar="FILE", help="checkpoint of this project")
    model.add_argument("--config-file", metavar="FILE", help="configuration; weights by --opts")
    model.add_argument("--onnx", metavar="FILE", help="exported model")
    add("--runtime", choices=RUNTIMES, help="of --onnx; default onnxruntime")
    paths, rest = "images, videos, folders of them, quoted patterns", argparse.REMAINDER
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", metavar="PATH", help=paths)
    source.add_argument("--webcam", type=int, metavar="N", help="number of a camera, such as 0")
    add("--output", metavar="DIR", help="folder for the pictures")
    add("--draw", choices=STYLES, default="overlay", help="label-map: palette PNGs of class ids")
    add("--side-by-side", action="store_const", const="side-by-side", dest="draw")
    add("--legend", action="store_true", help="names of the classes below the picture")
    add("--classes", nargs="+", default=[], metavar="NAME", help="draw these classes only")
    add("--opacity", type=float, default=0.5, help="of the colours, 0 to 1 (default %(default)s)")
    add("--batch-size", type=int, default=1, metavar="N", help="images or frames at once")
    add("--max-pixels", type=float, default=200.0, metavar="MILLIONS",
        help="of an image; larger ones are not read (default %(default)g)")  # fmt: skip
    add("--deploy", action="store_true", help="predict with an equivalent faster model (OffSeg)")
    add("--max-frames", type=int, default=0, metavar="N", help="of a camera; 0 means no limit")
    add("--opts", nargs=rest, default=[], metavar="KEY VALUE", help="changes; the last argument")
    return parser


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser()
    args = parser.parse_args(arguments)
    if not 0.0 <= args.opacity <= 1.0:
        parser.error(f"`--opacity` must be in 0..1, but is {args.opacity}.")
    if args.batch_size < 1:
        parser.error(f"`--batch-size` must be at least 1, but is {args.batch_size}.")
    if not 0 < args.max_pixels <= 1000:
        parser.error(f"`--max-pixels` must be in 0..1000, but is {args.max_pixels:g}.")
    for name in ("opts", "deploy"):
        if args.onnx and getattr(args, name):
            parser.error(f"`--{name}` must be absent with `--onnx`, but is {getattr(args, name)}.")
    if args.runtime and not args.onnx:
        parser.error(f"`--runtime` must be absent without `--onnx`, but is {args.runtime}.")
    if args.max_frames < 0:
        parser.error(f"`--max-frames` must be at least 0, but is {args.max_frames}.")
    if args.webcam is not None and args.draw == "label-map":
        parser.error("`--draw` must be overlay or side-by-side for a camera, but is 'label-map'.")
    if args.input and not args.output:
        parser.error("`--output` must name a folder for the pictures of `--input`, but is absent.")
    return args


def load_model(args: argparse.Namespace) -> "Predictor | OnnxSegmenter":
    from offseg_d2.config import load_config
    from offseg_d2.inference.onnx import OnnxSegmenter
    from offseg_d2.inference.predictor import Predictor
    from offseg_d2.inference.segmenter import Segmenter

    if args.onnx:
        return OnnxSegmenter(args.onnx, runtime=args.runtime or "onnxruntime")
    opts = [*args.opts, *(["TEST.DEPLOY", "True"] if args.deploy else [])]
    if args.weights:
        return Segmenter.from_checkpoint(args.weights, opts=opts).predictor
    return Predictor(load_config(args.config_file, opts))


def run(args: argparse.Namespace) -> int:
    """Draw everything; returns the exit status."""
    from detectron2.utils.logger import setup_logger

    from offseg_d2.inference.demo import (
        draw_files,
        draw_video,
        is_video,
        make_folder,
        plan,
        show_camera,
    )
    from offseg_d2.visualization.drawing import DrawOptions

    for name in ("fvcore", "offseg_d2"):
        setup_logger(name=name)
    options = DrawOptions(args.draw, args.opacity, args.legend, tuple(args.classes))
    if args.input:
        plan(args.input, args.output, args.draw)  # mistakes show before the model loads
        model = load_model(args)
        model.read.settings = model.read.settings._replace(max_pixels=round(args.max_pixels * 1e6))
        written, unreadable = draw_files(
            model, args.input, args.output, options, args.batch_size, model.read
        )
        videos = sum(map(is_video, written))
        pictures = len(written) - videos
        counts = [f"{pictures} picture{'s' * (pictures != 1)}"] * bool(pictures or not videos)
        counts += [f"{videos} video{'s' * (videos != 1)}"] * bool(videos)
        print(f"{' and '.join(counts)} {'lies' if len(written) == 1 else 'lie'} in {args.output}")
        for file in unreadable:
            print(f"not drawn: {escape_controls(file.reason)}", file=sys.stderr)
        return 1 if unreadable else 0
    if not args.output:
        show_camera(load_model(args), args.webcam, options)
        return 0
    make_folder(args.output)
    path = os.path.join(args.output, "webcam.mp4")
    limits = {"frames": args.max_frames, "batch_size": args.batch_size}
    print(f"{draw_video(load_model(args), args.webcam, path, options, **limits)} frames")
    return 0


def main(arguments: Sequence[str] | None = None) -> None:
    sys.exit(report_user_errors(run, parse_args(arguments)))
