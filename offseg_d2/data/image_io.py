"""Reading images, with errors that name the file.

Pixels are what OpenCV decodes, EXIF orientation applied, because the published results were
obtained that way; other decoders round differently.
"""

import contextlib
import io
import logging
import threading
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import ExifTags, Image

from .image_settings import DEFAULT_SETTINGS, MAX_PIXELS, ImageSettings
from .tiff import BandsError, TiffFile

logger = logging.getLogger(__name__)

_FLAGS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_JPEG_MAGIC = b"\xff\xd8\xff"
_UPRIGHT = 1  # of EXIF's orientations
_MAX_BANDS = 4  # of a TIFF file, of which the first three are the colours
_MEGA = 1_000_000
_pillow_limit = threading.Lock()


class DataFileError(ValueError):
    """A file of a dataset cannot be used; the message names the file and says why."""


class UnsupportedImageError(DataFileError):
    """An image is too large, or has bands that are not read."""


class TooManyPixelsError(ValueError):
    """An image is too large for Pillow to be asked."""


class EncodedImage:
    """Content of an image file, read but not decoded.

    Args:
        path: file name, opened through iopath's PathManager.
        settings: how its values become colours.

    Attributes:
        value_range: smallest and largest value of a 16-bit image, once it is decoded; else None.

    Raises:
        DataFileError: the file cannot be opened.
    """

    def __init__(self, path: str, settings: ImageSettings = DEFAULT_SETTINGS) -> None:
        self.path, self._content = path, read_bytes(path, "Image")
        self.settings = settings
        self.value_range: tuple[int, int] | None = None

    @property
    def warning(self) -> str | None:
        """A sentence on 16-bit values that do not fit the settings, once it is decoded."""
        if self.value_range is None:
            return None
        return self.settings.range_warning(f"Image file '{self.path}'", *self.value_range)

    def upright_jpeg_size(self) -> tuple[int, int] | None:
        """Height and width in the header of a JPEG that need not be turned; else None.

        Turned at reduced scale, an image could begin within a pixel: its last row or column may
        stand for less than the others.
        """
        if not self._content.startswith(_JPEG_MAGIC):
            return None
        try:
            with open_with_pillow(self._content) as image:
                upright = image.getexif().get(ExifTags.Base.Orientation, _UPRIGHT) == _UPRIGHT
                return image.size[::-1] if upright else None
        # Pillow's errors for a broken header; decoding will report what is wrong with it.
        except (OSError, SyntaxError, ValueError, TypeError):
            return None

    def decode(self, reduction: int = 1) -> np.ndarray:
        """Decode.

        Args:
            reduction: 1, or 2, 4 or 8 for a JPEG at that fraction of its scale, rounded up.

        Returns:
            (H, W, 3) uint8, BGR, 0..255, EXIF orientation applied.

        Raises:
            DataFileError: the file is empty, truncated, far too large, lacks a band, has more than
                four bands and none are chosen, or is no image.
        """
        tiff = TiffFile(self._content)
        self._check_size(tiff)
        # OpenCV gives the 16-bit values of planar files as garbage.
        bands = self.settings.bands or ((1, 2, 3) if tiff.has_wide_colors else ())
        if bands and tiff.bands:
            image = self._read_bands(tiff, bands)
        else:
            image = self._decode_colors(tiff, reduction)
        if image.dtype == np.uint16:
            self.value_range = int(image.min()), int(image.max())
            image = self.settings.to_bytes(image)
        return image

    def _decode_colors(self, tiff: TiffFile, reduction: int) -> np.ndarray:
        """(H, W, 3) uint8 or uint16, BGR."""
        if tiff.bands > _MAX_BANDS:
            raise UnsupportedImageError(
                f"Image file '{self.path}' must have at most {_MAX_BANDS} bands, of them the first "
                f"three red, green and blue, unless `INPUT.BANDS` names three, but has "
                f"{tiff.bands}."
            )
        if tiff.unsupported:
            raise UnsupportedImageError(
                f"Image file '{self.path}' must hold grey values or RGB colours of at most 16 bits "
                f"without sign, but holds {tiff.unsupported}."
            )
        encoded = np.frombuffer(tiff.without_alpha(), dtype=np.uint8)
        # OpenCV raises on an empty buffer, but returns None for one it cannot decode.
        try:
            flags = _FLAGS[reduction]
            image = cv2.imdecode(encoded, flags | cv2.IMREAD_ANYDEPTH) if encoded.size else None
            if image is not None and image.dtype not in (np.uint8, np.uint16):
                image = cv2.imdecode(encoded, flags)
        except cv2.error:  # above its limits of width, height and pixels
            raise UnsupportedImageError(
                f"Image file '{self.path}' must be of a size that OpenCV can decode, "
                "but its header announces far too many pixels."
            ) from None
        if image is None:
            raise DataFileError(
                f"Image file '{self.path}' must be a complete image that OpenCV can decode, "
                f"but is {_state(encoded.size)}."
            )
        return image

    def _read_bands(self, tiff: TiffFile, bands: Sequence[int]) -> np.ndarray:
        try:
            return np.ascontiguousarray(tiff.read_bands(bands)[..., ::-1])
        except BandsError as error:
            raise UnsupportedImageError(f"Image file '{self.path}' {error}.") from None

    def _check_size(self, tiff: TiffFile) -> None:
        """Refuse an image above the settings' limit, which is less than what OpenCV decodes."""
        limit = self.settings.max_pixels
        if limit >= MAX_PIXELS:
            return
        width, height = tiff.width, tiff.height
        if not tiff.bands:
            try:
                with open_with_pillow(self._content) as image:
                    width, height = image.size
            # What Pillow does not know or finds broken is the decoder's matter.
            except (OSError, SyntaxError, ValueError, TypeError):
                return
        if width * height > limit:
            raise UnsupportedImageError(
                f"Image file '{self.path}' must have at most {limit / _MEGA:g} megapixels "
                f"(`--max-pixels`, in Python `max_pixels`), but has {width * height / _MEGA:.1f} "
                f"({width} x {height})."
            )


