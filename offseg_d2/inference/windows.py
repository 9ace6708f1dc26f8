"""Label maps of images that are larger than memory, window by window."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np


def label_map_by_windows(
    predict: Callable[[np.ndarray], np.ndarray],
    image: np.ndarray,
    window: int,
    overlap: int,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Fill a label map from those of overlapping windows, each of which counts up to the middle.

    Args:
        predict: (h, w, 3) uint8 of at most window x window pixels -> (h, w) class ids.
        image: (H, W, 3) uint8; only windows of it are read.
        window, overlap: as of :meth:`.Segmenter.large`.
        out: (H, W) integers to be filled; by default a new uint8 array.

    Returns:
        ``out``.

    Raises:
        ValueError: a number, shape or type cannot be used.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(
            f"`image` must be uint8 values of the shape (H, W, 3), but is {image.dtype} of "
            f"{image.shape}."
        )
    if not 0 <= 2 * overlap < window:
        raise ValueError(
            f"`overlap` must be at least 0 and less than half of `window`, but is {overlap!r} "
            f"and {window!r}."
        )
    size = image.shape[:2]
    labels = np.empty(size, dtype=np.uint8) if out is None else out
    if labels.shape != size or labels.dtype.kind not in "iu":
        raise ValueError(
            f"`out` must be integers of the shape {size}, but is {labels.dtype} of {labels.shape}."
        )
    for top, bottom, kept_rows in _windows(size[0], window, overlap):
        for left, right, kept_columns in _windows(size[1], window, overlap):
            part = predict(np.ascontiguousarray(image[top:bottom, left:right]))
            inner = part[_shift(kept_rows, top), _shift(kept_columns, left)]
            labels[kept_rows, kept_columns] = inner
    return labels


def _windows(length: int, window: int, overlap: int) -> Iterator[tuple[int, int, slice]]:
    """Along one axis: begin and end of each window, and the part of it that counts."""
    last = max(length - window, 0)
    starts = [*range(0, last, window - overlap), last]
    # Between two windows: the middle of what both see.
    ends = [*((a + window + b) // 2 for a, b in pairwise(starts)), length]
    for start, begin, end in zip(starts, [0, *ends], ends, strict=False):
        yield start, min(start + window, length), slice(begin, end)


def _shift(part: slice, origin: int) -> slice:
    return slice(part.start - origin, part.stop - origin)
