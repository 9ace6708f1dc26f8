"""The training iteration: accumulate gradients, check the loss, clip, step.

Built on Detectron2's ``TrainerBase`` because its ``AMPTrainer`` requires CUDA, cannot
accumulate gradients and notices a NaN loss only after the weights have been updated with it.
"""

import contextlib
import logging
import random
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed
from detectron2.engine import TrainerBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from offseg_d2.checkpoint import CheckpointError
from offseg_d2.config import ConfigError
from offseg_d2.data import DataFileError
from offseg_d2.solver import GradientClipper

logger = logging.getLogger(__name__)

Batch = list[dict[str, Any]]


class TrainLoop(TrainerBase):
    """Iterations of training with gradient accumulation and mixed precision.

    All random numbers of iteration ``i`` (drop path, dropout, ...) are a function of the seed and
    ``i``, the same in all processes. A resumed run therefore equals an uninterrupted one without
    saving generator states, with evaluations in between or not. Layers that draw numbers for each
    sample take their part of the batch's (:mod:`offseg_d2.layers.sample_random`).

    Args:
        model: returns a dict of scalar losses for a batch, in training mode.
        optimizer: optimizer of the model's parameters.
        data_loader: endless batches (lists of dicts); may be set later as ``data_loader``.
        device: device the model is on.
        amp_dtype: type of autocast; None computes in the parameters' precision.
        accumulation_steps: batches whose gradients are averaged into one optimizer step.
        clip_gradients: clips the gradients in place.
        seed: non-negative seed of the run.
        log_period: on devices other than the CPU losses are read and checked once in as many
            iterations, as reading waits for the device.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        data_loader: Iterable[Batch] | None = None,
        *,
        device: torch.device,
        amp_dtype: torch.dtype | None = None,
        accumulation_steps: int = 1,
        clip_gradients: GradientClipper | None = None,
        seed: int = 0,
        log_period: int = 1,
    ) -> None:
        super().__init__()
        if accumulation_steps < 1:
            raise ValueError(
                f"`SOLVER.ACCUMULATION_STEPS` must be at least 1, but is {accumulation_steps!r}."
            )
        self.model = model
        self.optimizer = optimizer
        self.data_loader = data_loader
        self.device = device
        self.amp_dtype = amp_dtype
        self.accumulation_steps = accumulation_steps
        self.clip_gradients = clip_gradients
        self.seed = seed
        self.log_period = log_period
        self._unread: list[_Step] = []
        # Half precision loses small gradients unless the loss is scaled up; bfloat16 does not.
        self.grad_scaler = torch.amp.GradScaler(
            device.type, enabled=amp_dtype is torch.float16 and device.type == "cuda"
        )
        self._batches: Iterator[Batch] | None = None

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run the iterations ``start_iter .. max_iter - 1``; a hook may lower ``max_iter``.

        As ``TrainerBase.train``, but what a user can mend (a NaN loss, an unreadable image) is
        logged as one sentence, without the stack of calls.
        """
        self.model.train()
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                for self.iter in range(start_iter, max_iter):
                    if self.iter >= self.max_iter:  # a hook has ended the run early
                        break
                    self.before_step()
                    self.run_step()
                    self.after_step()
                self.iter = self.max_iter  # by which `after_train` sees that nothing failed
            except (
                FloatingPointError,
                DataFileError,
                ConfigError,
                CheckpointError,
                OSError,
            ) as error:
                logger.error("Training stopped in iteration %d: %s", self.iter, error)
                raise
            except Exception:
                logger.exception("Training failed in iteration %d:", self.iter)
                raise
            finally:
                self.after_train()

    def run_step(self) -> None:
        """One iteration.

        Raises:
            UnusedParameterError: if a parameter gets no gradient in the first iteration.
            FloatingPointError: if a loss or the gradient norm is NaN or infinite, naming the
                iteration and the images. On the CPU the weights are those of the iteration before;
                other devices may have gone on for up to ``log_period`` iterations.
        """
        assert self.model.training, "the model was left in evaluation mode"
        seed_iteration(self.seed, self.iter)
        self.optimizer.zero_grad(set_to_none=True)
        data_time = 0.0
        batches: list[Batch] = []
        losses: list[dict[str, Tensor]] = []
        for step in range(self.accumulation_steps):
            start = time.perf_counter()
            batches.append(self._next_batch())
            data_time += time.perf_counter() - start
            is_last = step == self.accumulation_steps - 1
            losses.append(self._forward_backward(batches[-1], synchronise=is_last))
        if self.iter == self.start_iter:
            refuse_unused_parameters(self.model)
        step = self._step_of(losses, batches, data_time)
        if self._reads_at_once:
            self._check_losses(step)
        step.gradient_norm = self._update(step)
        self._unread.append(step)
        is_last = self.iter == self.max_iter - 1
        if self._reads_at_once or is_last or (self.iter + 1) % self.log_period == 0:
            self.read_steps()

    def _next_batch(self) -> Batch:
        if self._batches is None:
            assert self.data_loader is not None, "no data loader was set"
            self._batches = iter(self.data_loader)
        return next(self._batches)

    def _forward_backward(self, batch: Batch, *, synchronise: bool) -> dict[str, Tensor]:
        """Add the gradients of one batch; returns its losses, detached."""
        no_sync = not synchronise and isinstance(self.model, DistributedDataParallel)
        with self.model.no_sync() if no_sync else contextlib.nullcontext():
            with torch.autocast(
                self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None
            ):
                losses = self._losses(batch)
            total = sum(losses.values()) / self.accumulation_steps
            self.grad_scaler.scale(total).backward()
        return {name: loss.detach().float() for name, loss in losses.items()}

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        try:
            return self.model(batch)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ConfigError(
                "`INPUT.CROP.SIZE` and `SOLVER.IMS_PER_BATCH` must leave each batch norm more than "
                f"one value per channel in a process, but do not ({error})."
            ) from None

    def _step_of(
        self, losses: list[dict[str, Tensor]], batches: list[Batch], data_time: float
    ) -> "_Step":
        """Mean of each loss over the batches and processes, on the device.

        One reduction serves the log and the check: a sum is finite only if all its terms are, so
        every process stops where one has a bad loss.
        """
        names = sorted(losses[0])
        own = torch.stack([torch.stack([loss[name] for name in names]) for loss in losses])
        mean = own.mean(dim=0)
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(mean)
            mean /= comm.get_world_size()
        files = [[_file_name(sample) for sample in batch] for batch in batches]
        return _Step(self.iter, names, own, mean, files, data_time)

    @property
    def _reads_at_once(self) -> bool:
        """Whether values cost nothing to read; from another device it would have to wait."""
        return self.device.type == "cpu"

    def read_steps(self) -> None:
        """Check and log the iterations since the last call: one copy from the device.

        Raises:
            FloatingPointError: if a loss or the gradient norm of one of them is not finite.
        """
        steps, self._unread = self._unread, []
        if not steps:
            return
        rows = torch.stack([torch.cat([s.mean, s.gradient_norm.view(1).to(s.mean)]) for s in steps])
        scale = self.grad_scaler.get_scale() if self.grad_scaler.is_enabled() else None
        for step, (*means, norm) in zip(steps, rows.tolist(), strict=True):
            self._check_losses(step, means)
            self._check_norm(step, norm)
            self._write_metrics(step, dict(zip(step.names, means, strict=True)), norm)
        if scale is not None:
            self.storage.put_scalar("grad_scale", scale)

    def _check_losses(self, step: "_Step", means: list[float] | None = None) -> None:
        means = step.mean.tolist() if means is None else means
        if all(np.isfinite(value) for value in means):
            return
        finite = step.own.isfinite().all(dim=1).tolist()
        bad = [files for files, good in zip(step.files, finite, strict=True) if not good]
        shown = ", ".join(f"{n} {value:g}" for n, value in zip(step.names, means, strict=True))
        # Finite losses can have an infinite sum; then no batch is the bad one.
        files = _of_all_processes(bad) or _of_all_processes(step.files)
        raise FloatingPointError(
            f"The loss of iteration {step.iteration} is not finite ({shown}); "
            f"{self._consequence}. Images of the batch: {files}."
        )

    def _check_norm(self, step: "_Step", norm: float) -> None:
        # Scaled gradients may overflow; the scaler then skips the step and lowers the scale.
        if not np.isfinite(norm) and not self.grad_scaler.is_enabled():
            raise FloatingPointError(
                f"The gradient norm of iteration {step.iteration} is {norm}; {self._consequence}. "
                f"Images of the batch: {_of_all_processes(step.files)}."
            )

    @property
    def _consequence(self) -> str:
        if self._reads_at_once:
            return "the weights were not updated"
        return "no checkpoint has been written since"

    def _update(self, step: "_Step") -> Tensor:
        """Clip the gradients and step; returns their norm before clipping."""
        self.grad_scaler.unscale_(self.optimizer)
        parameters = [
            parameter
            for group in self.optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        # Also without clipping: NaN gradients (of a finite loss) would ruin the weights for good.
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        if self._reads_at_once:
            self._check_norm(step, float(norm))
        if self.clip_gradients is not None:
            self.clip_gradients(parameters)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        return norm

    def _write_metrics(self, step: "_Step", losses: Mapping[str, float], norm: float) -> None:
        values = {"data_time": step.data_time, "total_loss": sum(losses.values()), **losses}
        if np.isfinite(norm):
            values["gradient_norm"] = norm
        self.storage.put_scalars(cur_iter=step.iteration, **values)


@dataclass
class _Step:
    """An iteration whose values are still on the device.

    Attributes:
        iteration: its number.
        names: of the losses.
        own: (batches, losses) of this process.
        mean: (losses,) over all processes.
        files: names of the files of each batch.
        data_time: seconds that it waited for data.
        gradient_norm: scalar.
    """

    iteration: int
    names: list[str]
    own: Tensor
    mean: Tensor
    files: list[list[str]]
    data_time: float
    gradient_norm: Tensor = field(default_factory=lambda: torch.zeros(()))


class UnusedParameterError(RuntimeError):
    """A parameter that is to be trained has no part in the loss."""


def refuse_unused_parameters(model: nn.Module) -> None:
    """Check after a backward pass that every trained parameter has got a gradient.

    One without is dead weight by mistake; several processes would even wait for its gradient.

    Raises:
        UnusedParameterError: naming the first such parameter.
    """
    trained = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    unused = [name.removeprefix("module.") for name, value in trained if value.grad is None]
    if unused:
        raise UnusedParameterError(
            f"Every trained parameter must have a part in the loss, but `{unused[0]}` got no "
            f"gradient ({len(unused)} of {len(trained)} did not)."
        )


def _file_name(sample: Mapping[str, Any]) -> str:
    return str(sample.get("file_name", "a sample without file name"))


def _of_all_processes(files: list[list[str]]) -> str:
    """Names of files of every process, separated by commas; to be called by all."""
    own = [name for batch in files for name in batch]
    return ", ".join(name for part in comm.all_gather(own) for name in part)


class GradScalerState:
    """State of a gradient scaler that may be switched on or off between a run and its resuming."""

    def __init__(self, grad_scaler: torch.amp.GradScaler) -> None:
        self.grad_scaler = grad_scaler

    def state_dict(self) -> dict[str, Any]:
        return self.grad_scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:  # empty: the run so far was without
            self.grad_scaler.load_state_dict(state)


def seed_iteration(seed: int, iteration: int) -> None:
    """Seed Python, numpy and torch for one iteration, in all processes alike."""
    mixed = int(np.random.SeedSequence([seed, iteration, 0]).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)
