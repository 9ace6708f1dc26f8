"""Images of different sizes in one batch."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def pad_to(tensor: Tensor, height: int, width: int, value: float = 0) -> Tensor:
    """Pad (..., h, w) on the right and bottom to (..., height, width)."""
    if tuple(tensor.shape[-2:]) == (height, width):
        return tensor
    return F.pad(tensor, [0, width - tensor.shape[-1], 0, height - tensor.shape[-2]], value=value)


def group_by_size(images: Sequence[Tensor]) -> list[list[int]]:
    """Indices of the images, those of one size together."""
    groups: dict[torch.Size, list[int]] = {}
    for i, image in enumerate(images):
        groups.setdefault(image.shape, []).append(i)
    return list(groups.values())


def common_size(images: Sequence[Tensor], least: tuple[int, int], multiple: int) -> tuple[int, int]:
    """The smallest (height, width) into which all images (..., h, w) fit.

    Args:
        images: of any sizes.
        least: (height, width) that the result has at least, in pixels.
        multiple: height and width become multiples of it; 0 or 1 changes nothing.
    """
    height = max([least[0]] + [image.shape[-2] for image in images])
    width = max([least[1]] + [image.shape[-1] for image in images])
    multiple = max(multiple, 1)
    return height + -height % multiple, width + -width % multiple
