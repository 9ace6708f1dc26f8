"""Train or evaluate a model.

::

    python tools/train_net.py --config-file configs/camvid/offseg_t_offset_cpu.yaml
    python tools/train_net.py --config-file FILE --resume
    python tools/train_net.py --config-file FILE --eval-only MODEL.WEIGHTS output/.../model_best.pth
    python tools/train_net.py --config-file FILE --num-gpus 8
    torchrun --nproc-per-node 8 tools/train_net.py --config-file FILE
    srun --ntasks-per-node 8 python tools/train_net.py --config-file FILE       (docs/SLURM.md)

The command line is Detectron2's own and that of --eval-only below; pairs of KEY VALUE at its end
change the configuration. Where there is no CUDA the CPU is used. A mistake of the user ends with
one sentence and exit status 2; ``python -X dev`` shows where it was noticed.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

import offseg_d2  # noqa: F401  (first: it silences a warning that Detectron2 causes)

# isort: split
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser

from offseg_d2.checkpoint import last_checkpoint
from offseg_d2.config import ConfigError, load_config
from offseg_d2.distributed.launch import add_launch_arguments, launch, launch_options
from offseg_d2.engine import Trainer, evaluate, setup_run
from offseg_d2.utils.cli import report_user_errors


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = default_argument_parser(epilog=__doc__)
    add_launch_arguments(parser)
    group = parser.add_argument_group("with --eval-only")
    for flag, text in (
        ("--save-predictions", "write predictions as PNGs to DIR/<dataset>, skipping those that "
         "are there (TEST.SEM_SEG.PREDICTION_FORMAT: class_ids, cityscapes, ade20k)"),
        ("--show-dir", "draw ground truth and prediction of each image to DIR/<dataset>"),
    ):  # fmt: skip
        group.add_argument(flag, metavar="DIR", default="", help=text)
    group.add_argument("--deploy", action="store_true", help="faster equivalent of OffSeg")
    return parser.parse_args(arguments)


def read_config(args: argparse.Namespace) -> CfgNode:
    """Configuration of the command line, not frozen; `MODEL.WEIGHTS` is the file to evaluate."""
    cfg = load_config(args.config_file, args.opts)
    if args.num_gpus == 0:
        cfg.MODEL.DEVICE = "cpu"
    cfg.TEST.DEPLOY = cfg.TEST.DEPLOY or args.deploy
    if (args.save_predictions or args.show_dir or args.deploy) and not args.eval_only:
        flags = "`--save-predictions`, `--show-dir` and `--deploy`"
        raise ConfigError(f"{flags} must be used with --eval-only.")
    if args.eval_only and args.resume:
        cfg.MODEL.WEIGHTS = last_checkpoint(cfg.OUTPUT_DIR)
        if not cfg.MODEL.WEIGHTS:
            raise ConfigError(
                "`OUTPUT_DIR` must hold a checkpoint for --eval-only --resume, "
                f"but {cfg.OUTPUT_DIR!r} holds none."
            )
    if args.eval_only and not cfg.MODEL.WEIGHTS:
        raise ConfigError("`MODEL.WEIGHTS` must name the file to evaluate, but is ''.")
    return cfg


def run(cfg: CfgNode, args: argparse.Namespace) -> Any:
    """Train or evaluate, in each process."""
    cfg = setup_run(cfg, args)
    if not args.eval_only:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()
    model = Trainer.build_model(cfg)
    checkpointer = Trainer.build_checkpointer(cfg, model)
    checkpointer.load(cfg.MODEL.WEIGHTS, checkpointables=[], complete=True)
    dirs = {"predictions_dir": args.save_predictions, "pictures_dir": args.show_dir}
    builders = {
        "build_loader": Trainer.build_test_loader,
        "build_evaluator": Trainer.build_evaluator,
    }
    return evaluate(cfg, model, **dirs, **builders)


def main(arguments: Sequence[str] | None = None) -> Any:
    """Results of the last evaluation, where no other processes were started."""
    args = parse_arguments(arguments)
    cfg = report_user_errors(read_config, args)
    how = {"device": cfg.MODEL.DEVICE, **launch_options(args)}
    start = partial(launch, report_user_errors, (run, cfg, args), **how)
    return report_user_errors(start)


if __name__ == "__main__":
    main()
