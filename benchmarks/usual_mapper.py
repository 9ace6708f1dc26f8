"""A semantic segmentation mapper as it is usually written, for ``benchmarks/data.py``.

Detectron2's public classes in their usual order: Pillow reads (``read_image``), Pillow resizes
(``ResizeShortestEdge``), a crop that no class fills (``RandomCrop_CategoryAreaConstraint``), a
colour jitter on whole float32 images with OpenCV's HSV, a flip, and NumPy to PyTorch. Scales, crop,
jitter and label map are this project's, so both mappers do the same work. Left out on purpose are
steps that only one of them would have: padding, and one mask for each class.
"""

from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.data.transforms import Augmentation, NoOpTransform, Transform

IGNORED = 255


class JitterTransform(Transform):
    """Brightness, contrast, saturation and hue of an RGB uint8 image, step by step."""

    def __init__(self) -> None:
        super().__init__()

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        img = img[:, :, ::-1]
        img = self._brightness(img)
        contrast_first = np.random.randint(2)
        if contrast_first:
            img = self._contrast(img)
        img = self._hue(self._saturation(img))
        if not contrast_first:
            img = self._contrast(img)
        return img[:, :, ::-1]

    def _convert(self, img: np.ndarray, alpha: float = 1, beta: float = 0) -> np.ndarray:
        img = img.astype(np.float32) * alpha + beta
        return np.clip(img, 0, 255).astype(np.uint8)

    def _brightness(self, img: np.ndarray) -> np.ndarray:
        if np.random.randint(2):
            return self._convert(img, beta=np.random.uniform(-32, 32))
        return img

    def _contrast(self, img: np.ndarray) -> np.ndarray:
        if np.random.randint(2):
            return self._convert(img, alpha=np.random.uniform(0.5, 1.5))
        return img

    def _saturation(self, img: np.ndarray) -> np.ndarray:
        if np.random.randint(2):
            img = cv2.cvtColor(img, cv2.COLOR_BGR2HSV)
            img[:, :, 1] = self._convert(img[:, :, 1], alpha=np.random.uniform(0.5, 1.5))
            return cv2.cvtColor(img, cv2.COLOR_HSV2BGR)
        return img

    def _hue(self, img: np.ndarray) -> np.ndarray:
        if np.random.randint(2):
            img = cv2.cvtColor(img, cv2.COLOR_BGR2HSV)
            img[:, :, 0] = (img[:, :, 0].astype(int) + np.random.randint(-18, 18)) % 180
            return cv2.cvtColor(img, cv2.COLOR_HSV2BGR)
        return img

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation

    def inverse(self) -> Transform:
        return NoOpTransform()


class Jitter(Augmentation):
    """Random :class:`JitterTransform`; it draws while it is applied."""

    def __init__(self) -> None:
        super().__init__()

    def get_transform(self, image: np.ndarray) -> Transform:
        return JitterTransform()


class UsualMapper:
    """Read, augment and convert one record.

    Args:
        cfg: of this project; its scales, crop and probabilities are taken.
        height, width: of the images, in pixels: "keep_ratio" with this ratio of sides is what
            ``ResizeShortestEdge`` does.
        lut: (256,) uint8, train id of each raw label id.
    """

    def __init__(self, cfg: CfgNode, height: int, width: int, lut: np.ndarray) -> None:
        size = cfg.INPUT.RESIZE.SCALE
        factor = min(max(size) / max(height, width), min(size) / min(height, width))
        edges = [int(min(height, width) * factor * r) for r in cfg.INPUT.RESIZE.RATIO_RANGE]
        crop = T.RandomCrop_CategoryAreaConstraint(
            "absolute", cfg.INPUT.CROP.SIZE, cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA, IGNORED
        )
        self.augmentations = T.AugmentationList(
            [
                T.ResizeShortestEdge(edges, max_size=2 * max(size), sample_style="range"),
                crop,
                Jitter(),
                T.RandomFlip(cfg.INPUT.FLIP_PROBABILITY),
            ]
        )
        self.lut = lut

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        record = dict(record)
        image = utils.read_image(record["file_name"], format="RGB")
        utils.check_image_size(record, image)
        labels = self.read_labels(record["sem_seg_file_name"])
        aug_input = T.AugInput(image, sem_seg=labels)
        self.augmentations(aug_input)
        image, labels = aug_input.image, aug_input.sem_seg
        record["image"] = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        record["sem_seg"] = torch.as_tensor(labels.astype("long"))
        return record

    def read_labels(self, path: str) -> np.ndarray:
        """(H, W) uint8 train ids."""
        return self.lut[utils.read_image(path)]
