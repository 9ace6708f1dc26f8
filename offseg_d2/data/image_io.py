"""Reading images, with errors that name the file.

Pixels are what OpenCV decodes, EXIF orientation applied, because the published results were
obtained that way; other decoders round differently.
"""

import cv2
import numpy as np
from detectron2.utils.file_io import PathManager


class DataFileError(ValueError):
    """A file of a dataset cannot be used; the message names the file and says why."""


def read_image(path: str) -> np.ndarray:
    """Decode an image.

    Args:
        path: file name, opened through iopath's PathManager.

    Returns:
        (H, W, 3) uint8, BGR, 0..255, EXIF orientation applied.

    Raises:
        DataFileError: the file is missing, empty, truncated or no image.
    """
    encoded = np.frombuffer(read_bytes(path, "Image"), dtype=np.uint8)
    # OpenCV raises on an empty buffer, but returns None for one it cannot decode.
    image = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if encoded.size else None
    if image is None:
        raise DataFileError(
            f"Image file '{path}' must be a complete image that OpenCV can decode, "
            f"but is {_state(encoded.size)}."
        )
    return image


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