class ImageReader:
    """Reads image files as a configuration says; warns once of 16-bit values that do not fit it.

    Args:
        settings: how values become colours.
    """

    def __init__(self, settings: ImageSettings = DEFAULT_SETTINGS) -> None:
        self.settings = settings
        self._warned: dict[str, str] = {}  # setdefault is one step for all threads

    def __call__(self, path: str) -> np.ndarray:
        """Decode an image, see :func:`read_image`."""
        encoded = EncodedImage(path, self.settings)
        image = encoded.decode()
        self.warn(encoded.warning)
        return image

    def warn(self, warning: str | None) -> None:
        """Log the first warning that is given."""
        if warning and self._warned.setdefault("first", warning) is warning:
            logger.warning("%s", warning)


def read_image(path: str, settings: ImageSettings = DEFAULT_SETTINGS) -> np.ndarray:
    """Decode an image.

    Args:
        path: file name, opened through iopath's PathManager.
        settings: how its values become colours.

    Returns:
        (H, W, 3) uint8, BGR, 0..255, EXIF orientation applied.

    Raises:
        DataFileError: the file cannot be read, see :meth:`EncodedImage.decode`.
    """
    return EncodedImage(path, settings).decode()


@contextlib.contextmanager
def open_with_pillow(content: bytes, formats: Sequence[str] | None = None) -> Iterator[Image.Image]:
    """Open an image by Pillow with OpenCV's limit of pixels instead of Pillow's smaller one.

    Args:
        content: of an image file.
        formats: Pillow's names of those that are read; None for all.

    Yields:
        the image, not decoded yet; its pixels must be read inside the block.

    Raises:
        TooManyPixelsError: it has more than ``MAX_PIXELS`` pixels.
        OSError, SyntaxError, TypeError: Pillow cannot read it.
    """
    with _pillow_limit:  # Pillow compares with its limit when a file is opened
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(io.BytesIO(content), formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise TooManyPixelsError(
                f"an image must have at most {MAX_PIXELS} pixels, but this has "
                f"{image.width} x {image.height}"
            )
        yield image


def read_bytes(path: str, kind: str) -> bytes:
    """Return the content of a file; ``kind`` ("Image", "Label") begins the error's sentence."""
    try:
        with PathManager.open(path, "rb") as file:
            return file.read()
    except OSError as error:
        reason = error.strerror or error
        raise DataFileError(f"{kind} file '{path}' cannot be opened: {reason}.") from error


def _state(num_bytes: int) -> str:
    return f"truncated or of another kind ({num_bytes} bytes)" if num_bytes else "empty"
