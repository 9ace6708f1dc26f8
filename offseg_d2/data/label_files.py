"""Label files: stored values, or the classes of their colours, as (H, W) uint8.

Shapes: K classes, H x W pixels.
"""

from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from .coco_labels import draw_coco_label, is_coco_label
from .image_io import DataFileError, open_with_pillow, read_bytes

IGNORE_LABEL = 255
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_BITS, _PNG_COLOR_TYPE = 24, 25  # positions in the file
_TIFF_BITS = 258  # tag BitsPerSample


class LabelLut(NamedTuple):
    """Look-up table of a label map."""

    values: np.ndarray  # (256,) uint8: train id of each raw id
    valid: np.ndarray  # (256,) bool: whether the label map holds the raw id
    colors: np.ndarray | None = None  # (K, 3) uint8 RGB of the classes, if masks may have them
    ignored_colors: np.ndarray = np.zeros((0, 3), dtype=np.uint8)  # RGB, of such masks


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
    if is_coco_label(path):
        return draw_coco_label(path)
    raw, palette = read_samples(path)
    colors = None if lut is None else lut.colors
    if raw.ndim == 3:
        equal = (raw == raw[..., :1]).all()
        if equal and (colors is None or not _are_known(raw, lut)):
            return _to_bytes(path, raw[..., 0])
        return _ids_of_colors(path, raw, lut)
    if colors is not None and palette is not None:
        return _ids_of_palette(path, raw, palette, lut)
    return raw


def _ids_of_palette(path: str, raw: np.ndarray, palette: np.ndarray, lut: LabelLut) -> np.ndarray:
    """Ids (H, W) of an indexed mask: its indices, or the classes of its colours if those differ.

    Ids that are ignored have any colour, unless colours are ignored, too. Where the colours of all
    others are those of classes, but in another order, the colours count.

    Raises:
        DataFileError: some colours are those of other classes, and others are of none.
    """
    colors_only = len(lut.ignored_colors) > 0
    found = np.flatnonzero(count_ids(raw))
    used = [i for i in found if colors_only or lut.values[i] != IGNORE_LABEL]
    classes = {code: class_id for class_id, code in reversed(_classes_of_codes(lut))}
    by_color = [classes.get(int(code), -1) for code in color_codes(palette[used])]
    by_index = [int(lut.values[index]) if lut.valid[index] else -1 for index in used]
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


def _classes_of_codes(lut: LabelLut) -> list[tuple[int, int]]:
    """Train id and code of each colour that a mask may hold."""
    ignored = [(IGNORE_LABEL, int(code)) for code in color_codes(lut.ignored_colors)]
    return [*((i, int(code)) for i, code in enumerate(color_codes(lut.colors))), *ignored]


def _ids_of_colors(path: str, image: np.ndarray, lut: LabelLut | None) -> np.ndarray:
    """(H, W, 3) uint8 RGB -> (H, W) uint8, for each colour an id that means its class."""
    if lut is None or lut.colors is None:
        raise DataFileError(
            f"Label file '{path}' must hold class ids in one channel, but holds colours; give the "
            f"dataset a 'palette' in its classes.json to have them read."
        )
    codes = color_codes(image)
    ids = np.zeros(codes.shape, dtype=np.uint8)
    unknown = np.ones(codes.shape, dtype=bool)
    for class_id, code in reversed(_classes_of_codes(lut)):
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
            f"{color} in {counts[0]} pixels{more}; 'ignore_label' in classes.json may hold colours "
            f"to ignore."
        )
    return ids


def _are_known(image: np.ndarray, lut: LabelLut) -> bool:
    codes = [code for _, code in _classes_of_codes(lut)]
    return bool(np.isin(np.unique(color_codes(image)), codes).all())


def color_codes(colors: np.ndarray) -> np.ndarray:
    """Turn RGB (..., 3) uint8 into (...) int32, 0xRRGGBB."""
    red, green, blue = np.moveaxis(colors.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


def read_samples(path: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Read stored values (H, W), or colours (H, W, 3), as uint8; and the palette (256, 3) if any.

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
