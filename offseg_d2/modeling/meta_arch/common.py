"""Images of different sizes in one batch."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def pad_to(tensor: Tensor, height: int, width: int, value: float = 0) -> Tensor:
    """Pad (..., h, w) on the right and bottom to (..., height, width)."""
    if tuple(tensor.shape[-2:]) == (height, width):
        return tensor
    return F.pad(tensor, [0, width - tensor.shape[-1], 0, height - tensor.shape[-2]], value=value)


def stack_padded(
    images: Tensor | Sequence[Tensor], height: int, width: int, value: float = 0
) -> Tensor:
    """Pad (..., h, w) as :func:`pad_to`, and make them one tensor, which ``images`` may be."""
    if isinstance(images, Tensor):
        return pad_to(images, height, width, value)
    return torch.stack([pad_to(image, height, width, value) for image in images])


def group_by_size(images: Sequence[Tensor]) -> list[list[int]]:
    """Indices of the images, those of one size together."""
    groups: dict[torch.Size, list[int]] = {}
    for i, image in enumerate(images):
        groups.setdefault(image.shape, []).append(i)
    return list(groups.values())


def batches_by_size(
    images: Tensor | Sequence[Tensor],
) -> Iterator[tuple[Sequence[int], Tensor]]:
    """Indices of the images of one size, and these images as one tensor, which all may be."""
    if isinstance(images, Tensor):
        yield range(len(images)), images
        return
    for same_size in group_by_size(images):
        yield same_size, torch.stack([images[i] for i in same_size])


def common_size(
    images: Tensor | Sequence[Tensor], least: tuple[int, int], multiple: int
) -> tuple[int, int]:
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
