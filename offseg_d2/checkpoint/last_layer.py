"""Whether the weights of a checkpoint belong to a model with this last layer."""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from .safe_load import CheckpointError

# The configuration can leave these out of a model, which would change its scores.
_OFFSET_WEIGHTS = re.compile(
    r"(^|\.)(classifier|predictor|mask_predictor)\.(norm|offset_learning)\."
)
_CLASS_NORM = re.compile(r"(^|\.)(classifier|predictor)\.norm\.")


def check_last_layer(
    path: str,
    state_dict: Mapping[str, Tensor],
    missing: Sequence[str],
    unexpected: Sequence[str],
    *,
    complete: bool,
) -> None:
    """Check the names that the file or the model has alone.

    Args:
        path: of the file, for the message.
        state_dict: its entries, by the names of the model.
        missing: names that the model has alone.
        unexpected: names that the file has alone.
        complete: the file must hold all weights of the model, and all offsets of the file count.

    Raises:
        CheckpointError: class vectors of a model with a norm over the classes are for one without
            or reverse, or the file is not complete.
    """
    ours = any(_CLASS_NORM.search(key) for key in missing)
    theirs = any(_CLASS_NORM.search(key) for key in unexpected)
    if (ours or theirs) and any(key.endswith("class_representations") for key in state_dict):
        raise CheckpointError(
            f"Checkpoint file `{path}` must be of a model with `MODEL.SEM_SEG_HEAD.CLASS_NORM` "
            f"{ours}, but is of one with {theirs}: class vectors of one do not fit the other. "
            "Change the key, or leave the last layer out by `offseg convert --reset-classifier`."
        )
    if complete and missing:
        raise CheckpointError(
            f"Checkpoint file `{path}` must hold all weights of the model, but lacks "
            f"`{missing[0]}` ({len(missing)} such entries). Was it trained with another "
            "configuration, or is it of a backbone only?"
        )
    unused = [key for key in unexpected if _OFFSET_WEIGHTS.search(key)]
    if complete and unused:
        raise CheckpointError(
            f"Checkpoint file `{path}` must fit the model's last layer, but holds `{unused[0]}`, "
            "which it has not. Was it trained with other values of "
            "`MODEL.SEM_SEG_HEAD.CLASS_OFFSET` or `FEATURE_OFFSET`?"
        )
