"""Types of the entries that a training writes into its checkpoints beside the weights."""

from collections.abc import Callable, Mapping
from typing import Any

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


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, int | float | str | bool | None) else ""
    return f"a {type(value).__name__}" + (f", {text[:40]}" if text else "")
