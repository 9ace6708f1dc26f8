"""The last augmentations of training, applied to whole batches on the device.

With ``INPUT.AUGMENT_ON_DEVICE`` the mapper draws as it does without, in the same order from the
same generator, and sends the drawn numbers along; so a sample is flipped and distorted as it would
be on the CPU. The device is asked for nothing. Hue and saturation are changed in one pass over HSV,
where the form for the CPU, which rounds to bytes in between, takes two: colours differ by rounding.
"""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.data.transforms import Augmentation, NoOpTransform, RandomFlip
from torch import Tensor

from .batches import DRAWS, CollatedBatch
from .photometric import PhotometricDistortion, PhotometricTransform

_HSV_ONE = 4096  # fixed point of OpenCV's hue and saturation


def split_for_device(
    augmentations: Sequence[Augmentation],
) -> tuple[list[Augmentation], list[Augmentation]]:
    """Augmentations for the CPU, and those at the end that can be done on the device."""
    number = len(augmentations)
    while number and isinstance(augmentations[number - 1], RandomFlip | PhotometricDistortion):
        number -= 1
    return list(augmentations[:number]), list(augmentations[number:])


class DeviceAugmentation:
    """Flips and photometric distortion of uint8 batches.

    Args:
        augmentations: as of :func:`split_for_device`, in order.
        red_first: images are RGB, not BGR.
    """

    def __init__(self, augmentations: Sequence[Augmentation], *, red_first: bool) -> None:
        self.augmentations, self.red_first = list(augmentations), red_first

    def __repr__(self) -> str:
        return f"DeviceAugmentation({self.augmentations})"

    def draw(self, image: np.ndarray) -> Tensor:
        """Draw for one image (H, W, 3), on the CPU: a row of numbers for :meth:`__call__`."""
        row: list[float] = []
        for augmentation in self.augmentations:
            transform = augmentation.get_transform(image)
            if isinstance(transform, PhotometricTransform):
                row += _numbers_of(transform)
            else:  # pixels to turn round, of what may be padded later
                turned = not isinstance(transform, NoOpTransform)
                row.append(turned * image.shape[_axis_of(augmentation)])
        return torch.tensor(row, dtype=torch.float32)

    def __call__(self, batch: CollatedBatch) -> CollatedBatch:
        """Augment images and label maps by their rows; make the masks of "instances", if any."""
        stacked = dict(batch.stacked)
        stacked["image"], stacked["sem_seg"] = self.apply(
            stacked["image"], stacked["sem_seg"], stacked.pop(DRAWS)
        )
        augmented = CollatedBatch(batch.samples, stacked, batch.sizes)
        for sample in augmented.as_samples():
            if "instances" in sample:
                classes = sample["instances"].gt_classes
                sample["instances"].gt_masks = sample["sem_seg"] == classes[:, None, None]
        return augmented

    def apply(self, images: Tensor, labels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Augment a batch.

        Args:
            images: (B, 3, H, W) uint8, padded to the right and bottom or not.
            labels: (B, H, W), as the images.
            rows: (B, N) float32, of :meth:`draw`.
        """
        first = 0
        for augmentation in self.augmentations:
            if isinstance(augmentation, RandomFlip):
                axis = _axis_of(augmentation) - 2
                images, labels = flip([images, labels], rows[:, first], axis)
                first += 1
            else:
                images = distort(images, rows[:, first : first + 6], red_first=self.red_first)
                first += 6
        return images, labels


def _axis_of(augmentation: RandomFlip) -> int:
    """Of an image (H, W, 3)."""
    return 1 if augmentation.horizontal else 0


def flip(maps: Sequence[Tensor], number: Tensor, axis: int) -> list[Tensor]:
    """Turn round the first so many rows (axis -2) or columns (axis -1).

    Args:
        maps: each (B, ..., H, W), of any type.
        number: (B,) of any type, 0 to turn nothing.
        axis: -2 or -1.
    """
    length = maps[0].shape[axis]
    places = torch.arange(length, device=number.device)
    number = number.long()[:, None]
    source = torch.where(places < number, number - 1 - places, places)  # (B, length)
    source = source[:, None] if axis == -1 else source[:, :, None]  # (B, 1, W) or (B, H, 1)
    return [
        values.gather(
            axis, source.view(-1, *[1] * (values.ndim - 3), *source.shape[1:]).expand_as(values)
        )
        for values in maps
    ]


def _numbers_of(transform: PhotometricTransform) -> list[float]:
    """What :func:`distort` needs; steps that are left out get numbers that change nothing."""
    contrast = 1.0 if transform.contrast is None else transform.contrast
    return [
        transform.brightness or 0.0,
        contrast if transform.contrast_first else 1.0,
        transform.saturation is not None or transform.hue is not None,
        1.0 if transform.saturation is None else transform.saturation,
        transform.hue or 0.0,
        1.0 if transform.contrast_first else contrast,
    ]


def distort(images: Tensor, rows: Tensor, *, red_first: bool) -> Tensor:
    """Photometric distortion with OpenCV's arithmetic.

    Args:
        images: (B, 3, H, W) uint8.
        rows: (B, 6) float32: brightness, contrast before the colours, whether the colours change,
            saturation, hue, contrast after the colours.
        red_first: images are RGB, not BGR.

    Returns:
        (B, 3, H, W) uint8.
    """
    brightness, before, coloured, saturation, hue, after = rows[:, :, None, None, None].unbind(1)
    values = _truncate(images + brightness)
    values = _truncate(values * before)
    changed = _change_colours(values, saturation[:, 0], hue[:, 0], red_first)
    values = torch.where(coloured > 0, changed, values)
    return _truncate(values * after).to(torch.uint8)


def _truncate(values: Tensor) -> Tensor:
    return values.clamp_(0, 255).floor_()


def _change_colours(values: Tensor, saturation: Tensor, hue: Tensor, red_first: bool) -> Tensor:
    """Scale S and turn H, rounded to integers as OpenCV's; (B, 3, H, W) of integers in float32."""
    red, green, blue = values.unbind(1) if red_first else values.flip(1).unbind(1)
    value, least = values.amax(1), values.amin(1)
    span = value - least
    # Which third of the circle, and how far from its middle, in units of `span`.
    turned = torch.where(
        value == red,
        green - blue,
        torch.where(value == green, blue - red + 2 * span, red - green + 4 * span),
    )
    of_hue = (30 * _HSV_ONE / span.clamp(min=1)).round_()
    turned = (turned * of_hue).add_(_HSV_ONE // 2).div_(_HSV_ONE).floor_()
    turned = turned.add_(hue).remainder_(180)  # negative ones, too, come into 0..179
    of_saturation = (255 * _HSV_ONE / value.clamp(min=1)).round_()
    grade = (span * of_saturation).add_(_HSV_ONE // 2).div_(_HSV_ONE).floor_()
    grade = _truncate(grade.mul_(saturation)).div_(255)
    # Each channel falls below `value` where the hue is far from its own.
    places = torch.arange(5, -1, -2, device=values.device)  # red, green, blue
    if not red_first:
        places = places.flip(0)
    distance = (turned[:, None] / 30 + places[:, None, None]).remainder_(6)
    distance = torch.minimum(distance, 4 - distance).clamp_(0, 1)
    # Back from HSV OpenCV cuts off instead of rounding.
    return (value[:, None] * (1 - grade[:, None] * distance)).floor_()
