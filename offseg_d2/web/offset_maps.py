"""Maps of what the offsets do to an image, see :mod:`offseg_d2.visualization.offset_trace`."""

import numpy as np
import torch
from torch.nn.functional import cosine_similarity

from offseg_d2.visualization.offset_figure import offset_lengths
from offseg_d2.visualization.offset_trace import OffsetTrace
from offseg_d2.web.pictures import Heat

SIMILARITY = "Similarity with a class"
CLASS_OFFSET = "How far class vectors move"
FEATURE_OFFSET = "How far pixels move"
LIKE_PIXEL = "Pixels like the chosen one"
MAPS = (SIMILARITY, CLASS_OFFSET, FEATURE_OFFSET, LIKE_PIXEL)


@torch.no_grad()
def offset_map(
    trace: OffsetTrace,
    kind: str,
    *,
    class_id: int,
    class_name: str,
    pixel: tuple[float, float] | None = None,
) -> Heat:
    """Values of a map over the image.

    Args:
        trace: the terms of the method.
        kind: one of :data:`MAPS`.
        class_id: class of the coupled similarity.
        class_name: its name.
        pixel: (x, y) as shares of width and height, 0..1; by default the middle.
    """
    if kind == SIMILARITY:
        values = trace.coupled_similarity[:, trace.row_of(class_id)].view(trace.size)
        title = f"coupled similarity of each pixel with the vector of “{class_name}”"
        return Heat(_array(trace.to_image(values)), title)
    if kind == CLASS_OFFSET:
        lengths = 100 * own_offsets(trace)
        title = "class offset of the class of each pixel, over the length of its class vector"
        return Heat(lengths[trace.labels().cpu().numpy()], title, " %")
    if kind == FEATURE_OFFSET:
        title = "feature offset of each pixel, over the length of its feature"
        return Heat(_array(trace.to_image(100 * trace.relative_feature_offset())), title, " %")
    at = trace.pixel_features[_row(trace, pixel or (0.5, 0.5))]
    likeness = cosine_similarity(trace.pixel_features, at[None]).view(trace.size)
    title = "likeness of each pixel's feature with that of the chosen pixel (cosine)"
    return Heat(_array(trace.to_image(likeness)), title)


@torch.no_grad()
def own_offsets(trace: OffsetTrace) -> np.ndarray:
    """Length of the class offset of each class over that of its vector, without the common part.

    Returns:
        (K,).
    """
    own = _array(offset_lengths(trace)[1])
    if trace.class_probabilities is None:
        return own
    return own[[trace.row_of(index) for index in range(trace.class_probabilities.shape[1])]]


def _row(trace: OffsetTrace, pixel: tuple[float, float]) -> int:
    """Row of the features at a pixel."""
    (rows, columns), (height, width) = trace.size, trace.padded_size
    x, y = pixel[0] * trace.image_size[1], pixel[1] * trace.image_size[0]
    row, column = int(y * rows / height), int(x * columns / width)
    return min(row, rows - 1) * columns + min(column, columns - 1)


def _array(values: torch.Tensor) -> np.ndarray:
    return values.detach().float().cpu().numpy()
