"""Conversion of an image as OpenCV reads it to a network's input."""

from typing import Any

import numpy as np

from offseg_d2.data import to_planes
from offseg_d2.data.resizing import resize_image


def to_sample(image: np.ndarray, size: tuple[int, int], channels: str) -> dict[str, Any]:
    """Resize an image and order its channels as a network reads them.

    Args:
        image: (H, W, 3) uint8 **BGR**.
        size: (height, width) for the network, in pixels.
        channels: "RGB" or "BGR".

    Returns:
        "image" (3, height, width) uint8; "height" and "width", those of the given image.
    """
    resized = resize_image(image, size)
    planes = to_planes(resized, swap=channels == "RGB")
    return {"image": planes, "height": image.shape[0], "width": image.shape[1]}
