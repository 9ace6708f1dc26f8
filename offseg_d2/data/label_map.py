"""Raw label ids -> train ids, by a look-up table while a label file is loaded.

Datasets store labels as PNGs whose values (palette indices, if there is a palette) are the
dataset's own ids. A *label map* ``{raw id: train id}`` says what each id means; train id 255 is
ignored, and an id that the map does not hold is an error: silently training on a shifted or wrong
label file costs days. Masks in the colours of the classes are read where the dataset has a palette.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from detectron2.data import Metadata, MetadataCatalog
from PIL import Image, UnidentifiedImageError

from .image_io import DataFileError, open_with_pillow, read_bytes

IGNORE_LABEL = 255
_MAX_IDS_SHOWN = 5
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_BITS, _PNG_COLOR_TYPE = 24, 25  # positions in the file
_TIFF_BITS = 258  # tag BitsPerSample


class LabelLut(NamedTuple):
    """Look-up table of a label map."""

    values: np.ndarray  # (256,) uint8: train id of each raw id
    valid: np.ndarray  # (256,) bool: whether the label map holds the raw id
    colors: np.ndarray | None = None  # (K, 3) uint8 RGB of the classes, if masks may have them


def build_lut(
    label_map: Mapping[int, int], colors: Sequence[Sequence[int]] | None = None
) -> LabelLut:
    """Turn ``{raw id: train id}`` into a table; raw ids that are absent become invalid.

    Args:
        label_map: both ids in 0..255.
        colors: RGB of each class by train id, for masks that hold colours; None refuses those.

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
    return LabelLut(values, valid, None if colors is None else np.array(colors, dtype=np.uint8))


def label_lut_of(metadata: Metadata) -> LabelLut:
    """Build the table of a dataset: its label map, and its palette if one was given.

    Raises:
        ValueError: the metadata has no ``stuff_classes``.
    """
    return build_lut(label_map_of(metadata), metadata.get("label_colors"))


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


def _ids_of_palette(path: str, raw: np.ndarray, palette: np.ndarray, lut: LabelLut) -> np.ndarray:
    """Ids (H, W) of an indexed mask: its indices, or the classes of its colours if those differ.

    Ids that are ignored have any colour. Where the colours of all others are those of classes, but
    in another order, the colours count.

    Raises:
        DataFileError: some colours are those of other classes, and others are of none.
    """
    used = [i for i in np.flatnonzero(count_ids(raw)) if lut.values[i] != IGNORE_LABEL]
    by_color = [_class_of_color(palette[index], lut.colors) for index in used]
    by_index = [int(lut.values[index]) for index in used]
    known = [(a, b) for a, b in zip(by_color, by_index, strict=True) if a >= 0]
    if all(a == b for a, b in known):
        return raw
    if len(known) < len(used):
        index = next(i for i, a in zip(used, by_color, strict=True) if a < 0)
        raise DataFileError(
            f"Label file '{path}' must have the classes' colours in its palette for all its ids or "
            f"in the order of the classes, but id {index} has the colour {palette[index].tolist()}."
        )
    table = np.arange(256, dtype=np.uint8)
    for index, class_id in zip(used, by_color, strict=True):
        table[index] = np.flatnonzero(lut.valid & (lut.values == class_id))[0]
    return cv2.LUT(raw, table)


def _class_of_color(color: np.ndarray, colors: np.ndarray) -> int:
    same = np.flatnonzero((colors == color).all(axis=1))
    return int(same[0]) if len(same) else -1


def _ids_of_colors(path: str, image: np.ndarray, lut: LabelLut | None) -> np.ndarray:
    """(H, W, 3) uint8 RGB -> (H, W) uint8, for each colour an id that means its class."""
    if lut is None or lut.colors is None:
        raise DataFileError(
            f"Label file '{path}' must hold class ids in one channel, but holds colours; give the "
            f"dataset a 'palette' in its classes.json to have them read."
        )
    codes = _color_codes(image)
    ids = np.zeros(codes.shape, dtype=np.uint8)
    unknown = np.ones(codes.shape, dtype=bool)
    for class_id, code in reversed(list(enumerate(_color_codes(lut.colors)))):
        is_class = codes == code
        meaning = np.flatnonzero(lut.valid & (lut.values == class_id))
        if len(meaning):
            ids[is_class] = meaning[0]
            unknown &= ~is_class
    if unknown.any():
        found, counts = np.unique(codes[unknown], return_counts=True)
        color = [int(found[0]) >> shift & 255 for shift in (16, 8, 0)]
        more = f" and {len(found) - 1} more such colours" if len(found) > 1 else ""
        raise DataFileError(
            f"Label file '{path}' must hold colours of the dataset's palette only, but holds "
            f"{color} in {counts[0]} pixels{more}."
        )
    return ids


def _are_among(image: np.ndarray, colors: np.ndarray) -> bool:
    return bool(np.isin(np.unique(_color_codes(image)), _color_codes(colors)).all())


