"""Class ids, names and colours of a dataset, as Detectron2's metadata has them.

Label maps are (H, W) integers; ids that are no class (such as the ignored 255) have no colour.

Shapes: K classes, H x W pixels.
"""

import colorsys

import numpy as np
import torch
from detectron2.data import Metadata
from torch import Tensor
from torch.nn import functional as F

_STRIPE, _GREYS = 4, (110, 190)  # width in pixels, and colours of the stripes of ignored pixels


def to_labels(sem_seg: Tensor | np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
    """Turn a prediction into a label map.

    Args:
        sem_seg: (K, H, W) scores, or (H, W) integer class ids.
        size: wanted (height, width) in pixels; None keeps the size. Scores are resized (bilinear)
            before the best class is chosen, class ids by the nearest one.

    Returns:
        (height, width) int32 class ids.

    Raises:
        ValueError: ``sem_seg`` is neither.
    """
    if isinstance(sem_seg, np.ndarray):
        sem_seg = torch.from_numpy(np.ascontiguousarray(sem_seg))
    tensor = sem_seg.detach()
    is_map = tensor.dim() == 2 and not tensor.is_floating_point()
    if not is_map and not (tensor.dim() == 3 and tensor.is_floating_point()):
        raise ValueError(
            f"`sem_seg` must be (K, H, W) scores or an (H, W) integer map, "
            f"but is {tuple(tensor.shape)} of {tensor.dtype}."
        )
    if is_map:
        labels = tensor.to("cpu", torch.int32).numpy()
        if size is not None and labels.shape != tuple(size):
            rows = np.arange(size[0]) * labels.shape[0] // size[0]
            columns = np.arange(size[1]) * labels.shape[1] // size[1]
            labels = labels[rows][:, columns]
        return labels
    if size is not None and tuple(tensor.shape[-2:]) != tuple(size):
        scores = tensor[None].to(torch.promote_types(tensor.dtype, torch.float32))
        tensor = F.interpolate(scores, size=tuple(size), mode="bilinear", align_corners=False)[0]
    return tensor.argmax(dim=0).to("cpu", torch.int32).numpy()


def class_names(metadata: Metadata, num_classes: int = 0) -> list[str]:
    """Names of the classes; those that the metadata lacks up to ``num_classes`` are numbered."""
    names = [str(name) for name in getattr(metadata, "stuff_classes", [])]
    return names + [f"class {index}" for index in range(len(names), num_classes)]


def class_colors(metadata: Metadata, num_classes: int = 0) -> np.ndarray:
    """Colours of the classes, (K, 3) uint8 RGB; those that the metadata lacks are made up.

    Args:
        metadata: of the dataset.
        num_classes: at least so many, whatever the metadata holds.
    """
    colors = [tuple(color) for color in getattr(metadata, "stuff_colors", [])]
    for index in range(len(colors), max(num_classes, len(class_names(metadata)))):
        # Steps of the golden ratio spread hues evenly, however many there will be.
        hue, lightness = (0.13 + 0.618034 * index) % 1.0, (0.42, 0.6, 0.3)[index % 3]
        colors.append(tuple(round(255 * v) for v in colorsys.hls_to_rgb(hue, lightness, 0.75)))
    return np.array(colors, dtype=np.uint8).reshape(-1, 3)


def color_map(labels: np.ndarray, metadata: Metadata, num_classes: int = 0) -> np.ndarray:
    """Paint a label map in the pure colours of its classes: (H, W) -> (H, W, 3) uint8 RGB."""
    colors = class_colors(metadata, num_classes)
    table = np.concatenate([colors, np.zeros((1, 3), dtype=np.uint8)])
    return table[np.where(is_class(labels, len(colors)), labels, len(colors))]


def is_class(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixels whose id is one of the classes: (H, W) bool."""
    return (labels >= 0) & (labels < num_classes)


def mark_ignored(picture: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """The picture (H, W, 3) with grey stripes where ``labels`` (H, W) hold no class."""
    outside = ~is_class(labels, num_classes)[..., None]
    return np.where(outside, stripes(*labels.shape).astype(picture.dtype), picture)


def stripes(height: int, width: int) -> np.ndarray:
    """Diagonal stripes in two greys, which no class looks like: (height, width, 3) uint8."""
    diagonal = np.add.outer(np.arange(height), np.arange(width))
    grey = np.where(diagonal // _STRIPE % 2, *_GREYS).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)
