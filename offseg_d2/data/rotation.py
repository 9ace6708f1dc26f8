"""Rotations by right angles, for images without an upper side."""

import cv2
import numpy as np
from detectron2.data.transforms import Augmentation, NoOpTransform, Transform

# Quarter turns, counter-clockwise -> OpenCV's name.
_ROTATIONS = {1: cv2.ROTATE_90_COUNTERCLOCKWISE, 2: cv2.ROTATE_180, 3: cv2.ROTATE_90_CLOCKWISE}


class Rotate90Transform(Transform):
    """Rotation by a multiple of 90 degrees; no pixel is interpolated.

    Args:
        height, width: before, in pixels.
        turns: 1 to 3 quarter turns, counter-clockwise.
    """

    def __init__(self, height: int, width: int, turns: int) -> None:
        super().__init__()
        self.height, self.width, self.turns = height, width, turns

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return cv2.rotate(img, _ROTATIONS[self.turns])

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return cv2.rotate(segmentation, _ROTATIONS[self.turns])

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        x, y = coords[:, 0], coords[:, 1]
        turned = {
            1: (y, self.width - x),
            2: (self.width - x, self.height - y),
            3: (self.height - y, x),
        }
        return np.stack(turned[self.turns], axis=1)

    def inverse(self) -> "Rotate90Transform":
        size = (self.width, self.height) if self.turns % 2 else (self.height, self.width)
        return Rotate90Transform(*size, 4 - self.turns)


class RandomRotate90(Augmentation):
    """Rotate by 90, 180 or 270 degrees, each as likely.

    Args:
        prob: probability that the image is rotated at all.
    """

    def __init__(self, prob: float) -> None:
        super().__init__()
        self.prob = prob

    def get_transform(self, image: np.ndarray) -> Transform:
        if np.random.uniform() >= self.prob:
            return NoOpTransform()
        return Rotate90Transform(*image.shape[:2], np.random.randint(1, 4))
