"""Reading what a visitor uploads: within limits, and with messages that name no path."""

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError

from offseg_d2.data import DataFileError, read_image

# Pillow's names of what is accepted; it knows formats whose readers start other programs.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
_MEGA = 1_000_000


class UploadError(ValueError):
    """A file cannot be used; the message is meant for the visitor and names no path."""


@dataclass(frozen=True)
class Limits:
    """What is accepted.

    Attributes:
        max_bytes: size of a file.
        max_pixels: width times height of an image.
    """

    max_bytes: int = 20 * _MEGA
    max_pixels: int = 16 * _MEGA

    def describe(self) -> str:
        """For people, such as "up to 20 MB and 16 megapixels"."""
        megabytes, megapixels = self.max_bytes / _MEGA, self.max_pixels / _MEGA
        return f"up to {megabytes:g} MB and {megapixels:g} megapixels"


@dataclass(frozen=True)
class Upload:
    """An uploaded image.

    Attributes:
        image: (H, W, 3) uint8 RGB, turned upright as its EXIF data says.
        stem: name of the file without folder and suffix.
        notes: what was left out of the file, one sentence each.
    """

    image: np.ndarray
    stem: str
    notes: tuple[str, ...] = ()


def read_upload(path: str, limits: Limits, stem: str = "image") -> Upload:
    """Read an image that somebody uploaded.

    Size and kind are read from the header, before anything is decoded. Pixels are those of
    :func:`offseg_d2.data.read_image`.

    Args:
        path: of the file.
        limits: what is accepted.
        stem: what the visitor called it.

    Raises:
        UploadError: the file is too large, truncated or no image.
    """
    try:
        if os.path.getsize(path) > limits.max_bytes:
            raise UploadError(
                f"The file must have at most {limits.max_bytes / _MEGA:g} MB, "
                f"but has {os.path.getsize(path) / _MEGA:.1f} MB."
            )
        with PathManager.open(path, "rb") as file:
            content = file.read()
    except OSError:
        raise UploadError("The file is no longer there; please upload it again.") from None
    notes = _check_header(content, limits)
    try:
        image = read_image(path)
    except (DataFileError, cv2.error):
        raise UploadError(
            "The file must be a complete image, but is damaged or truncated."
        ) from None
    return Upload(np.ascontiguousarray(image[..., ::-1]), stem, notes)


def _check_header(content: bytes, limits: Limits) -> tuple[str, ...]:
    """Refuse what is no image or has too many pixels; tell what decoding will leave out."""
    with _opened(content) as image:
        width, height = image.size
        if width * height > limits.max_pixels:
            raise UploadError(
                f"The image must have at most {limits.max_pixels / _MEGA:g} megapixels, but has "
                f"{width * height / _MEGA:.1f} ({width} × {height}). Please make it smaller."
            )
        notes = []
        if getattr(image, "n_frames", 1) > 1:
            notes.append(f"Of {image.n_frames} pictures in the file the first one is used.")
        if image.mode.startswith("I"):
            notes.append("Its 16-bit values were reduced to 8 bits.")
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            notes.append("Its transparency is not used.")
    return tuple(notes)


@contextmanager
def _opened(content: bytes) -> Iterator[Image.Image]:
    too_large = "The image must be smaller: its header announces far too many pixels."
    kinds = ", ".join(FORMATS[:-1]) + " or " + FORMATS[-1]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own limit is the one that counts
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                yield image
    except Image.DecompressionBombError:
        raise UploadError(too_large) from None
    except UploadError:
        raise
    except UnidentifiedImageError:
        what = "is empty" if not content else "is of another kind or damaged"
        raise UploadError(f"The file must be an image ({kinds}), but {what}.") from None
    # Pillow's errors for a broken header or frame table.
    except (OSError, SyntaxError, ValueError, TypeError, EOFError):
        raise UploadError(
            "The file must be a complete image, but is damaged or truncated."
        ) from None
