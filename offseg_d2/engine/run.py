"""A training in one call: what ``offseg train`` does, for programs and notebooks.

::

    run = offseg_d2.train("camvid/offseg_t_offset_cpu", {"SOLVER.MAX_ITER": 2000})
    segment = offseg_d2.Segmenter.from_checkpoint(run.best)
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm

from offseg_d2.checkpoint import last_checkpoint
from offseg_d2.config import load_config
from offseg_d2.distributed.launch import launch
from offseg_d2.utils.cli import report_user_errors

from .defaults import setup_run
from .trainer import Trainer


@dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes:
        output_dir: folder of the run, with ``config.yaml`` and ``log.txt``.
        results: of the last evaluation, such as ``{"sem_seg": {"mIoU": ...}}``; empty without one
            and where other processes have trained.
    """

    output_dir: str
    results: Mapping[str, Any]

    @property
    def last(self) -> str:
        """Path of the checkpoint that was written last."""
        return last_checkpoint(self.output_dir)

    @property
    def best(self) -> str:
        """Path of the checkpoint with the best evaluation; the last one if there was none."""
        best = os.path.join(self.output_dir, "model_best.pth")
        return best if os.path.isfile(best) else self.last

    @property
    def metrics(self) -> str:
        """Path of the file with losses, rates and scores: JSON, one object a line."""
        return os.path.join(self.output_dir, "metrics.json")


def train(
    config: str | os.PathLike[str],
    changes: Mapping[str, Any] | Sequence[Any] = (),
    *,
    resume: bool = False,
    num_gpus: int = 1,
    trainer: type[Trainer] = Trainer,
    **processes: Any,
) -> Run:
    """Train a model, with the log and the files of ``offseg train``.

    Args:
        config: path of a configuration, or its name, such as "camvid/offseg_t_offset_cpu".
        changes: keys with their values, as a dictionary or as KEY VALUE pairs.
        resume: continue the run in ``OUTPUT_DIR``, if there is one.
        num_gpus: of this machine; 0 takes the CPU, as 1 does where there is no CUDA. With several,
            a program must call this below ``if __name__ == "__main__"``.
        trainer: a class of your own in place of :class:`.Trainer`.
        processes: keywords of :func:`.launch` for several processes and machines.

    Raises:
        ConfigError, ValueError, OSError: the configuration, the data or the weights cannot be used.
        FloatingPointError: the loss is not finite.
        SystemExit: the training was stopped by a signal, or failed in one of several processes.
    """
    cfg = load_config(config, changes)
    if num_gpus == 0:
        cfg.MODEL.DEVICE = "cpu"
    called = {"config_file": str(config), "opts": changes, "num_gpus": num_gpus, **processes}
    args = argparse.Namespace(eval_only=False, resume=resume, **called)
    how = {"device": cfg.MODEL.DEVICE, "num_gpus": num_gpus, **processes}
    results = launch(_in_process, (cfg, args, trainer), **how)
    return Run(cfg.OUTPUT_DIR, results or {})


def _in_process(cfg: CfgNode, args: argparse.Namespace, trainer: type[Trainer]) -> Any:
    """One of several processes says by itself what its user can mend: its caller is elsewhere."""
    if comm.get_world_size() == 1:
        return _train(cfg, args, trainer)
    return report_user_errors(_train, cfg, args, trainer)


def _train(cfg: CfgNode, args: argparse.Namespace, trainer: type[Trainer]) -> Mapping[str, Any]:
    run = trainer(setup_run(cfg, args))
    run.resume_or_load(resume=args.resume)
    return run.train()
