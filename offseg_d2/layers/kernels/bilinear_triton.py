"""Triton functions for bilinear resizing with half-pixel centres, as PyTorch resizes on GPUs."""

import triton
import triton.language as tl


@triton.jit
def source(position, ratio, length):
    """First and second input position of an output, and the weight of the second."""
    exact = tl.maximum((position.to(tl.float32) + 0.5) * ratio - 0.5, 0.0)
    first = tl.minimum(exact.to(tl.int32), length - 1)
    return first, tl.minimum(first + 1, length - 1), exact - first.to(tl.float32)


@triton.jit
def outputs(first, ratio, length):
    """Range that holds all outputs, of ``length``, with this first input position; some more."""
    begin = tl.ceil((first.to(tl.float32) + 0.5) / ratio - 0.51).to(tl.int32)
    end = tl.ceil((first.to(tl.float32) + 1.5) / ratio - 0.49).to(tl.int32)
    begin = tl.where(first > 0, tl.minimum(tl.maximum(begin, 0), length), 0)
    return begin, tl.where(first >= 0, tl.minimum(end, length), 0)


@triton.jit
def corners(scores, top, bottom, left, right, stride_y, stride_x, mask):
    """Values at four corners in float32: upper left, upper right, lower left, lower right."""
    top, bottom = top.to(tl.int64) * stride_y, bottom.to(tl.int64) * stride_y
    left, right = left * stride_x, right * stride_x
    upper_left = tl.load(scores + (top + left)[None], mask=mask, other=0).to(tl.float32)
    upper_right = tl.load(scores + (top + right)[None], mask=mask, other=0).to(tl.float32)
    lower_left = tl.load(scores + (bottom + left)[None], mask=mask, other=0).to(tl.float32)
    lower_right = tl.load(scores + (bottom + right)[None], mask=mask, other=0).to(tl.float32)
    return upper_left, upper_right, lower_left, lower_right


@triton.jit
def resized_scores(
    scores, y, x, height, width, ratio_y, ratio_x, stride_y, stride_x, mask
):  # fmt: skip
    """Scores (classes, pixels) at outputs (pixels,); ``scores`` points to maps (classes, 1)."""
    top, bottom, down = source(y, ratio_y, height)
    left, right, along = source(x, ratio_x, width)
    a, b, c, d = corners(scores, top, bottom, left, right, stride_y, stride_x, mask)
    down, along = down[None], along[None]
    upper, lower = (1 - along) * a + along * b, (1 - along) * c + along * d
    return (1 - down) * upper + down * lower
