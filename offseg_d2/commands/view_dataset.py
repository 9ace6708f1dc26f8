"""Draw a dataset: ground truth over its images, or the batches that training sees.

::

    offseg view camvid_train --output pictures [--images 0001TP_006690]
    offseg view camvid_train --output pictures --augmented \
        --config-file configs/camvid/offseg_t_offset_cpu.yaml

With ``--augmented`` the samples come from the loader that training uses, cropped and augmented as
the configuration says, but not normalised: one contact sheet for each batch. Exit status: 0, 1 if
some images could not be drawn, 2 after a mistake of the user, reported in one sentence.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from offseg_d2.utils.cli import escape_controls, report_user_errors


def make_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("name", metavar="NAME", help="registered dataset")
    add("--output", required=True, metavar="DIR", help="folder for the pictures")
    add("--images", nargs="+", default=[], metavar="IMAGE", help="ids or file names to draw")
    add("--number", type=int, default=4, metavar="N", help="of images or batches (default 4)")
    add("--seed", type=int, metavar="S", help="of the choice (default 0; of batches: SEED)")
    add("--opacity", type=float, default=0.5, help="of the colours, 0 to 1 (default %(default)s)")
    add("--augmented", action="store_true", help="draw batches of training")
    add("--config-file", metavar="FILE", help="configuration of the training; for --augmented")
    add("--iteration", type=int, default=0, metavar="I", help="that the first batch belongs to")
    add("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE",
        help="changes of the configuration; the last argument")  # fmt: skip
    return parser


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser()
    args = parser.parse_args(arguments)
    if bool(args.config_file) != args.augmented:
        parser.error("`--augmented` and `--config-file` must be given together.")
    if not 0.0 <= args.opacity <= 1.0:
        parser.error(f"`--opacity` must be in 0..1, but is {args.opacity}.")
    if args.number < 1:
        parser.error(f"`--number` must be at least 1, but is {args.number}.")
    return args


def run(args: argparse.Namespace) -> int:
    """Draw; returns the exit status."""
    from detectron2.data import MetadataCatalog
    from detectron2.utils.logger import setup_logger

    from offseg_d2.config import load_config
    from offseg_d2.data import ImageSettings
    from offseg_d2.data.inspection import list_samples, require_registered
    from offseg_d2.utils.io import file_stem, require_writable_folder, write_picture
    from offseg_d2.visualization import dataset

    setup_logger(name="offseg_d2")
    require_registered(args.name)
    require_writable_folder(args.output, "--output")
    metadata = MetadataCatalog.get(args.name)
    prefix, failures = os.path.join(args.output, file_stem(args.name)), []
    if args.augmented:
        cfg = load_config(args.config_file, args.opts)
        batches = dataset.training_batches(cfg, args.name, args.seed, args.iteration)
        prefix += f"_iter{args.iteration}_batch"
        written = [f"{prefix}{index}.png" for index in range(args.number)]
        for path, batch in zip(written, batches, strict=False):
            write_picture(path, dataset.draw_batch(batch, metadata, cfg.INPUT.FORMAT, args.opacity))
    else:
        chosen = dataset.choose_samples(
            list_samples(args.name), args.images, args.number, args.seed or 0
        )
        settings = ImageSettings.from_config(load_config("", args.opts))
        written, failures = dataset.draw_ground_truth(
            chosen, metadata, prefix, args.opacity, settings
        )
    for failure in failures:
        print(f"not drawn: {escape_controls(failure)}", file=sys.stderr)
    lie = "picture lies" if len(written) == 1 else "pictures lie"
    print(f"{len(written)} {lie} in {args.output}")
    return 1 if failures else 0


def main(arguments: Sequence[str] | None = None) -> None:
    sys.exit(report_user_errors(run, parse_args(arguments)))
