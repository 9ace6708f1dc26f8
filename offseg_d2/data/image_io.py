"""Reading images, with errors that name the file.

Pixels are what OpenCV decodes, EXIF orientation applied, because the published results were
obtained that way; other decoders round differently.
"""

import contextlib
import io
import threading
from collections.abc import Iterator

import cv2
import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import ExifTags, Image

from .tiff import ignore_alpha

_FLAGS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_JPEG_MAGIC = b"\xff\xd8\xff"
_UPRIGHT = 1  # of EXIF's orientations
MAX_PIXELS = 1 << 30  # OpenCV's limit, which holds for what Pillow reads as well
_MAX_BANDS = 4  # of a TIFF file, of which the first three are the colours
_pillow_limit = threading.Lock()


class DataFileError(ValueError):
    """A file of a dataset cannot be used; the message names the file and says why."""


class EncodedImage:
    """Content of an image file, read but not decoded.

    Args:
        path: file name, opened through iopath's PathManager.

    Raises:
        DataFileError: the file cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self.path, self._content = path, read_bytes(path, "Image")

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
            DataFileError: the file is empty, truncated, far too large, has more than four bands,
                or is no image.
        """
        content, bands = ignore_alpha(self._content)
        if bands > _MAX_BANDS:
            raise DataFileError(
                f"Image file '{self.path}' must have at most {_MAX_BANDS} bands, of them "
                f"the first three red, green and blue, but has {bands}."
            )
        encoded = np.frombuffer(content, dtype=np.uint8)
        # OpenCV raises on an empty buffer, but returns None for one it cannot decode.
        try:
            image = cv2.imdecode(encoded, _FLAGS[reduction]) if encoded.size else None
        except cv2.error:  # above its limits of width, height and pixels
            raise DataFileError(
                f"Image file '{self.path}' must be of a size that OpenCV can decode, "
                "but its header announces far too many pixels."
            ) from None
        if image is None:
            raise DataFileError(
                f"Image file '{self.path}' must be a complete image that OpenCV can decode, "
                f"but is {_state(encoded.size)}."
            )
        return image


def read_image(path: str) -> np.ndarray:
    """Decode an image.

    Args:
        path: file name, opened through iopath's PathManager.

    Returns:
        (H, W, 3) uint8, BGR, 0..255, EXIF orientation applied.

    Raises:
        DataFileError: the file is missing, empty, truncated or no image.
    """
    return EncodedImage(path).decode()


@contextlib.contextmanager
def open_with_pillow(content: bytes) -> Iterator[Image.Image]:
    """Open an image by Pillow with OpenCV's limit of pixels instead of Pillow's smaller one.

    Args:
        content: of an image file.

    Yields:
        the image, not decoded yet; its pixels must be read inside the block.

    Raises:
        ValueError: it has more than ``MAX_PIXELS`` pixels.
        OSError, SyntaxError, TypeError: Pillow cannot read it.
    """
    with _pillow_limit:  # Pillow compares with its limit when a file is opened
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(io.BytesIO(content))
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(
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
