"""Raw label ids -> train ids, by a look-up table while a label file is loaded.

Datasets store labels as PNGs whose values (palette indices, if there is a palette) are the
dataset's own ids. A *label map* ``{raw id: train id}`` says what each id means; train id 255 is
ignored, and an id that the map does not hold is an error: silently training on a shifted or wrong
label file costs days. Masks in the colours of the classes are read where the dataset has a palette.
"""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from detectron2.data import Metadata, MetadataCatalog

from .image_io import DataFileError
from .label_files import IGNORE_LABEL, LabelLut, count_ids, read_raw_labels

_MAX_IDS_SHOWN = 5


def build_lut(
    label_map: Mapping[int, int],
    colors: Sequence[Sequence[int]] | None = None,
    ignored_colors: Sequence[Sequence[int]] = (),
) -> LabelLut:
    """Turn ``{raw id: train id}`` into a table; raw ids that are absent become invalid.

    Args:
        label_map: both ids in 0..255.
        colors: RGB of each class by train id, for masks that hold colours; None refuses those.
        ignored_colors: RGB that such masks hold where pixels are to be ignored.

    Raises:
        ValueError: an id is no integer in 0..255.
    """
    values = np.full(256, IGNORE_LABEL, dtype=np.uint8)
    valid = np.zeros(256, dtype=bool)
    for raw_id, train_id in label_map.items():
        for number in (raw_id, train_id):
            if not isinstance(number, int | np.integer) or not 0 <= number <= 255:
                raise ValueError(
                    f"`label_map` must map integers in 0..255 to integers in 0..255, "
                    f"but maps {raw_id!r} to {train_id!r}."
                )
        values[raw_id] = train_id
        valid[raw_id] = True
    if colors is None:
        return LabelLut(values, valid)
    ignored = np.array(ignored_colors, dtype=np.uint8).reshape(-1, 3)
    return LabelLut(values, valid, np.array(colors, dtype=np.uint8), ignored)


def label_lut_of(metadata: Metadata) -> LabelLut:
    """Build the table of a dataset: its label map, and its palette if one was given.

    Raises:
        ValueError: the metadata has no ``stuff_classes``.
    """
    colors = metadata.get("label_colors")
    return build_lut(label_map_of(metadata), colors, metadata.get("ignored_colors", ()))


def read_label_map(path: str, label_map: Mapping[int, int] | LabelLut) -> np.ndarray:
    """Read a label file and map its raw ids to train ids.

    Args:
        path: image file of class ids in one channel or in equal ones, of 1 to 16 bits; or in the
            colours of the table. Opened through iopath's PathManager.
        label_map: ``{raw id: train id}``, or its table if many files are read.

    Returns:
        (H, W) uint8 train ids; 255 is ignored.

    Raises:
        DataFileError: the file is unreadable, of another format, or holds an unmapped id.
    """
    lut = label_map if isinstance(label_map, LabelLut) else build_lut(label_map)
    raw = read_raw_labels(path, lut)
    # Ids that are not in the map become one that nothing is mapped to, which is quick to look for.
    mark = np.argmin(np.bincount(lut.values[lut.valid], minlength=256)).astype(np.uint8)
    train_ids = cv2.LUT(raw, np.where(lut.valid, lut.values, mark))
    if not lut.valid.all() and (train_ids == mark).any():
        raise DataFileError(_unknown_ids(path, raw, lut))
    return train_ids


def _unknown_ids(path: str, raw: np.ndarray, lut: LabelLut) -> str:
    unknown = np.flatnonzero((count_ids(raw) > 0) & ~lut.valid)
    ids = ", ".join(str(i) for i in unknown[:_MAX_IDS_SHOWN])
    more = ", ..." if unknown.size > _MAX_IDS_SHOWN else ""
    return (
        f"Label file '{path}' must hold ids of the label map only "
        f"({_ranges(np.flatnonzero(lut.valid))}), but holds {ids}{more}."
    )


def classes_of(metadata: Metadata) -> list[str]:
    """Return the class names of a dataset, by train id.

    Raises:
        ValueError: the metadata has no ``stuff_classes``.
    """
    if not hasattr(metadata, "stuff_classes"):
        raise ValueError(
            f"Dataset '{metadata.name}' must have `stuff_classes` in its metadata, but has none; "
            f"is it registered?"
        )
    return list(metadata.stuff_classes)


def label_map_of(metadata: Metadata) -> dict[int, int]:
    """Return the label map of a dataset.

    A dataset registered without ``label_map``, as Detectron2's tutorial does, already stores
    train ids: 0..K-1 stay, and its ``ignore_label`` (if it has one) becomes 255.

    Raises:
        ValueError: the metadata has no ``stuff_classes``.
    """
    num_classes = len(classes_of(metadata))
    if hasattr(metadata, "refresh_label_map"):
        metadata.refresh_label_map()  # which kind of label files lies there now
    if hasattr(metadata, "label_map"):
        return dict(metadata.label_map)
    identity = {i: i for i in range(num_classes)}
    ignored = getattr(metadata, "ignore_label", None)
    return identity if ignored is None else {**identity, ignored: IGNORE_LABEL}


def joint_metadata(dataset_names: Sequence[str]) -> Metadata:
    """Return the metadata of datasets that are trained on together.

    Raises:
        ValueError: no dataset is given, or they differ in classes or label map.
    """
    if not dataset_names:
        raise ValueError("`DATASETS.TRAIN` must name at least one dataset, but is empty.")
    first, *others = (MetadataCatalog.get(name) for name in dataset_names)
    expected = _definition(first)
    for other in others:
        if _definition(other) != expected:
            raise ValueError(
                f"`DATASETS.TRAIN` must name datasets with the same classes and label map, "
                f"but '{other.name}' differs from '{first.name}'."
            )
    return first


def _definition(metadata: Metadata) -> tuple[object, ...]:
    colors = (metadata.get("label_colors"), metadata.get("ignored_colors"))
    return classes_of(metadata), label_map_of(metadata), colors


def describe_label_map(metadata: Metadata) -> str:
    """Describe a label map in a line: "11 classes; raw ids 0-10 -> 0-10, 11 -> ignored"."""
    label_map = label_map_of(metadata)
    runs: list[list[tuple[int, int]]] = []
    for raw_id, train_id in sorted(label_map.items()):
        if runs and _continues(runs[-1], raw_id, train_id):
            runs[-1].append((raw_id, train_id))
        else:
            runs.append([(raw_id, train_id)])
    parts = []
    for run in runs:
        raw_ids, train_ids = zip(*run, strict=True)
        target = "ignored" if run[0][1] == IGNORE_LABEL else _ranges(train_ids)
        parts.append(f"{_ranges(raw_ids)} -> {target}")
    return f"{len(classes_of(metadata))} classes; raw ids " + ", ".join(parts)


def _continues(run: list[tuple[int, int]], raw_id: int, train_id: int) -> bool:
    last_raw, last_train = run[-1]
    if raw_id != last_raw + 1:
        return False
    if IGNORE_LABEL in (train_id, last_train):
        return train_id == last_train
    return train_id == last_train + 1


def _ranges(ids: Sequence[int]) -> str:
    """Write ascending ids as ranges: [0, 1, 2, 7] -> "0-2, 7"."""
    runs: list[list[int]] = []
    for number in ids:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = int(number)
        else:
            runs.append([int(number), int(number)])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs) or "none"
