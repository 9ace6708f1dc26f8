"""The length of a run: ``SOLVER.MAX_EPOCHS`` in iterations, and a warm-up that fits into it."""

import logging
import math

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from offseg_d2.config import ConfigError
from offseg_d2.data import require_registered

logger = logging.getLogger(__name__)

_PARTS = 10  # of a run: its evaluations and checkpoints, its warm-up


def fit_run_length(cfg: CfgNode) -> None:
    """Set in a config what follows from the length of the run; each change is logged.

    With ``SOLVER.MAX_EPOCHS`` E, ``SOLVER.MAX_ITER`` becomes E times the images of
    ``DATASETS.TRAIN`` over those of an iteration, rounded up; ``TEST.EVAL_PERIOD`` and
    ``SOLVER.CHECKPOINT_PERIOD`` that are longer than the run become a tenth of it. So does, with or
    without epochs, a warm-up that is longer than the run. Doing it again changes nothing.

    Args:
        cfg: config, changed in place even if it is frozen.

    Raises:
        ConfigError: the epochs are negative, or there are no iterations to count.
        FileNotFoundError, ValueError: a dataset cannot be used.
    """
    was_frozen = cfg.is_frozen()
    cfg.defrost()
    if cfg.SOLVER.MAX_EPOCHS < 0:
        raise ConfigError(
            f"`SOLVER.MAX_EPOCHS` must be at least 0, but is {cfg.SOLVER.MAX_EPOCHS!r}."
        )
    if cfg.SOLVER.MAX_EPOCHS > 0:
        _count_epochs(cfg)
    if cfg.SOLVER.WARMUP_ITERS > cfg.SOLVER.MAX_ITER > 0:
        _shorten(cfg.SOLVER, "SOLVER.WARMUP_ITERS", cfg.SOLVER.MAX_ITER)
    if was_frozen:
        cfg.freeze()


def _count_epochs(cfg: CfgNode) -> None:
    solver = cfg.SOLVER
    for name in cfg.DATASETS.TRAIN:
        require_registered(name, "DATASETS.TRAIN")
    images = sum(len(DatasetCatalog.get(name)) for name in cfg.DATASETS.TRAIN)
    samples = solver.IMS_PER_BATCH * solver.ACCUMULATION_STEPS
    if images < 1 or samples < 1:
        raise ConfigError(
            "`SOLVER.MAX_EPOCHS` must be 0 without training images and batches of them, but is "
            f"{solver.MAX_EPOCHS!r} with {images} images, {samples} an iteration."
        )
    iterations = math.ceil(solver.MAX_EPOCHS * images / samples)
    if iterations != solver.MAX_ITER:
        logger.info(
            "`SOLVER.MAX_ITER` is %d instead of %d: `SOLVER.MAX_EPOCHS` %g of %d images, %d an "
            "iteration.",
            *(iterations, solver.MAX_ITER, solver.MAX_EPOCHS, images, samples),
        )
        solver.MAX_ITER = iterations
    for node, key in ((cfg.TEST, "TEST.EVAL_PERIOD"), (solver, "SOLVER.CHECKPOINT_PERIOD")):
        if node[key.split(".")[1]] > iterations:
            _shorten(node, key, iterations)


def _shorten(node: CfgNode, key: str, iterations: int) -> None:
    name = key.split(".")[1]
    shorter = math.ceil(iterations / _PARTS)
    logger.info(
        "`%s` is %d, a tenth of the run, instead of %d, which is longer than the %d iterations.",
        *(key, shorter, node[name], iterations),
    )
    node[name] = shorter
