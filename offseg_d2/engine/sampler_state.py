"""Data and random numbers of a run in its checkpoint, and their check on resuming.

Neither has a state of its own: which images an iteration sees follows from the seed and the number
of samples before it, and all generators are seeded again for each sample and each iteration
(:func:`.train_loop.seed_iteration`). These few numbers say everything.
"""

import logging
from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode

logger = logging.getLogger(__name__)


def sampler_state(cfg: CfgNode, seed: int, iteration: int) -> dict[str, int]:
    """Entry "sampler" of the checkpoint after the 0-based ``iteration``."""
    samples = cfg.SOLVER.IMS_PER_BATCH * cfg.SOLVER.ACCUMULATION_STEPS
    return {"seed": seed, "samples_per_iteration": samples, "position": (iteration + 1) * samples}


def check_sampler(cfg: CfgNode, checkpoint: Mapping[str, Any]) -> None:
    """Warn where the batch size has changed: the order of the data then does not go on exactly."""
    saved = checkpoint.get("sampler")
    if saved is None:
        return
    now = sampler_state(cfg, saved["seed"], checkpoint["iteration"])
    if now != saved:
        logger.warning(
            "An iteration had %d samples and has %d now (`SOLVER.IMS_PER_BATCH` times "
            "`SOLVER.ACCUMULATION_STEPS`): the data go on at position %d instead of %d.",
            saved["samples_per_iteration"],
            now["samples_per_iteration"],
            now["position"],
            saved["position"],
        )
