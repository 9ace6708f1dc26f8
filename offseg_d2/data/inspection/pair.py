"""The check of one image and its label map; runs in worker processes."""

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..coco_labels import is_coco_label
from ..image_io import (
    DEFAULT_SETTINGS,
    DataFileError,
    EncodedImage,
    ImageSettings,
    UnsupportedImageError,
    open_with_pillow,
    read_bytes,
)
from ..label_map import IGNORE_LABEL, LabelLut, read_raw_labels
from .faults import Fault
from .integrity import checksum_error, decoder_complaints, truncation

# EXIF orientations that exchange width and height (EXIF 2.32, tag 0x0112), and the tag itself.
_EXCHANGING_ORIENTATIONS, _ORIENTATION_TAG = (5, 6, 7, 8), 0x0112
_CHECKED_FORMATS = ("JPEG", "MPO", "PNG")  # by integrity.py
_USUAL_IMAGE_MODES = ("RGB", "L", "P", "1")
_MAX_IDS_SHOWN = 5


class PairResult(NamedTuple):
    """Findings about one sample."""

    faults: tuple[Fault, ...] = ()
    image_found: bool = False
    label_found: bool = False
    size: tuple[int, int] | None = None  # (height, width) of the image as it is read
    digest: bytes | None = None  # of the image file's content
    value_range: tuple[int, int] | None = None  # of a 16-bit image
    id_counts: dict[int, int] | None = None  # raw label id -> pixels, of those that occur


