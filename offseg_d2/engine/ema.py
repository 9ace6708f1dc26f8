"""Exponential moving average of the weights.

The averaged model is often better than the last one, because it is not at the mercy of the last few
batches (Polyak and Juditsky, 1992). It learns nothing itself: it is only evaluated and saved.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn


class WeightAverage:
    """``average = decay * average + (1 - decay) * weight`` after every iteration.

    Buffers (batch norm statistics, averages themselves) are taken as they are. Early in a run the
    decay is smaller, so that the random initial weights are soon forgotten.

    Args:
        model: not one wrapped for several processes.
        decay: in [0, 1); the average reaches back about ``1 / (1 - decay)`` iterations.

    Raises:
        ValueError: if the decay is out of range.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"`SOLVER.EMA.DECAY` must be in [0, 1), but is {decay!r}.")
        self.model = model
        self.decay = decay
        self.updates = 0
        self.is_applied = False
        self.averages = {name: value.detach().clone() for name, value in self._values().items()}

    def _values(self) -> dict[str, Tensor]:
        """Parameters that are trained, by name: what is averaged."""
        named = self.model.named_parameters()
        return {name: value for name, value in named if value.requires_grad}

    def restart(self) -> None:
        """Begin with the current weights, as after loading pre-trained ones."""
        self.updates = 0
        with torch.no_grad():
            for name, value in self._values().items():
                self.averages[name].copy_(value)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights of one more iteration."""
        self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + 9.0))
        values = self._values()
        averages = list(self.averages.values())
        torch._foreach_lerp_(averages, [values[name] for name in self.averages], 1.0 - decay)

    def applied(self) -> contextlib.AbstractContextManager[None]:
        """Give the model the averaged weights for as long as the context lasts."""
        return self._with_average(True)

    def removed(self) -> contextlib.AbstractContextManager[None]:
        """Give the model its own weights, also inside of :meth:`applied`."""
        return self._with_average(False)

    @contextlib.contextmanager
    def _with_average(self, wanted: bool) -> Iterator[None]:
        before = self.is_applied
        self._apply(wanted)
        try:
            yield
        finally:
            self._apply(before)

    def _apply(self, wanted: bool) -> None:
        if wanted != self.is_applied:
            # A handler that writes a checkpoint must not find half of the weights exchanged.
            with _signals_held():
                self._swap()
                self.is_applied = wanted

    @torch.no_grad()
    def _swap(self) -> None:
        for name, value in self._values().items():
            # In place: the optimizer and other processes hold on to these very tensors.
            current = value.clone()
            value.copy_(self.averages[name])
            self.averages[name].copy_(current)

    # ------------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, object]:
        return {"averages": self.averages, "updates": self.updates}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, object]) -> None:
        averages = state["averages"]
        assert isinstance(averages, Mapping)
        if averages.keys() != self.averages.keys():
            name = min(averages.keys() ^ self.averages.keys())
            raise ValueError(f"`{name}` is averaged in only one of the two")
        for name, value in self.averages.items():
            value.copy_(averages[name])
        self.updates = int(state["updates"])  # type: ignore[call-overload]


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Let the handlers of signals that ask a run to stop wait until the end of the context."""
    if threading.current_thread() is not threading.main_thread():  # no handler runs here
        yield
        return
    came: list[int] = []
    previous = {
        number: signal.signal(number, lambda number, frame: came.append(number))
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler or signal.SIG_DFL)
        for number in came:
            signal.raise_signal(number)


class WeightAverageHook(HookBase):
    """Updates the average after every iteration; to be registered before the checkpoints."""

    def __init__(self, average: WeightAverage) -> None:
        self.average = average

    def after_step(self) -> None:
        self.average.update()
