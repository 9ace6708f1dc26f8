"""Hooks of the training loop: learning rate, checkpoints, evaluation.

Detectron2's own hooks remain in use where they fit (``IterationTimer``, ``PeriodicWriter``).
"""

import logging
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from offseg_d2.checkpoint import CheckpointError, load_checkpoint_file

logger = logging.getLogger(__name__)

BEST_CHECKPOINT = "model_best"

# Writes a checkpoint of the given name (without ending); `resumable` as in SafeCheckpointer.save.
SaveCheckpoint = Callable[..., None]


class LearningRateHook(HookBase):
    """Steps the schedule after every iteration and logs the rate of each parameter group."""

    def __init__(self, optimizer: Optimizer, scheduler: LRScheduler) -> None:
        self.optimizer = optimizer
        self.scheduler = scheduler

    def after_step(self) -> None:
        groups = self.optimizer.param_groups
        self.trainer.storage.put_scalar("lr", groups[0]["lr"], smoothing_hint=False)
        for index, group in enumerate(groups[1:], start=1):
            name = f"lr_{group.get('name', index)}"
            self.trainer.storage.put_scalar(name, group["lr"], smoothing_hint=False)
        self.scheduler.step()


class CheckpointHook(HookBase):
    """Writes a checkpoint every ``period`` iterations, and ``model_final`` after the last."""

    def __init__(self, save: SaveCheckpoint, period: int) -> None:
        if period < 1:
            raise ValueError(f"`SOLVER.CHECKPOINT_PERIOD` must be at least 1, but is {period!r}.")
        self.save = save
        self.period = period

    def after_step(self) -> None:
        if self.trainer.iter == self.trainer.max_iter - 1:
            self.save("model_final")
        elif (self.trainer.iter + 1) % self.period == 0:
            self.save(periodic_name(self.trainer.iter))


def periodic_name(iteration: int) -> str:
    """Name of the checkpoint after the 0-based ``iteration``, as Detectron2 writes it."""
    return f"model_{iteration:07d}"


class EvaluationHook(HookBase):
    """Evaluates every ``period`` iterations and after the last, and keeps the best model.

    A run that is resumed where an evaluation is due begins with it: the run may have been stopped
    between the checkpoint and the evaluation, and would otherwise miss a best model.

    Args:
        evaluate: returns nested results, ``{"sem_seg": {"mIoU": ...}}``; runs on all processes.
        period: iterations between two evaluations, 0 evaluates only at the end.
        save: writes a checkpoint.
        best_metric: "task/key" whose highest value decides which model is ``model_best``; "" keeps
            none.
        output_dir: directory in which ``model_best`` lies.
    """

    def __init__(
        self,
        evaluate: Callable[[], Mapping[str, Any]],
        period: int,
        save: SaveCheckpoint,
        best_metric: str,
        output_dir: str,
    ) -> None:
        self.evaluate = evaluate
        self.period = period
        self.save = save
        self.best_metric = best_metric
        self.best_path = os.path.join(output_dir, f"{BEST_CHECKPOINT}.pth")
        self.best_value = -math.inf

    def before_train(self) -> None:
        if self.trainer.start_iter > 0 and self.best_metric and comm.is_main_process():
            self._read_best_value()
        last = self.trainer.start_iter - 1
        if last >= 0 and self._is_due(last):
            self.trainer.iter = self.trainer.storage.iter = last
            self._evaluate(last)

    def _read_best_value(self) -> None:
        # The file itself says what it achieved: the last checkpoint may be older than it.
        if not os.path.isfile(self.best_path):
            return
        try:
            best = load_checkpoint_file(self.best_path).get("best", {})
        except CheckpointError as error:
            logger.warning("%s The best model is chosen again.", error)
            return
        if best.get("metric") == self.best_metric:
            self.best_value = best["value"]
            logger.info("Best %s so far: %.4f", self.best_metric, self.best_value)

    def after_step(self) -> None:
        if self._is_due(self.trainer.iter):
            self._evaluate(self.trainer.iter)

    def _is_due(self, iteration: int) -> bool:
        """True if an evaluation is due after the 0-based ``iteration``, not the last one."""
        done = iteration + 1
        return self.period > 0 and done % self.period == 0 and done < self.trainer.max_iter

    def after_train(self) -> None:
        # After a failure or a signal `iter` has not reached the end.
        if self.trainer.iter >= self.trainer.max_iter:
            self._evaluate(self.trainer.max_iter - 1)

    def _evaluate(self, iteration: int) -> None:
        results = flatten_results_dict(self.evaluate() or {})
        finite = {key: value for key, value in results.items() if math.isfinite(value)}
        for key, value in finite.items():
            self.trainer.storage.put_scalar(key, value, smoothing_hint=False)
        if comm.is_main_process() and results and self.best_metric:
            self._keep_best(results, iteration)
        # Processes finish evaluating at different times; start the next iteration together.
        comm.synchronize()

    def _keep_best(self, results: Mapping[str, float], iteration: int) -> None:
        if self.best_metric not in results:
            logger.warning(
                "`SOLVER.BEST_METRIC` must be one of %s, but is %r: no best model is kept.",
                [key for key in results if "-" not in key],
                self.best_metric,
            )
            return
        value = results[self.best_metric]
        if not value > self.best_value:
            logger.info(
                "%s %.4f is not above the best, %.4f", self.best_metric, value, self.best_value
            )
            return
        self.best_value = value
        best = {"metric": self.best_metric, "value": value, "iteration": iteration}
        self.save(BEST_CHECKPOINT, resumable=False, best=best)
        logger.info("Best %s: %.4f after iteration %d", self.best_metric, value, iteration)
