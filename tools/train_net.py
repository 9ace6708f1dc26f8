"""Train or evaluate a model.

::

    python tools/train_net.py --config-file configs/camvid/offseg_t_offset_cpu.yaml
    python tools/train_net.py --config-file FILE --resume
    python tools/train_net.py --config-file FILE --eval-only MODEL.WEIGHTS output/.../model_best.pth

The command line is Detectron2's own; pairs of KEY VALUE at its end change the configuration. Where
there is no CUDA the CPU is used. A mistake of the user ends with one sentence and exit status 2;
``python -X dev`` shows where it was noticed.
"""

import argparse
import sys

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, launch
from torch.multiprocessing import ProcessExitedException

from offseg_d2.checkpoint import last_checkpoint
from offseg_d2.cli import report_user_errors
from offseg_d2.config import ConfigError, load_config
from offseg_d2.engine import Trainer, setup_run


def read_config(args: argparse.Namespace) -> CfgNode:
    """Configuration of the command line, not frozen; `MODEL.WEIGHTS` is the file to evaluate."""
    cfg = load_config(args.config_file, args.opts)
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


def run(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Train or evaluate, in each process."""
    cfg = setup_run(cfg, args)
    if not args.eval_only:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        trainer.train()
        return
    model = Trainer.build_model(cfg)
    checkpointer = Trainer.build_checkpointer(cfg, model)
    checkpointer.load(cfg.MODEL.WEIGHTS, checkpointables=[], complete=True)
    Trainer.test(cfg, model)


def main() -> None:
    args = default_argument_parser(epilog=__doc__).parse_args()
    cfg = report_user_errors(read_config, args)
    try:
        launch(
            report_user_errors,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(run, cfg, args),
        )
    except ProcessExitedException as error:  # one of several processes has reported already
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
