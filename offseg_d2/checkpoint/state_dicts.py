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


def with_model(path: str, data: dict[str, Any], *, is_pickle: bool) -> dict[str, Any]:
    """Entries of a checkpoint with its weights in the entry "model", whatever its origin.

    Args:
        path: of the file, for the message.
        data: its entries.
        is_pickle: it may be of Detectron 1 or Caffe2, whose names Detectron2 matches by its own
            heuristics.

    Raises:
        CheckpointError: its entry "blobs" is no mapping.
    """
    for key in ("model", "state_dict"):
        if isinstance(data.get(key), Mapping):
            return {**data, "model": data[key]}
    if not is_pickle or "__author__" in data:
        return {"model": data}
    blobs = data.get("blobs", data)
    if not isinstance(blobs, Mapping):
        raise CheckpointError(
            f"Checkpoint file `{path}` must hold weights by name in its entry `blobs`, but holds a "
            f"{type(blobs).__name__}."
        )
    model = {name: blob for name, blob in blobs.items() if not str(name).endswith("_momentum")}
    return {"model": model, "__author__": "Caffe2", "matching_heuristics": True}


def averages_of(path: str, data: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """Averaged weights in a checkpoint's entry "ema", none without it.

    Raises:
        CheckpointError: the entry holds something else.
    """
    if "ema" not in data:
        return {}
    averages = data["ema"].get("averages") if isinstance(data["ema"], Mapping) else None
    if not isinstance(averages, Mapping):
        raise CheckpointError(
            f"Checkpoint file `{path}` must hold averaged weights by name in its entry `ema`, but "
            "does not."
        )
    return averages


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
        if not isinstance(value, Tensor) and not _is_numbers(value):
            kind = f" of {value.dtype}" if isinstance(value, np.ndarray) else ""
            raise CheckpointError(
                f"Checkpoint file `{path}` must hold tensors by name, but `{name}` is a "
                f"{type(value).__name__}{kind}."
            )
    wrapped = all(name.startswith("module.") for name in entries)
    return {
        name.removeprefix("module.") if wrapped else name: _as_tensor(value)
        for name, value in entries.items()
    }


def _is_numbers(value: Any) -> bool:
    """True for arrays that PyTorch has a type for; its longest numbers have 8 bytes."""
    return (
        isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.dtype.itemsize <= 8
    )


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
