"""Learning-rate schedule: linear warm-up, then polynomial decay to zero.

Both parts are pure functions of the 0-based index of the iteration whose update uses the value,
so a schedule is reproduced from its numbers alone and resuming needs nothing but that index.
"""

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


def linear_warmup_factor(iteration: int, warmup_iters: int, start_factor: float) -> float:
    """Factor rising from ``start_factor`` at iteration 0 to 1 at iteration ``warmup_iters - 1``.

    Args:
        iteration: 0-based index of the iteration; 1 is returned from ``warmup_iters - 1`` on.
        warmup_iters: number of warm-up iterations; with 0 or 1 there is nothing to rise.
        start_factor: factor at iteration 0, in [0, 1].
    """
    last = warmup_iters - 1
    if iteration >= last:
        return 1.0
    return start_factor + (1.0 - start_factor) * iteration / last


def poly_factor(iteration: int, begin: int, end: int, power: float) -> float:
    """Factor falling from 1 at iteration ``begin`` to exactly 0 at iteration ``end - 1``.

    Args:
        iteration: 0-based index of the iteration, at least ``begin``.
        begin: first iteration of the decay.
        end: one past the last iteration of the decay; the factor stays 0 afterwards.
        power: exponent of the remaining fraction.
    """
    if iteration <= begin:
        return 1.0
    if iteration >= end - 1:
        return 0.0
    return (1.0 - (iteration - begin) / (end - 1 - begin)) ** power


def warmup_poly_factor(
    iteration: int, *, warmup_iters: int, warmup_factor: float, end_iter: int, power: float
) -> float:
    """Factor on the base learning rate: warm-up before ``warmup_iters``, poly decay after it."""
    if iteration < warmup_iters:
        return linear_warmup_factor(iteration, warmup_iters, warmup_factor)
    return poly_factor(iteration, warmup_iters, end_iter, power)


class WarmupPolyLR(LRScheduler):
    """Multiplies the base learning rate of each parameter group by :func:`warmup_poly_factor`.

    Args:
        optimizer: optimizer whose groups' current ``lr`` are the base learning rates.
        max_iter: iterations of the run.
        warmup_iters: iterations of linear warm-up, 0 for none.
        warmup_factor: factor at iteration 0, in [0, 1].
        power: exponent of the decay.
        end_iter: iteration at which the decay ends; 0 means ``max_iter``.

    Raises:
        ValueError: if the warm-up does not fit into the run or a number is out of range.
    """

    # Only this is state; the numbers of the schedule come from the configuration, so that a
    # resumed run may be lengthened.
    _STATE_KEYS = ("last_epoch", "base_lrs", "_last_lr", "_step_count")

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        max_iter: int,
        warmup_iters: int = 0,
        warmup_factor: float = 1e-6,
        power: float = 1.0,
        end_iter: int = 0,
    ) -> None:
        self.end_iter = end_iter or max_iter
        self.warmup_iters = warmup_iters
        self.warmup_factor = warmup_factor
        self.power = power
        _check_schedule(max_iter, self.end_iter, warmup_iters, warmup_factor, power)
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        """Learning rate of every parameter group at the current iteration."""
        factor = warmup_poly_factor(
            self.last_epoch,
            warmup_iters=self.warmup_iters,
            warmup_factor=self.warmup_factor,
            end_iter=self.end_iter,
            power=self.power,
        )
        return [base_lr * factor for base_lr in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers: the iteration and the base learning rates."""
        return {key: getattr(self, key) for key in self._STATE_KEYS}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at the stored iteration, with the numbers of this schedule."""
        for key in self._STATE_KEYS:
            setattr(self, key, state_dict[key])
        # The optimizer's groups may hold the values of a schedule with other numbers.
        self._last_lr = self.get_lr()
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr


def _check_schedule(
    max_iter: int, end_iter: int, warmup_iters: int, warmup_factor: float, power: float
) -> None:
    if max_iter < 1:
        raise ValueError(f"`SOLVER.MAX_ITER` must be at least 1, but is {max_iter!r}.")
    if warmup_iters < 0:
        raise ValueError(f"`SOLVER.WARMUP_ITERS` must be at least 0, but is {warmup_iters!r}.")
    if warmup_iters > max_iter:
        raise ValueError(
            f"`SOLVER.WARMUP_ITERS` must be at most `SOLVER.MAX_ITER` = {max_iter}, "
            f"but is {warmup_iters!r}."
        )
    if end_iter < warmup_iters:
        raise ValueError(
            "`SOLVER.POLY_END_ITER` must be 0 (= MAX_ITER) or at least "
            f"`SOLVER.WARMUP_ITERS` = {warmup_iters}, but is {end_iter!r}."
        )
    if not 0.0 <= warmup_factor <= 1.0:
        raise ValueError(f"`SOLVER.WARMUP_FACTOR` must be in [0, 1], but is {warmup_factor!r}.")
    if power <= 0.0:
        raise ValueError(f"`SOLVER.POLY_LR_POWER` must be above 0, but is {power!r}.")
