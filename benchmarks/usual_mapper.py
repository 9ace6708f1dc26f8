"""A semantic segmentation mapper as it is usually written, for ``benchmarks/data.py``.

Detectron2's public classes in their usual order: Pillow reads (``read_image``), Pillow resizes
(``ResizeShortestEdge``), a crop that no class fills (``RandomCrop_CategoryAreaConstraint``), a
colour jitter (``ColorAugSSDTransform``), a flip, and NumPy to PyTorch. Scales, crop, jitter and
label map are this project's, so both mappers do the same work. Left out on purpose are
steps that only one of them would have: padding, and one mask for each class.
"""

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform

IGNORED = 255


class UsualMapper:
    """Reads, augments and converts one sample.

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
                ColorAugSSDTransform("RGB"),
                T.RandomFlip(cfg.INPUT.FLIP_PROBABILITY),
            ]
        )
        self.lut = lut

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        sample = dict(sample)
        image = utils.read_image(sample["file_name"], format="RGB")
        utils.check_image_size(sample, image)
        labels = self.read_labels(sample["sem_seg_file_name"])
        aug_input = T.AugInput(image, sem_seg=labels)
        self.augmentations(aug_input)
        image, labels = aug_input.image, aug_input.sem_seg
        sample["image"] = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        sample["sem_seg"] = torch.as_tensor(labels.astype("long"))
        return sample

    def read_labels(self, path: str) -> np.ndarray:
        """(H, W) uint8 train ids."""
        return self.lut[utils.read_image(path)]
