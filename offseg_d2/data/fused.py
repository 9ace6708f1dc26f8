"""The training augmentations in a faster form with the same draws and the same pixels.

:func:`fuse` replaces what stands in a list of augmentations: a resize and the crop behind it become
one step that resizes nothing outside the crop, and Detectron2's flip copies by OpenCV. The readable
form stays in :mod:`offseg_d2.data.augmentation`; tests compare the two bit by bit.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from detectron2.data.transforms import (
    Augmentation,
    HFlipTransform,
    RandomFlip,
    Transform,
    VFlipTransform,
)

from .augmentation import CategoryLimitedCrop, KeepRatioResize, ShortestEdgeResize
from .resizing import (
    Size,
    Window,
    resize_image_window,
    resize_labels_window,
    resize_reduced_window,
)

_REDUCTIONS = (8, 4, 2)  # what JPEG decoders offer


class ResizeCropTransform(Transform):
    """Resize and crop in one: only what the crop needs is resized.

    Args:
        source: height and width before, in pixels.
        size: height and width after resizing, in pixels.
        window: the crop, in pixels of the resized image.
    """

    def __init__(self, source: Size, size: Size, window: Window) -> None:
        super().__init__()
        self.source, self.size, self.window = source, size, window

    @property
    def reduction(self) -> int:
        """Largest of 1, 2, 4, 8 by which the image could shrink first without becoming smaller
        than it is resized to."""
        shrink = min(before / after for before, after in zip(self.source, self.size, strict=True))
        return next((factor for factor in _REDUCTIONS if factor <= shrink), 1)

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        assert img.shape[:2] == self.source, (img.shape, self.source)
        return resize_image_window(img, self.size, self.window)

    def apply_reduced(self, img: np.ndarray) -> np.ndarray:
        """Apply to an image that was decoded at 1/:attr:`reduction` of its scale."""
        if self.reduction == 1:
            return self.apply_image(img)
        source = self.source[0] / self.reduction, self.source[1] / self.reduction
        return resize_reduced_window(img, source, self.size, self.window)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return resize_labels_window(segmentation, self.size, self.window)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        scale = [after / before for before, after in zip(self.source, self.size, strict=True)]
        return coords * np.array(scale[::-1]) - np.array([self.window[1], self.window[0]])


class ResizeCrop(Augmentation):
    """A random resize and the random crop of its result, with the draws of the two.

    Args:
        resize: how the image is resized.
        crop: how the result is cropped; None keeps it whole.
    """

    def __init__(
        self,
        resize: KeepRatioResize | ShortestEdgeResize,
        crop: CategoryLimitedCrop | None = None,
    ) -> None:
        super().__init__()
        self.resize, self.crop = resize, crop

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray | None) -> ResizeCropTransform:
        return self.draw(image.shape[:2], sem_seg)

    def draw(self, source: Size, sem_seg: np.ndarray | None) -> ResizeCropTransform:
        """Draw for an image of height and width ``source`` with train ids ``sem_seg``."""
        size = self.resize.draw_size(*source)
        if self.crop is None:
            return ResizeCropTransform(source, size, (0, 0, *size))

        def labels_in(window: Window) -> np.ndarray:
            return resize_labels_window(sem_seg, size, window)

        window = self.crop.draw_window(*size, None if sem_seg is None else labels_in)
        return ResizeCropTransform(source, size, window)


class CvFlipTransform(HFlipTransform):
    """Detectron2's horizontal flip by OpenCV, which leaves an array in order of memory."""

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return cv2.flip(img, 1)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return cv2.flip(segmentation, 1)


class CvVerticalFlipTransform(VFlipTransform):
    """Detectron2's vertical flip by OpenCV."""

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return cv2.flip(img, 0)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return cv2.flip(segmentation, 0)


class CvRandomFlip(RandomFlip):
    """Detectron2's ``RandomFlip`` with the transforms above."""

    def get_transform(self, image: np.ndarray) -> Transform:
        transform = super().get_transform(image)
        if isinstance(transform, HFlipTransform):
            return CvFlipTransform(transform.width)
        if isinstance(transform, VFlipTransform):
            return CvVerticalFlipTransform(transform.height)
        return transform


def fuse(augmentations: Sequence[Augmentation]) -> list[Augmentation]:
    """Return augmentations that draw and give the same; those it does not know stay."""
    fused: list[Augmentation] = []
    for augmentation in augmentations:
        if type(augmentation) in (KeepRatioResize, ShortestEdgeResize):
            fused.append(ResizeCrop(augmentation))
        elif type(augmentation) is CategoryLimitedCrop and _lacks_crop(fused):
            fused[-1] = ResizeCrop(fused[-1].resize, augmentation)
        elif type(augmentation) is RandomFlip:
            sides = {"horizontal": augmentation.horizontal, "vertical": augmentation.vertical}
            fused.append(CvRandomFlip(augmentation.prob, **sides))
        else:
            fused.append(augmentation)
    return fused


def _lacks_crop(fused: list[Augmentation]) -> bool:
    return bool(fused) and isinstance(fused[-1], ResizeCrop) and fused[-1].crop is None
