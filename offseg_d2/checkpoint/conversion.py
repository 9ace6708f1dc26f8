"""Conversion of a checkpoint of any known format to our names.

It is strict: every entry is mapped or dropped for a reason, none of the converted ones is unknown
to the model, and the file lacks none of the model's but those its format says it does not hold.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor, nn

from offseg_d2.checkpoint.backbone_tables import RESIZABLE_BIASES, with_attention_biases
from offseg_d2.checkpoint.formats import OWN, Format, recognise
from offseg_d2.checkpoint.safe_load import CheckpointError
from offseg_d2.checkpoint.state_dicts import check_fit, load_state_dict_file

logger = logging.getLogger(__name__)

# What differs between the offset and the plain form, or depends on the classes.
_CLASSIFIER = re.compile(r"sem_seg_head\.(classifier|predictor\.(mask_predictor|class_embed))\..+")
_CLASS_ENTRIES = re.compile(
    r"sem_seg_head\.classifier\.(class_representations|(norm|predictor)\.(weight|bias))"
    r"|sem_seg_head\.predictor\.class_embed\.(weight|bias)"
)


@dataclass
class Conversion:
    """Result of a conversion.

    Attributes:
        format_name: what was recognised.
        state_dict: entries under our names.
        dropped: external or own name -> reason.
        missing: entries of the model that the file does not hold.
    """

    format_name: str
    state_dict: dict[str, Tensor]
    dropped: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def report(self) -> str:
        """Describe in several lines what was mapped, dropped and why, and what is missing."""
        lines = [f"Recognised {self.format_name}: {len(self.state_dict)} entries mapped"]
        for reason in dict.fromkeys(self.dropped.values()):
            names = [name for name, why in self.dropped.items() if why == reason]
            lines.append(f"  {len(names)} dropped ({reason}): {_summary(names)}")
        if self.missing:
            lines.append(
                f"  {len(self.missing)} not in it keep their initial values: "
                f"{_summary(self.missing)}"
            )
        return "\n".join(lines)


def convert(
    state_dict: Mapping[str, Tensor],
    model_state: Mapping[str, Tensor] | None = None,
    *,
    resize_attention_biases: bool = False,
    reset_classifier: bool = False,
) -> Conversion | None:
    """Convert a state dict of any known format to our names.

    Args:
        state_dict: entries of the file.
        model_state: entries of the model they are for; None checks no names and resizes nothing.
        resize_attention_biases: keep the attention biases of an ImageNet EfficientFormerV2, resized
            to the model's tables.
        reset_classifier: leave out what depends on the classes, for a model with other ones, and
            what its classifier does not have.

    Returns:
        the conversion; None if the format is unknown.

    Raises:
        KeyError: if the format's map does not know an entry.
        ValueError: if the format does not fit the model.
    """
    source = recognise(state_dict)
    if source is None:
        return None
    key_map = source.key_map
    if resize_attention_biases and model_state is not None and key_map in RESIZABLE_BIASES:
        key_map = with_attention_biases(key_map)
    ours, dropped = key_map.from_theirs(state_dict)
    if reset_classifier:
        _reset_classifier(ours, dropped, model_state)
    conversion = Conversion(key_map.name, ours, dropped)
    if model_state is not None:
        for name in [name for name in ours if name.endswith(".bias.table") and name in model_state]:
            if key_map is not source.key_map:
                ours[name] = resize_bias_table(ours[name], model_state[name].shape[1])
        _drop_batch_counts(ours, dropped, model_state)
        conversion.missing = [name for name in model_state if name not in ours]
        _check_names(source, conversion, model_state, reset_classifier)
    return conversion


def convert_for_model(
    state_dict: dict[str, Tensor], model: nn.Module, *, resize_attention_biases: bool = False
) -> dict[str, Tensor]:
    """:func:`convert` for a checkpointer.

    Logs its report; returns unknown formats and our own as they are.
    """
    if recognise(state_dict) in (None, OWN):
        return state_dict
    conversion = convert(
        state_dict, model.state_dict(), resize_attention_biases=resize_attention_biases
    )
    assert conversion is not None
    logger.info("%s", conversion.report())
    return conversion.state_dict


def convert_file(
    path: str,
    model_state: Mapping[str, Tensor] | None = None,
    *,
    resize_attention_biases: bool = False,
    reset_classifier: bool = False,
) -> Conversion:
    """:func:`convert` for a file, with the shapes compared to the model's.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it is damaged, unsafe, of an unknown format or does not fit the model.
    """
    state_dict = load_state_dict_file(path)
    try:
        conversion = convert(
            state_dict,
            model_state,
            resize_attention_biases=resize_attention_biases,
            reset_classifier=reset_classifier,
        )
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"Checkpoint file `{path}`: {error.args[0]}") from error
    if conversion is None:
        raise CheckpointError(
            f"Checkpoint file `{path}` must be of a known format, but its names are of none, such "
            f"as `{next(iter(state_dict), '')}`."
        )
    if model_state is not None:
        check_fit(path, conversion.state_dict, model_state, strict=False)
    return conversion


def resize_bias_table(table: Tensor, size: int) -> Tensor:
    """Attention biases by distance for another grid of tokens.

    Bilinear, such that distance 0 stays distance 0 and the largest stays the largest.

    Args:
        table: (heads, n^2), one bias per pair of distances (rows, columns) below n.
        size: m^2, entries per head of the result.

    Returns:
        (heads, m^2).
    """
    if table.shape[1] == size:
        return table
    old, new = round(table.shape[1] ** 0.5), round(size**0.5)
    grid = table.reshape(1, -1, old, old)
    resized = F.interpolate(grid, size=(new, new), mode="bilinear", align_corners=True)
    return resized.reshape(-1, size)


def _drop_batch_counts(
    ours: dict[str, Tensor], dropped: dict[str, str], model_state: Mapping[str, Tensor]
) -> None:
    """Leave out the counters of batch norms that the model has frozen, and so without counters."""
    for name in [name for name in ours if name.endswith(".num_batches_tracked")]:
        if name not in model_state and f"{name.rpartition('.')[0]}.running_mean" in model_state:
            del ours[name]
            dropped[name] = "counts batches for a batch norm that is frozen here"


def _reset_classifier(
    ours: dict[str, Tensor], dropped: dict[str, str], model_state: Mapping[str, Tensor] | None
) -> None:
    for name in [name for name in ours if _CLASSIFIER.fullmatch(name)]:
        if _CLASS_ENTRIES.fullmatch(name) or (model_state is not None and name not in model_state):
            del ours[name]
            dropped[name] = "the classifier is reset, as asked for"


def _check_names(
    source: Format, conversion: Conversion, model_state: Mapping[str, Tensor], reset: bool
) -> None:
    """Check that each converted name is the model's, and that only expected ones are missing."""
    extra = [name for name in conversion.state_dict if name not in model_state]
    if extra:
        raise ValueError(
            f"it holds {conversion.format_name}, which fits a model with {source.fits}, but this "
            f"model has no `{extra[0]}` ({len(extra)} such entries)."
        )
    lacks = re.compile(source.lacks)
    missing = [
        name
        for name in conversion.missing
        if not lacks.fullmatch(name) and not (reset and _CLASSIFIER.fullmatch(name))
    ]
    if missing:
        raise ValueError(
            f"it holds {conversion.format_name}, which fits a model with {source.fits}, but lacks "
            f"`{missing[0]}` of this model ({len(missing)} such entries); is it complete, and of "
            "the same variant?"
        )


def _summary(names: Iterable[str]) -> str:
    """Names that differ only in numbers become one: `a.0.w`, `a.1.w` -> `a.*.w (2)`."""
    counts: dict[str, int] = {}
    for name in names:
        pattern = re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
        counts[pattern] = counts.get(pattern, 0) + 1
    return ", ".join(f"{k} ({n})" if n > 1 else k for k, n in counts.items())
