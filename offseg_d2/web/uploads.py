"""Reading of uploaded images: within limits, and with messages that name no path."""

import os
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from offseg_d2.data.image_io import (
    DEFAULT_SETTINGS,
    MAX_PIXELS,
    EncodedImage,
    ImageSettings,
    TooManyPixelsError,
    open_with_pillow,
    read_bytes,
)

# Pillow's names of what is accepted; it knows formats whose readers start other programs.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
_MEGA = 1_000_000


class UploadError(ValueError):
    """A file cannot be used; the message is meant for the visitor and names no path."""


@dataclass(frozen=True)
class Limits:
    """Limits of uploaded files.

    Attributes:
        max_bytes: size of a file.
        max_pixels: width times height of an image.
    """

    max_bytes: int = 20 * _MEGA
    max_pixels: int = 16 * _MEGA

    @property
    def max_total(self) -> int:
        """Bytes of all files that the page keeps at a time."""
        return 50 * self.max_bytes

    def describe(self) -> str:
        """Describe what is accepted in one line."""
        megabytes, megapixels = self.max_bytes / _MEGA, self.max_pixels / _MEGA
        return f"{', '.join(FORMATS)}; up to {megabytes:g} MB and {megapixels:g} megapixels"


@dataclass(frozen=True)
class Upload:
    """An uploaded image.

    Attributes:
        image: (H, W, 3) uint8 RGB, turned upright as its EXIF data says.
        stem: name of the file without folder and suffix.
        notes: one sentence on each thing in the file that is not used.
    """

    image: np.ndarray
    stem: str
    notes: tuple[str, ...] = ()


def read_upload(path: str, limits: Limits, settings: ImageSettings = DEFAULT_SETTINGS) -> Upload:
    """Read an uploaded image.

    Size and kind are read from the header, before anything is decoded. Pixels are those of
    :func:`offseg_d2.data.read_image`.

    Args:
        path: of the file.
        limits: of size and pixels.
        settings: how its values become colours, but for the limit of pixels.

    Raises:
        UploadError: the file is too large, truncated or no image.
    """
    try:
        if (size := os.path.getsize(path)) > limits.max_bytes:
            raise UploadError(
                f"The file must have at most {limits.max_bytes / _MEGA:g} MB, "
                f"but has {size / _MEGA:.1f} MB."
            )
        with open_with_pillow(read_bytes(path, "Image"), FORMATS) as opened:
            notes = _check_header(opened, limits)
        encoded = EncodedImage(path, settings._replace(max_pixels=MAX_PIXELS))
        image = encoded.decode()
        if encoded.value_range:
            notes += tuple(filter(None, [settings.range_warning("It", *encoded.value_range)]))
    except UploadError:
        raise
    except FileNotFoundError:
        message = "The file is no longer there; please upload it again."
    except TooManyPixelsError:
        message = "The image must be smaller: its header announces far too many pixels."
    except UnidentifiedImageError:
        what = "is of another kind or damaged" if size else "is empty"
        message = f"The file must be an image ({', '.join(FORMATS)}), but {what}."
    # Errors of both readers for a broken header, frame table or content.
    except (OSError, SyntaxError, ValueError, TypeError, EOFError):
        message = "The file must be a complete image, but is damaged or truncated."
    else:
        stem = os.path.splitext(os.path.basename(path))[0]
        return Upload(np.ascontiguousarray(image[..., ::-1]), stem, notes)
    raise UploadError(message)


def _check_header(image: Image.Image, limits: Limits) -> tuple[str, ...]:
    """Refuse an image with too many pixels; note what decoding will leave out."""
    width, height = image.size
    if width * height > limits.max_pixels:
        raise UploadError(
            f"The image must have at most {limits.max_pixels / _MEGA:g} megapixels, but has "
            f"{width * height / _MEGA:.1f} ({width} × {height}). Please make it smaller."
        )
    notes = []
    if (frames := getattr(image, "n_frames", 1)) > 1:
        notes.append(f"Of {frames} pictures in the file the first one is used.")
    if image.mode.startswith("I"):
        notes.append("Its 16-bit values were reduced to 8 bits.")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        notes.append("Its transparency is not used.")
    return tuple(notes)
