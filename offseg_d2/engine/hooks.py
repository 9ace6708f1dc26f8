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

from offseg_d2.checkpoint import CheckpointError, check_entries, load_checkpoint_file
from offseg_d2.config import ConfigError

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


class FirstStepHook(HookBase):
    """Calls a function after the first iteration, when everything for the others is built."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function

    def after_step(self) -> None:
        if self.trainer.iter == self.trainer.start_iter:
            self.function()


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
        patience: evaluations without a better value after which training ends; 0 never ends it.
        subset: images that ``evaluate`` takes; values of another number are not compared. 0 is all.
        evaluate_all: for a subset, comes after the last evaluation and decides nothing.

    Raises:
        ConfigError: the patience cannot be used.
    """

    def __init__(
        self,
        evaluate: Callable[[], Mapping[str, Any]],
        period: int,
        save: SaveCheckpoint,
        best_metric: str,
        output_dir: str,
        *,
        patience: int = 0,
        subset: int = 0,
        evaluate_all: Callable[[], Mapping[str, Any]] | None = None,
    ) -> None:
        if patience < 0 or (patience and not (period > 0 and best_metric)):
            raise ConfigError(
                "`SOLVER.EARLY_STOPPING_PATIENCE` must be 0, or positive with `TEST.EVAL_PERIOD` "
                f"and `SOLVER.BEST_METRIC`, but is {patience!r} with {period!r} and "
                f"{best_metric!r}."
            )
        self.evaluate = evaluate
        self.period = period
        self.save = save
        self.best_metric = best_metric
        self.best_path = os.path.join(output_dir, f"{BEST_CHECKPOINT}.pth")
        self.patience = patience
        self.subset, self.evaluate_all = subset, evaluate_all
        self.best_value = -math.inf
        self.best_iter = -1

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
            data = load_checkpoint_file(self.best_path)
            check_entries(self.best_path, data)
            best = data.get("best", {})
        except CheckpointError as error:
            logger.warning("%s The best model is chosen again.", error)
            return
        if (best.get("metric"), best.get("subset", 0)) == (self.best_metric, self.subset):
            self.best_value, self.best_iter = best["value"], best["iteration"]
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
        if self.trainer.iter < self.trainer.max_iter:
            return
        self._evaluate(self.trainer.max_iter - 1)
        if self.evaluate_all is not None:
            self._log(self.evaluate_all())
            comm.synchronize()

    def _evaluate(self, iteration: int) -> None:
        results = self._log(self.evaluate())
        stops = False
        if comm.is_main_process() and results and self.best_metric:
            stops = self._keep_best(results, iteration)
        # Processes finish evaluating at different times; start the next iteration together.
        comm.synchronize()
        if self.patience and comm.all_gather(stops)[0] and iteration < self.trainer.max_iter - 1:
            logger.info(
                "Training ends after iteration %d: %d evaluations without a better %s "
                "(`SOLVER.EARLY_STOPPING_PATIENCE`).",
                *(iteration, self.patience, self.best_metric),
            )
            self.trainer.max_iter = iteration + 1
            self.save("model_final")

    def _log(self, nested: Mapping[str, Any]) -> dict[str, float]:
        """Results as ``{"sem_seg/mIoU": ...}``; the finite ones go into the log."""
        results = flatten_results_dict(nested or {})
        for key, value in results.items():
            if math.isfinite(value):
                self.trainer.storage.put_scalar(key, value, smoothing_hint=False)
        return results

    def _keep_best(self, results: Mapping[str, float], iteration: int) -> bool:
        """Write ``model_best`` if the model is it; returns whether training is to end."""
        if self.best_metric not in results:
            logger.warning(
                "`SOLVER.BEST_METRIC` must be one of %s, but is %r: no best model is kept.",
                [key for key in results if "-" not in key],
                self.best_metric,
            )
            return False
        value = results[self.best_metric]
        if not value > self.best_value:
            logger.info(
                "%s %.4f is not above the best, %.4f", self.best_metric, value, self.best_value
            )
            return self._has_waited(iteration)
        self.best_value, self.best_iter = value, iteration
        best = {"metric": self.best_metric, "value": value, "iteration": iteration}
        best |= {"subset": self.subset} if self.subset else {}
        self.save(BEST_CHECKPOINT, resumable=False, best=best)
        logger.info("Best %s: %.4f after iteration %d", self.best_metric, value, iteration)
        return False

    def _has_waited(self, iteration: int) -> bool:
        """Whether the best value is too old; its iteration tells, also after resuming."""
        if not self.patience:
            return False
        evaluations = (iteration + 1) // self.period - (self.best_iter + 1) // self.period
        return evaluations >= self.patience
