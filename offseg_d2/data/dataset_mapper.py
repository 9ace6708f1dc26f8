"""Conversion of a dataset's entry (file names) to the model's input (tensors).

One mapper; ``INPUT.DATASET_MAPPER_NAME`` says whether it adds the masks of the classes.
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data.transforms import AugInput, Augmentation, AugmentationList
from detectron2.structures import Instances

from .augmentation import build_augmentations
from .batches import DRAWS
from .device_augmentation import DeviceAugmentation, split_for_device
from .fused import ResizeCrop, fuse
from .image_io import DataFileError, EncodedImage
from .image_settings import DEFAULT_SETTINGS, ImageSettings
from .label_map import (
    IGNORE_LABEL,
    LabelLut,
    joint_metadata,
    label_lut_of,
    read_label_map,
)

# `INPUT.DATASET_MAPPER_NAME` -> whether the mapper yields instances.
_MAPPERS = {"sem_seg": False, "instances": True}


class SemSegDatasetMapper:
    """Read image and label map, map labels to train ids, augment, make tensors.

    Args:
        is_train: also yield the label map; at test it is left to the evaluator.
        augmentations: applied in order to the BGR uint8 image and the train ids.
        image_format: "RGB" or "BGR" of the yielded image.
        label_lut: table of the dataset's label map; needed in training.
        with_instances: in training also yield one binary mask for each class that is present.
        on_device: augmentation that is left to the loader, after the others.
        reduced_jpeg_decoding: in training decode a JPEG at 1/2, 1/4 or 1/8 of its scale where it
            is resized to less than that; pixels differ a little.
        settings: how the values of image files become colours.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: list[Augmentation],
        image_format: str = "RGB",
        label_lut: LabelLut | None = None,
        with_instances: bool = False,
        on_device: DeviceAugmentation | None = None,
        reduced_jpeg_decoding: bool = False,
        settings: ImageSettings = DEFAULT_SETTINGS,
    ) -> None:
        if image_format not in ("RGB", "BGR"):
            raise ValueError(
                f"`INPUT.FORMAT` must be one of ['BGR', 'RGB'], but is {image_format!r}."
            )
        if is_train and label_lut is None:
            raise ValueError("`label_lut` must be given for training, but is None.")
        self.is_train = is_train
        self.augmentations = AugmentationList(augmentations)
        self.image_format = image_format
        self.label_lut = label_lut
        self.with_instances = with_instances
        self.on_device = on_device
        self.reduced_jpeg_decoding = reduced_jpeg_decoding and is_train
        self.settings = settings

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool) -> dict[str, Any]:
        lut = None
        augmentations = fuse(build_augmentations(cfg, is_train))
        on_device = None
        if is_train:
            lut = label_lut_of(joint_metadata(cfg.DATASETS.TRAIN))
        if is_train and cfg.INPUT.AUGMENT_ON_DEVICE:
            augmentations, last = split_for_device(augmentations)
            on_device = DeviceAugmentation(last, red_first=cfg.INPUT.FORMAT == "RGB")
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "on_device": on_device,
            "image_format": cfg.INPUT.FORMAT,
            "label_lut": lut,
            "with_instances": _with_instances(cfg.INPUT.DATASET_MAPPER_NAME),
            "reduced_jpeg_decoding": cfg.INPUT.REDUCED_JPEG_DECODING,
            "settings": ImageSettings.from_config(cfg),
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one sample.

        Args:
            dataset_dict: with "file_name" and, in training, "sem_seg_file_name".

        Returns:
            The sample's own entries (it is not changed itself), with
            "image": (3, h, w) uint8 in ``image_format``, 0..255, augmented, not normalised;
            "height", "width": of the image as it is on disk, in pixels;
            "sem_seg": (h, w) uint8 train ids, 255 ignored (training only);
            "instances": as :func:`class_instances` of it (training only, on demand);
            "draws": the row that ``on_device`` needs, if it is given; "instances" then have no
                masks yet;
            "warning": a sentence, if 16-bit values do not fit ``INPUT.MAX_VALUE_16_BIT``.

        Raises:
            DataFileError: image or label cannot be used; names the file.
        """
        sample = dict(dataset_dict)
        encoded = EncodedImage(sample["file_name"], self.settings)
        aug_input = self._augment_reduced(sample, encoded) or self._augment(sample, encoded)
        if encoded.warning:
            sample["warning"] = encoded.warning
        sample["image"] = to_planes(aug_input.image, swap=self.image_format == "RGB")
        if aug_input.sem_seg is not None:
            # Bytes up to the model's device, where the loss makes them int64.
            sample["sem_seg"] = torch.from_numpy(np.ascontiguousarray(aug_input.sem_seg))
            if self.with_instances:
                sample["instances"] = class_instances(sample["sem_seg"])
        if self.on_device is not None:
            sample[DRAWS] = self.on_device.draw(aug_input.image)
            if self.with_instances:
                sample["instances"].remove("gt_masks")
        return sample

    def _augment(self, sample: dict[str, Any], encoded: EncodedImage) -> AugInput:
        image = encoded.decode()
        _note_size(sample, image.shape[:2])
        aug_input = AugInput(image, sem_seg=self._read_labels(sample) if self.is_train else None)
        self.augmentations(aug_input)
        return aug_input

    def _augment_reduced(self, sample: dict[str, Any], encoded: EncodedImage) -> AugInput | None:
        """Draw how the image is resized before it is decoded; None if that cannot be done."""
        if not (self.reduced_jpeg_decoding and self.augmentations.augs):
            return None
        first, *others = self.augmentations.augs
        size = encoded.upright_jpeg_size() if isinstance(first, ResizeCrop) else None
        if size is None:
            return None
        _note_size(sample, size)
        sem_seg = self._read_labels(sample)
        transform = first.draw(size, sem_seg)
        image = transform.apply_reduced(encoded.decode(transform.reduction))
        aug_input = AugInput(image, sem_seg=transform.apply_segmentation(sem_seg))
        AugmentationList(others)(aug_input)
        return aug_input

    def _read_labels(self, sample: dict[str, Any]) -> np.ndarray:
        path = sample.get("sem_seg_file_name")
        if path is None:
            raise DataFileError(f"Image '{sample['file_name']}' has no label file to train with.")
        sem_seg = read_label_map(path, self.label_lut)
        if sem_seg.shape != (sample["height"], sample["width"]):
            raise DataFileError(
                f"Label file '{path}' must have the size of its image, but has "
                f"{_size(sem_seg.shape)} and '{sample['file_name']}' has "
                f"{_size((sample['height'], sample['width']))} (width x height)."
            )
        return sem_seg


def class_instances(sem_seg: torch.Tensor) -> Instances:
    """One binary mask for each class in a label map; pixels that are ignored are in none.

    Args:
        sem_seg: (h, w) train ids of any integer type, 255 ignored.

    Returns:
        instances of the image size (h, w), M of them, which may be 0, by ascending class:
        "gt_classes": (M,) int64;
        "gt_masks": (M, h, w) bool.
    """
    classes = sem_seg.unique()  # ascending
    classes = classes[classes != IGNORE_LABEL]
    height, width = sem_seg.shape
    masks = sem_seg == classes[:, None, None]  # (M, h, w)
    return Instances((height, width), gt_classes=classes.long(), gt_masks=masks)


def build_mapper(cfg: CfgNode, is_train: bool) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Build the mapper that ``INPUT.DATASET_MAPPER_NAME`` names.

    Raises:
        ValueError: there is no mapper of that name.
    """
    return SemSegDatasetMapper(cfg, is_train)


def _with_instances(name: str) -> bool:
    if name not in _MAPPERS:
        raise ValueError(
            f"`INPUT.DATASET_MAPPER_NAME` must be one of {sorted(_MAPPERS)}, but is {name!r}."
        )
    return _MAPPERS[name]


def _note_size(sample: dict[str, Any], size: tuple[int, int]) -> None:
    """Check the height and width that the dataset states, or add those of the image."""
    stated = sample.get("height", size[0]), sample.get("width", size[1])
    if stated != size:
        raise DataFileError(
            f"Image file '{sample['file_name']}' must be {_size(stated)} as its "
            f"dataset states, but is {_size(size)} (width x height)."
        )
    sample["height"], sample["width"] = size


def to_planes(image: np.ndarray, swap: bool) -> torch.Tensor:
    """Lay an image out as the model takes it: (H, W, 3) BGR -> (3, H, W), red first if ``swap``."""
    planes = np.empty((3, *image.shape[:2]), dtype=image.dtype)
    # The only place where channels change order. cv2.split is ten times a strided copy.
    cv2.split(image, list(planes[::-1] if swap else planes))
    return torch.from_numpy(planes)


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"
