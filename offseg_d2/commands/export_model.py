"""Write a trained model as a file for other runtimes, and check it against PyTorch.

::

    offseg export --config-file configs/camvid/offseg_t_offset_cpu.yaml \
        --output offseg_t.onnx --opts MODEL.WEIGHTS model_best.pth

The input is (B, 3, H, W) RGB, 0..255; normalisation is in the file, and so are class names and
colours: ``offseg demo --onnx offseg_t.onnx`` needs no configuration. The file is written only if
it computes what the model computes. Exit status 2 after a mistake of the user or a disagreement.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence

from offseg_d2.utils.cli import report_user_errors

FORMATS = ("onnx", "onnx_int8", "torch_export")
INPUT_TYPES = ("float32", "uint8")
OUTPUTS = ("labels", "logits")


def make_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="configuration")
    add("--output", required=True, metavar="FILE", help="file to write (.onnx or .pt2)")
    add("--format", choices=FORMATS, default="onnx", help="default %(default)s")
    add("--predict", choices=OUTPUTS, default="labels", help="output; default %(default)s")
    add("--input-type", choices=INPUT_TYPES, default="float32", help="default %(default)s")
    add("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="default: any multiple")
    add("--batch", type=int, metavar="N", help="images at once; default: any number")
    add("--calibration-dataset", default="", metavar="NAME", help="for onnx_int8")
    add("--calibration-images", type=int, default=32, metavar="N", help="default %(default)s")
    add("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="last argument")
    return parser


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser()
    args = parser.parse_args(arguments)
    if (args.format == "onnx_int8") != bool(args.calibration_dataset):
        parser.error("`--calibration-dataset` must be given with `--format onnx_int8`, only then.")
    return args


def run(args: argparse.Namespace) -> None:
    """Load the model, export it, print how far the file is from it."""
    from detectron2.utils.logger import setup_logger

    from offseg_d2 import export
    from offseg_d2.config import load_config
    from offseg_d2.inference.onnx import OnnxSegmenter
    from offseg_d2.inference.predictor import Predictor

    for name in ("fvcore", "offseg_d2"):
        setup_logger(name=name)
    predictor = Predictor(load_config(args.config_file, args.opts))
    model = predictor.model.cpu()
    options = {"output": args.predict, "input_type": args.input_type, "batch": args.batch}
    options["size"] = tuple(args.size) if args.size else None
    print("writing the graph and running it against PyTorch takes up to minutes", flush=True)
    graph, description = export.prepare_export(model, predictor.cfg, predictor.metadata, **options)
    if args.format == "torch_export":
        print(f"against PyTorch: {export.export_torch(graph, description, args.output)}")
    elif args.format == "onnx":
        print(f"against PyTorch: {export.export_onnx(graph, description, args.output)}")
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "float.onnx")
            print(f"float against PyTorch: {export.export_onnx(graph, description, path)}")
            images = export.calibration_images(
                args.calibration_dataset, args.calibration_images, predictor.read
            )
            segmenter = OnnxSegmenter(path)
            inputs = [batch for image in images for batch in segmenter.network_inputs(image)]
            print(f"int8 against float: {export.quantise(path, args.output, inputs)}")
    print(f"wrote {args.output}")


def main(arguments: Sequence[str] | None = None) -> None:
    report_user_errors(run, parse_args(arguments))
