"""Photometric distortion with OpenCV's arithmetic, on uint8 BGR images.

Detectron2 ``Augmentation`` and ``Transform``; see :mod:`offseg_d2.data.augmentation`.
"""

import cv2
import numpy as np
from detectron2.data.transforms import Augmentation, NoOpTransform, Transform

_IDENTITY = np.arange(256, dtype=np.uint8)  # table of 256 entries


class PhotometricTransform(Transform):
    """Brightness, contrast, saturation and hue of a uint8 BGR image; geometry is untouched.

    Each step is computed in float32, clipped to 0..255 and truncated; as it acts on single values,
    it is a table of 256 entries, and steps in a row are one look-up.

    Args:
        brightness: added to each value, or None.
        contrast: factor on each value, or None.
        saturation: factor on OpenCV's S, or None.
        hue: added to OpenCV's H (0..179, cyclic), or None.
        contrast_first: contrast before saturation and hue, or after them.
    """

    def __init__(
        self,
        brightness: float | None,
        contrast: float | None,
        saturation: float | None,
        hue: int | None,
        contrast_first: bool,
    ) -> None:
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        if img.dtype != np.uint8:
            raise TypeError(f"Photometric distortion needs a uint8 image, but got {img.dtype}.")
        values = np.arange(256, dtype=np.float32)
        table = _IDENTITY
        if self.brightness is not None:
            table = _truncate(table.astype(np.float32) + np.float32(self.brightness))
        if self.contrast_first:
            table = self._scale(table)
        if self.saturation is not None or self.hue is not None:
            img, table = _look_up(img, table), _IDENTITY
        if self.saturation is not None:
            img = _map_hsv_channel(img, 1, _truncate(values * np.float32(self.saturation)))
        # To HSV and back once more on purpose: both round to integers.
        if self.hue is not None:
            img = _map_hsv_channel(img, 0, _truncate((values + self.hue) % 180))
        if not self.contrast_first:
            table = self._scale(table)
        return _look_up(img, table)

    def _scale(self, table: np.ndarray) -> np.ndarray:
        if self.contrast is None:
            return table
        return _truncate(table.astype(np.float32) * np.float32(self.contrast))

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation

    def inverse(self) -> Transform:
        return NoOpTransform()


class PhotometricDistortion(Augmentation):
    """Random :class:`PhotometricTransform`, each step with probability one half.

    Brightness + U(-32, 32); contrast x U(0.5, 1.5), before or after the other two by a coin;
    saturation x U(0.5, 1.5); hue + an integer in [-18, 17] of 180.
    """

    def __init__(self) -> None:  # Detectron2 prints an augmentation by the arguments of its own
        super().__init__()

    def get_transform(self, image: np.ndarray) -> Transform:
        uniform = np.random.uniform
        brightness = uniform(-32, 32) if _coin() else None
        contrast_first = _coin()
        contrast = uniform(0.5, 1.5) if contrast_first and _coin() else None
        saturation = uniform(0.5, 1.5) if _coin() else None
        hue = int(np.random.randint(-18, 18)) if _coin() else None
        if not contrast_first and _coin():
            contrast = uniform(0.5, 1.5)
        return PhotometricTransform(brightness, contrast, saturation, hue, contrast_first)


def _coin() -> bool:
    return bool(np.random.randint(2))


def _truncate(values: np.ndarray) -> np.ndarray:
    return np.clip(values, 0, 255).astype(np.uint8)


def _look_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    return image if np.array_equal(table, _IDENTITY) else cv2.LUT(image, table)


def _map_hsv_channel(image: np.ndarray, channel: int, table: np.ndarray) -> np.ndarray:
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    # A table for each of three channels would take OpenCV twice as long.
    cv2.insertChannel(cv2.LUT(cv2.extractChannel(hsv, channel), table), hsv, channel)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
