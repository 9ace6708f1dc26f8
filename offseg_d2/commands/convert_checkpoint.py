"""Convert a checkpoint of another project to offseg_d2's names.

::

    offseg convert segformer_b0.pth out.pth
    offseg convert mit_b0.pth out.safetensors --config-file FILE
    offseg convert IN OUT --config-file FILE --reset-classifier KEY VALUE ...

IN is any file that `MODEL.WEIGHTS` takes: a released checkpoint of the authors, ImageNet weights of
a backbone, SegFormer or Mask2Former of Hugging Face, Mask2Former of facebookresearch, or one of our
own. With a configuration, names and shapes are
compared with its model. OUT ends with .pth (loads with ``weights_only=True``) or .safetensors.
A mistake of the user ends with one sentence and exit status 2.
"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from offseg_d2.utils.cli import report_user_errors

if TYPE_CHECKING:
    from torch import Tensor


def write_weights(path: str, state_dict: "dict[str, Tensor]") -> None:
    """Write tensors by name; ``path`` is complete or as it was."""
    import torch
    from safetensors.torch import save

    from offseg_d2.utils.io import write_atomically

    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in state_dict.items()}
    if path.endswith(".safetensors"):
        write_atomically(path, lambda file: file.write(save(tensors)))
    else:
        write_atomically(path, lambda file: torch.save({"model": tensors}, file))


def run(args: argparse.Namespace) -> None:
    """Convert, report, write."""
    if not args.output.endswith((".pth", ".safetensors")):
        raise ValueError(f"OUT must end with .pth or .safetensors, but is {args.output!r}.")
    if args.opts and not args.config_file:
        raise ValueError(f"KEY VALUE pairs need --config-file, but are {args.opts} without it.")
    import torch
    from detectron2.modeling import build_model

    import offseg_d2.modeling  # noqa: F401  (registers the models)
    from offseg_d2.checkpoint import convert_file
    from offseg_d2.config import load_config

    model_state, resize = None, False
    if args.config_file:
        cfg = load_config(args.config_file, [*args.opts, "MODEL.DEVICE", "meta"])
        with torch.device("meta"):
            model_state = build_model(cfg).state_dict()
        resize = cfg.MODEL.EFFICIENTFORMER_V2.RESIZE_ATTENTION_BIASES
    conversion = convert_file(
        args.input,
        model_state,
        resize_attention_biases=resize,
        reset_classifier=args.reset_classifier,
    )
    write_weights(args.output, conversion.state_dict)
    print(conversion.report())
    print(f"Wrote {args.output}")


def make_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", metavar="IN", help="file to convert")
    parser.add_argument("output", metavar="OUT", help="file to write, .pth or .safetensors")
    parser.add_argument("--config-file", default="", help="configuration of the model")
    parser.add_argument(
        "--reset-classifier",
        action="store_true",
        help="leave out what depends on the classes, for a model with other ones",
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="changes to the configuration")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    report_user_errors(run, make_parser().parse_intermixed_args(arguments))
