"""Resizing by OpenCV's bilinear rule (images) and by the nearest index (labels), whole or in part.

A random crop of a resized image needs a part of it only. That part is computed alone here, equal
to the bit to cutting it out of the whole.
"""

import math

import cv2
import numpy as np

Size = tuple[int, int]  # height, width in pixels
Window = tuple[int, int, int, int]  # y, x, height, width in pixels of the resized image


def resize_image(image: np.ndarray, size: Size) -> np.ndarray:
    """Return (H, W, C) uint8 resized to ``size`` (height, width): bilinear, no low-pass filter."""
    if image.shape[:2] == tuple(size):
        return image
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def resize_image_window(image: np.ndarray, size: Size, window: Window) -> np.ndarray:
    """Return ``window`` of :func:`resize_image`, equal in each bit.

    OpenCV computes a target pixel from its distance to the upper left corner, in single precision.
    So what lies right of and below the window can be left out, what lies before it cannot.

    Args:
        image: (H, W, C) uint8.
        size: height and width of the whole image after resizing.
        window: part of it that is returned.
    """
    y, x, height, width = window
    ends = (y + height, x + width)
    if tuple(size) != image.shape[:2]:
        # The same quotients as OpenCV's own for a whole image, so its weights are the same, too.
        scales = [after / before for after, before in zip(size, image.shape, strict=False)]
        needed = [
            min(math.ceil(end / scale) + 1, before)  # and the right neighbour of the last pixel
            for end, scale, before in zip(ends, scales, image.shape, strict=False)
        ]
        part = image[: needed[0], : needed[1]]
        resized = cv2.resize(part, None, fx=scales[1], fy=scales[0], interpolation=cv2.INTER_LINEAR)
        # OpenCV copies where the size stays the same, whatever the scale.
        image = resize_image(image, size) if resized.shape == part.shape else resized
    return image[y : ends[0], x : ends[1]]


def resize_reduced_window(
    image: np.ndarray, source: tuple[float, float], size: Size, window: Window
) -> np.ndarray:
    """Return ``window`` of an image that was decoded at reduced scale and is then resized.

    Args:
        image: (h, w, C) uint8.
        source: the full height and width divided by the reduction; h and w are these, rounded up,
            so the last pixels may stand for less than the others.
        size: height and width of the whole image after resizing.
        window: part of it that is returned.
    """
    y, x, height, width = window
    step_y, step_x = (before / after for before, after in zip(source, size, strict=True))
    inverse = np.array(
        [
            [step_x, 0, (x + 0.5) * step_x - 0.5],
            [0, step_y, (y + 0.5) * step_y - 0.5],
        ]
    )
    return cv2.warpAffine(
        image,
        inverse,
        (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )


def resize_labels_window(labels: np.ndarray, size: Size, window: Window) -> np.ndarray:
    """Return ``window`` of labels resized by ``floor(target index * source size / target size)``.

    By indices: ``cv2.INTER_NEAREST`` means the same rule, but its floating-point arithmetic lands
    one index too low for some sizes where the quotient is whole.

    Args:
        labels: (H, W) of any type.
        size: height and width of the whole map after resizing.
        window: part of it that is returned.
    """
    y, x, height, width = window
    if labels.shape == tuple(size):
        return labels[y : y + height, x : x + width]
    rows = np.arange(y, y + height) * labels.shape[0] // size[0]
    columns = np.arange(x, x + width) * labels.shape[1] // size[1]
    top, left = rows[0], columns[0]
    part = labels[top : rows[-1] + 1, left : columns[-1] + 1]
    # Rows are copied as blocks of memory, columns pixel by pixel: those last if rows become fewer.
    if height < part.shape[0]:
        return np.take(part[rows - top], columns - left, axis=1)
    return np.take(part, columns - left, axis=1)[rows - top]
