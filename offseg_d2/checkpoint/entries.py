"""Types of the entries that a training writes into its checkpoints beside the weights."""

from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer

from .safe_load import CheckpointError


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _is_counts(value: Any) -> bool:
    keys = ("seed", "position", "samples_per_iteration")
    return isinstance(value, Mapping) and all(_is_count(value.get(key)) for key in keys)


def _is_best(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and isinstance(value.get("value"), float | int)
        and _is_count(value.get("iteration"))
    )


# Values of PyTorch's optimizers that have the shape of their parameter.
_AVERAGES = ("exp_avg", "exp_avg_sq", "momentum_buffer")
_ENTRIES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "iteration": (_is_count, "a number of iterations"),
    "seed": (_is_count, "a seed"),
    "sampler": (_is_counts, "the position in the training data"),
    "best": (_is_best, "the best score and its iteration"),
}


def check_entries(path: str, data: Mapping[Any, Any]) -> None:
    """Check the types of the entries that are there.

    Args:
        path: of the checkpoint, for the message.
        data: its entries.

    Raises:
        CheckpointError: naming the first entry of another type.
    """
    for key, (is_right, meaning) in _ENTRIES.items():
        if key in data and not is_right(data[key]):
            raise CheckpointError(
                f"Checkpoint file `{path}` must hold {meaning} in its entry `{key}`, but holds "
                f"{_shown(data[key])}."
            )


def check_optimizer(path: str, key: str, optimizer: Optimizer) -> None:
    """Check what an optimizer has taken from a checkpoint, which PyTorch itself does not.

    Raises:
        CheckpointError: a parameter's averages have another shape, or are not all there.
    """
    states = [(parameter, state) for parameter, state in optimizer.state.items() if state]
    expected = {name for _, state in states for name in state if name in _AVERAGES}
    for parameter, state in states:
        for name in sorted(expected):
            shape = getattr(state.get(name), "shape", None)
            if shape != parameter.shape:
                raise CheckpointError(
                    f"Checkpoint file `{path}` must be of this configuration to be resumed from, "
                    f"but its entry `{key}` does not fit: `{name}` of a parameter must have the "
                    f"shape {tuple(parameter.shape)}, but has {shape and tuple(shape)}."
                )


def _shown(value: Any) -> str:
    simple = isinstance(value, int | float | str | None)
    return f"{value!r:.40}" if simple else f"a {type(value).__name__}"
