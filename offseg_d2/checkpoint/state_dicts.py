"""The weights in a checkpoint file: where they are, and whether they fit a model."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .safe_load import CheckpointError, load_checkpoint_file


def load_state_dict_file(path: str) -> dict[str, Tensor]:
    """The weights of a file: its entry "model" or "state_dict", or all of it.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it is damaged, unsafe or holds something else than weights.
    """
    data = load_checkpoint_file(path)
    for key in ("model", "state_dict"):
        if isinstance(data.get(key), Mapping):
            return to_state_dict(path, data[key])
    return to_state_dict(path, data)


def to_state_dict(path: str, entries: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors by name, without the prefix that DistributedDataParallel adds.

    Raises:
        CheckpointError: if there is none, a name is no text, or an entry is neither a tensor nor
            an array of numbers.
    """
    if not entries:
        raise CheckpointError(f"Checkpoint file `{path}` must hold tensors by name, but is empty.")
    for name, value in entries.items():
        if not isinstance(name, str):
            raise CheckpointError(
                f"Checkpoint file `{path}` must hold tensors by name, but one of its names is "
                f"{name!r:.60}, a {type(name).__name__}."
            )
        numbers = isinstance(value, np.ndarray) and value.dtype.kind in "biuf"
        if not numbers and not isinstance(value, Tensor):
            raise CheckpointError(
                f"Checkpoint file `{path}` must hold tensors by name, but `{name}` is a "
                f"{type(value).__name__}."
            )
    wrapped = all(name.startswith("module.") for name in entries)
    return {
        name.removeprefix("module.") if wrapped else name: _as_tensor(value)
        for name, value in entries.items()
    }


def _as_tensor(value: Tensor | np.ndarray) -> Tensor:
    if isinstance(value, Tensor):
        return value
    return torch.as_tensor(value.astype(value.dtype.newbyteorder("="), copy=False))


def check_fit(
    path: str, state_dict: Mapping[str, Tensor], model_state: Mapping[str, Tensor], *, strict: bool
) -> None:
    """Check that entries of the same name have the same shape, and that there are any.

    Args:
        path: file the entries come from, for the message.
        state_dict: entries of the file.
        model_state: entries of the model.
        strict: whether names on one side only are an error too.

    Raises:
        CheckpointError: naming the first entry that does not fit, with both shapes.
    """
    common = [name for name in state_dict if name in model_state]
    if model_state and not common:
        raise CheckpointError(
            f"Checkpoint file `{path}` must hold parameters of the model, such as "
            f"`{next(iter(model_state))}`, but holds none of them."
        )
    wrong = [name for name in common if state_dict[name].shape != model_state[name].shape]
    if wrong:
        more = f" ({len(wrong) - 1} more differ)" if len(wrong) > 1 else ""
        raise CheckpointError(
            f"Checkpoint file `{path}` does not fit the model: `{wrong[0]}` has the shape "
            f"{tuple(state_dict[wrong[0]].shape)} in the file, but "
            f"{tuple(model_state[wrong[0]].shape)} in the model{more}. Is it of another variant "
            "or another number of classes? (offseg convert --reset-classifier leaves "
            "the last layer out.)"
        )
    alone = sorted(state_dict.keys() ^ model_state.keys())
    if strict and alone:
        side = "file" if alone[0] in state_dict else "model"
        raise CheckpointError(
            f"Checkpoint file `{path}` does not fit the model: `{alone[0]}` is only in the {side}"
            f" ({len(alone)} such entries). Has the configuration changed since it was written?"
        )
