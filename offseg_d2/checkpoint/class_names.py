"""The classes of a checkpoint against those of the data sets that it is used with."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from offseg_d2.utils.cli import escape_controls

from .safe_load import CheckpointError

logger = logging.getLogger(__name__)


def check_class_names(
    path: str, data: Mapping[str, Any], datasets: Iterable[str], *, must_agree: bool = False
) -> None:
    """Compare the names in a checkpoint's entry ``classes`` with those of data sets.

    Another number of classes is not looked at: such weights do not fit anyway.

    Args:
        path: of the checkpoint, for the message.
        data: its entries; a file without class names passes.
        datasets: names in Detectron2's catalog; those without class names pass.
        must_agree: raise instead of warning.

    Raises:
        CheckpointError: names or their order differ, and ``must_agree``.
    """
    classes = data.get("classes")
    trained = classes.get("names") if isinstance(classes, Mapping) else None
    if not isinstance(trained, list):
        return
    from detectron2.data import MetadataCatalog  # late: reading weights needs no data sets

    for dataset in dict.fromkeys(datasets):
        names = list(MetadataCatalog.get(dataset).get("stuff_classes", []))
        if len(names) != len(trained) or names == trained:
            continue
        index = next(i for i, name in enumerate(names) if name != trained[i])
        kind = "their order" if sorted(map(str, trained)) == sorted(names) else "names"
        message = (
            f"Checkpoint file `{path}` must have the classes of the data set '{dataset}' in this "
            f"order, but {kind} differ: class {index} is {trained[index]!r} there and "
            f"{names[index]!r} here.\n"
            f"  checkpoint: {_listed(trained)}\n  data set: {_listed(names)}"
        )
        if must_agree:
            raise CheckpointError(message)
        logger.warning("%s", message)


def _listed(names: Iterable[Any]) -> str:
    return escape_controls(", ".join(map(str, names)))