class _FileError(Exception):
    """Ends the check of one file."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class _Header(NamedTuple):
    """Facts that Pillow reads of a file; a format of "" means that it does not know it."""

    format: str
    mode: str
    orientation: int  # EXIF, 1 if there is none


def check_pair(
    sample: dict[str, Any], lut: LabelLut, settings: ImageSettings = DEFAULT_SETTINGS
) -> PairResult:
    """Read an image and its label map as training does, and strictly besides.

    Args:
        sample: of the dataset, with "file_name" and, unless it is for testing only,
            "sem_seg_file_name".
        lut: table of the dataset's label map.
        settings: how the values of image files become colours.

    Returns:
        all that is wrong with the two; nothing is raised, whatever the files hold.
    """
    try:
        return _check_pair(sample, lut, settings)
    except Exception as error:  # such as too little memory for an image of absurd size
        text = f"cannot be checked: {type(error).__name__}: {error}"
        return PairResult((Fault("crash", sample["file_name"], text),))


def _check_pair(sample: dict[str, Any], lut: LabelLut, settings: ImageSettings) -> PairResult:
    faults: list[Fault] = []
    image, label = sample["file_name"], sample.get("sem_seg_file_name")
    result = PairResult(image_found=True, label_found=label is not None)
    header, raw = _Header("", "", 1), None
    try:
        size, digest, header, values = _check_image(image, sample, settings, faults)
        result = result._replace(size=size, digest=digest, value_range=values)
    except _FileError as error:
        partner = f"; its label map is '{label}'" if label and error.kind == "missing_image" else ""
        faults.append(Fault(error.kind, image, f"{error}{partner}"))
        result = result._replace(image_found=error.kind != "missing_image")
    try:
        raw = None if label is None else _check_label(label, lut)
    except _FileError as error:
        partner = f"; its image is '{image}'" if error.kind == "missing_label" else ""
        faults.append(Fault(error.kind, label, f"{error}{partner}"))
        result = result._replace(label_found=error.kind != "missing_label")
    if raw is not None:
        counts = np.bincount(raw.ravel(), minlength=256)
        faults += _check_ids(label, counts, lut)
        if result.size is not None:
            faults += _check_sizes(image, result.size, header.orientation, label, raw.shape)
        result = result._replace(id_counts={int(i): int(counts[i]) for i in np.flatnonzero(counts)})
    return result._replace(faults=tuple(faults))


def _check_image(
    path: str, sample: dict[str, Any], settings: ImageSettings, faults: list[Fault]
) -> tuple[tuple[int, int], bytes, _Header, tuple[int, int] | None]:
    """Return size, digest, header and range of 16-bit values of a usable image.

    What is merely odd goes to ``faults``.
    """
    encoded = _read_whole(path, "Image")
    header = _header_of(encoded)
    with decoder_complaints() as complaints:
        try:
            image = EncodedImage(path, settings)
            height, width = image.decode().shape[:2]
        except UnsupportedImageError as error:
            text = str(error).removeprefix(f"Image file '{path}' ").rstrip(".")
            raise _FileError("unreadable", text) from None
        except DataFileError:
            raise _undecodable(encoded, header) from None
    faults += [Fault("damaged", path, f"is decoded with '{text}'") for text in complaints[:1]]
    if header.mode not in _USUAL_IMAGE_MODES:
        text = f"has mode '{header.mode}', which is converted to 8-bit colours"
        faults.append(Fault("image_format", path, text))
    recorded = sample.get("height", height), sample.get("width", width)
    if recorded != (height, width):
        text = f"is {width}x{height}, but its dataset records {recorded[1]}x{recorded[0]}"
        faults.append(Fault("size", path, text))
    digest = hashlib.blake2b(encoded, digest_size=16).digest()
    return (height, width), digest, header, image.value_range


def _check_label(path: str, lut: LabelLut) -> np.ndarray:
    """Return the raw ids, (H, W) uint8, of a usable label file."""
    if is_coco_label(path):
        try:
            return read_raw_labels(path)
        except DataFileError as error:
            text = str(error).removeprefix(f"Label file '{path}' ").rstrip(".")
            raise _FileError("label_format", text) from None
    encoded = _read_whole(path, "Label")
    header = _header_of(encoded)
    if header.format == "JPEG":
        raise _FileError("label_format", "is a JPEG, whose compression changes the ids")
    try:
        return read_raw_labels(path, lut)
    except DataFileError as error:
        if header.format and error.__cause__ is None:  # read, but not what a label map holds
            text = str(error).removeprefix(f"Label file '{path}' ").rstrip(".")
            raise _FileError("label_format", f"{text} (mode '{header.mode}')") from None
        raise _undecodable(encoded, header, error.__cause__ or error) from None


def _read_whole(path: str, kind: str) -> bytes:
    """Return the content of a file that is there, not empty and complete."""
    try:
        encoded = read_bytes(path, kind)
    except DataFileError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise _FileError(f"missing_{kind.lower()}", "is not there") from None
        reason = getattr(error.__cause__, "strerror", None) or error.__cause__
        raise _FileError("unreadable", f"cannot be opened: {reason}") from None
    if not encoded:
        raise _FileError("empty", "has no content")
    if text := truncation(encoded):
        raise _FileError("truncated", text)
    if text := checksum_error(encoded):
        raise _FileError("corrupt", text)
    return encoded


def _header_of(encoded: bytes) -> _Header:
    """Open with Pillow; decode as well what the structural checks do not know."""
    try:
        with open_with_pillow(encoded) as image:
            if image.format not in _CHECKED_FORMATS:
                image.load()
            return _Header(str(image.format), image.mode, _orientation_of(image))
    except Image.UnidentifiedImageError:
        return _Header("", "RGB", 1)
    except Exception as error:  # Pillow reports broken files by many types
        kind = "truncated" if "truncated" in str(error) else "unreadable"
        raise _FileError(kind, f"cannot be decoded: {error}") from None


def _orientation_of(image: Image.Image) -> int:
    try:
        orientation = int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # whatever a broken EXIF block makes of Pillow; decoders ignore such a block
        return 1
    return orientation if 1 <= orientation <= 8 else 1


def _undecodable(encoded: bytes, header: _Header, reason: object = "") -> _FileError:
    if header.format:
        text = f"looks like {header.format}, but cannot be decoded"
        return _FileError("unreadable", f"{text}: {reason}" if reason else text)
    return _FileError("unreadable", f"is no image: it begins with {encoded[:8]!r}")


def _check_ids(path: str, counts: np.ndarray, lut: LabelLut) -> Iterator[Fault]:
    unknown = np.flatnonzero((counts > 0) & ~lut.valid)
    if unknown.size:
        text = ", ".join(f"{i} ({_pixels(counts[i])})" for i in unknown[:_MAX_IDS_SHOWN])
        more = f" and {unknown.size - _MAX_IDS_SHOWN} more" if unknown.size > _MAX_IDS_SHOWN else ""
        yield Fault("unknown_ids", path, f"holds {text}{more}, which the label map lacks")
    elif not counts[lut.values != IGNORE_LABEL].any():
        ids = [str(i) for i in np.flatnonzero(counts)]
        more = ", ..." if len(ids) > _MAX_IDS_SHOWN else ""
        text = ", ".join(ids[:_MAX_IDS_SHOWN]) + more
        yield Fault("all_ignored", path, f"holds ignored ids only: {text}")


def _check_sizes(
    image: str, size: tuple[int, int], orientation: int, label: str, label_size: tuple[int, ...]
) -> Iterator[Fault]:
    """Compare image and label map, (height, width) each."""
    height, width = size
    shown = f"{width}x{height}"
    if size == label_size:
        seen_in_size = orientation in _EXCHANGING_ORIENTATIONS and height != width
        if orientation != 1 and not seen_in_size:
            text = (
                f"has EXIF orientation {orientation}, which is applied; label maps are not turned"
            )
            yield Fault("mirrored", image, text)
    elif orientation in _EXCHANGING_ORIENTATIONS and size == label_size[::-1]:
        text = f"is {shown} once its EXIF orientation {orientation} is applied, but '{label}' is "
        yield Fault("turned", image, f"{text}{label_size[1]}x{label_size[0]}")
    else:
        text = f"is {label_size[1]}x{label_size[0]}, but its image '{image}' is {shown}"
        yield Fault("size", label, text)


def _pixels(count: int) -> str:
    return f"{count} pixel" if count == 1 else f"{count} pixels"