def _color_codes(colors: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 -> (...) int32, one number for each colour."""
    red, green, blue = np.moveaxis(colors.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


def _unknown_ids(path: str, raw: np.ndarray, lut: LabelLut) -> str:
    unknown = np.flatnonzero((count_ids(raw) > 0) & ~lut.valid)
    ids = ", ".join(str(i) for i in unknown[:_MAX_IDS_SHOWN])
    more = ", ..." if unknown.size > _MAX_IDS_SHOWN else ""
    return (
        f"Label file '{path}' must hold ids of the label map only "
        f"({_ranges(np.flatnonzero(lut.valid))}), but holds {ids}{more}."
    )


def count_ids(labels: np.ndarray) -> np.ndarray:
    """Count the pixels of each id: (H, W) uint8 -> (256,) int64."""
    # A fifth of np.bincount's time; but float32 counts exactly to 2**24 only.
    if labels.size < 1 << 24:
        return cv2.calcHist([labels], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    return np.bincount(labels.ravel(), minlength=256)


def read_raw_labels(path: str, lut: LabelLut | None = None) -> np.ndarray:
    """Return the stored values of a label file as (H, W) uint8: palette indices, not colours.

    Args:
        path: as of :func:`read_label_map`.
        lut: table of the dataset; with colours it lets masks hold those instead of values.

    Raises:
        DataFileError: the file is unreadable, or holds colours and none or others are known.
    """
    raw, palette = _read_samples(path)
    colors = None if lut is None else lut.colors
    if raw.ndim == 3:
        equal = (raw == raw[..., :1]).all()
        if equal and (colors is None or not _are_among(raw, colors)):
            return _to_bytes(path, raw[..., 0])
        return _ids_of_colors(path, raw, lut)
    if colors is not None and palette is not None:
        return _ids_of_palette(path, raw, palette, lut)
    return raw


def _read_samples(path: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Stored values (H, W), or colours (H, W, 3), as uint8; and the palette (256, 3) if any.

    Read with Pillow: OpenCV would turn a palette into colours.
    """
    encoded = read_bytes(path, "Label")
    try:
        with open_with_pillow(encoded) as image:
            stored = np.array(image)
            mode, factor = image.mode, _grey_factor(encoded, image)
            palette = np.zeros((256, 3), dtype=np.uint8) if mode == "P" else None
            if palette is not None:
                colors = np.array(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
                palette[: len(colors)] = colors
    except UnidentifiedImageError:  # whose message names a memory address, not the file
        raise DataFileError(
            f"Label file '{path}' cannot be decoded: its format is not known to Pillow."
        ) from None
    # Pillow reports broken files as OSError, SyntaxError or ValueError, depending on the format.
    except (OSError, SyntaxError, TypeError, ValueError, MemoryError) as error:
        reason = str(error) or "it is too large for this machine's memory"
        raise DataFileError(f"Label file '{path}' cannot be decoded: {reason}.") from error
    return _one_or_three_channels(path, stored, mode) // factor, palette


def _grey_factor(encoded: bytes, image: Image.Image) -> int:
    """Factor by which Pillow spreads grey values of less than 8 bits over 0..255; 1 for others."""
    bits = 8
    if encoded.startswith(_PNG_MAGIC) and encoded[_PNG_COLOR_TYPE] == 0:
        bits = encoded[_PNG_BITS]
    elif image.format == "TIFF":
        bits = image.tag_v2.get(_TIFF_BITS, (8,))[0]
    return 255 // (2**bits - 1) if image.mode == "L" and bits in (2, 4) else 1


def _one_or_three_channels(path: str, stored: np.ndarray, mode: str) -> np.ndarray:
    """(H, W) uint8 of a file with one channel, (H, W, 3) of red, green and blue."""
    if mode in ("LA", "RGBA"):  # the last channel is opacity
        stored = stored[..., :-1]
    if mode == "LA":
        stored = stored[..., 0]
    if stored.ndim == 3:
        if mode not in ("RGB", "RGBA"):
            raise DataFileError(
                f"Label file '{path}' must hold class ids in one channel, or red, green and blue, "
                f"but has mode '{mode}'."
            )
        return np.ascontiguousarray(stored)
    return _to_bytes(path, stored)


def _to_bytes(path: str, stored: np.ndarray) -> np.ndarray:
    """(H, W) whole numbers of any type -> uint8."""
    if stored.dtype.kind not in "bui":
        raise DataFileError(f"Label file '{path}' must hold whole numbers, but has fractions.")
    if stored.size and not 0 <= stored.min() <= stored.max() <= 255:
        raise DataFileError(
            f"Label file '{path}' must hold ids in 0..255, but holds {stored.min()} to "
            f"{stored.max()}."
        )
    return np.ascontiguousarray(stored.astype(np.uint8, copy=False))


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
    expected = (classes_of(first), label_map_of(first), first.get("label_colors"))
    for other in others:
        if (classes_of(other), label_map_of(other), other.get("label_colors")) != expected:
            raise ValueError(
                f"`DATASETS.TRAIN` must name datasets with the same classes and label map, "
                f"but '{other.name}' differs from '{first.name}'."
            )
    return first


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
