"""Train or evaluate a model.

::

    offseg train --config-file camvid/offseg_t_offset_cpu
    offseg train --config-file FILE --resume
    offseg train --config-file FILE --eval-only MODEL.WEIGHTS output/.../model_best.pth
    offseg train --config-file FILE --num-gpus 8
    torchrun --nproc-per-node 8 -m offseg_d2 train --config-file FILE
    srun --ntasks-per-node 8 offseg train --config-file FILE                    (docs/SLURM.md)

The options are Detectron2's own and those of --eval-only below; pairs of KEY VALUE at the end
change the configuration. Where there is no CUDA the CPU is used. A mistake of the user ends with
one sentence and exit status 2; ``python -X dev`` shows where it was noticed.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from offseg_d2.utils.cli import report_user_errors

if TYPE_CHECKING:
    from detectron2.config import CfgNode

PROCESSES = ("num_gpus", "num_processes", "num_machines", "machine_rank", "dist_url")


def make_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", default="", metavar="FILE", help="path, or a name as in configs/")
    add("--resume", action="store_true", help="continue the run in OUTPUT_DIR, if there is one")
    add("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS")
    add("--num-gpus", type=int, default=1, metavar="N", help="of this machine; 0 takes the CPU")
    add("--num-processes", type=int, default=1, metavar="N",
        help="with --num-gpus 0: processes on the CPU, connected by gloo")  # fmt: skip
    add("--num-machines", type=int, default=1, metavar="N", help="that this is started on by hand")
    add("--machine-rank", type=int, default=0, metavar="I", help="number of this machine, from 0")
    add("--dist-url", default="auto", metavar="URL", help="tcp://HOST:PORT of machine 0")
    group = parser.add_argument_group("with --eval-only")
    for flag, text in (
        ("--save-predictions", "write predictions as PNGs to DIR/<dataset>, skipping those that "
         "are there (TEST.SEM_SEG.PREDICTION_FORMAT: class_ids, cityscapes, ade20k)"),
        ("--show-dir", "draw ground truth and prediction of each image to DIR/<dataset>"),
    ):  # fmt: skip
        group.add_argument(flag, metavar="DIR", default="", help=text)
    group.add_argument("--deploy", action="store_true", help="faster equivalent of OffSeg")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes; after all else")
    return parser


def run(args: argparse.Namespace) -> Any:
    """Train or evaluate; returns the results of the last evaluation."""
    from offseg_d2.config import ConfigError
    from offseg_d2.engine import Trainer, train

    processes = {name: getattr(args, name) for name in PROCESSES}
    if args.eval_only:
        return start_evaluation(args, processes)
    if args.save_predictions or args.show_dir or args.deploy:
        flags = "`--save-predictions`, `--show-dir` and `--deploy`"
        raise ConfigError(f"{flags} must be used with --eval-only.")
    options = {"resume": args.resume, "trainer": Trainer, **processes}
    return train(args.config_file, args.opts, **options).results


def start_evaluation(args: argparse.Namespace, processes: dict[str, Any]) -> Any:
    from offseg_d2.checkpoint import last_checkpoint
    from offseg_d2.config import ConfigError, load_config
    from offseg_d2.distributed.launch import launch

    cfg = load_config(args.config_file, args.opts)
    if args.num_gpus == 0:
        cfg.MODEL.DEVICE = "cpu"
    cfg.TEST.DEPLOY = cfg.TEST.DEPLOY or args.deploy
    if args.resume:
        cfg.MODEL.WEIGHTS = last_checkpoint(cfg.OUTPUT_DIR)
        if not cfg.MODEL.WEIGHTS:
            raise ConfigError(
                "`OUTPUT_DIR` must hold a checkpoint for --eval-only --resume, "
                f"but {cfg.OUTPUT_DIR!r} holds none."
            )
    if not cfg.MODEL.WEIGHTS:
        raise ConfigError("`MODEL.WEIGHTS` must name the file to evaluate, but is ''.")
    how = {"device": cfg.MODEL.DEVICE, **processes}
    return launch(report_user_errors, (evaluate_weights, cfg, args), **how)


def evaluate_weights(cfg: "CfgNode", args: argparse.Namespace) -> Any:
    """Evaluate, in each process."""
    from offseg_d2.engine import Trainer, evaluate, setup_run

    cfg = setup_run(cfg, args)
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
    args = make_parser().parse_args(arguments)
    return report_user_errors(partial(run, args))
