"""Triton kernels that use resized class scores, a block of pixels and classes at a time.

Scores (B, K, h, w) have any strides; H x W are the outputs that are used, ``ratio`` is input size
over resized size. Outputs are numbered row by row.
"""

import triton
import triton.language as tl

from offseg_d2.layers.kernels.bilinear_triton import corners, outputs, resized_scores, source


@triton.jit
def loss_kernel(
    scores, targets, loss, log_sum,
    classes, height, width, out_height, out_width, ratio_y, ratio_x, ignored,
    ssb, ssc, ssy, ssx, stb, sty, stx,
    PIXELS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """Cross-entropy and log-sum-exp (B, H, W); NaN where a label is no class."""
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    is_pixel = pixel < out_height * out_width
    y, x = pixel // out_width, pixel % out_width
    label = tl.load(
        targets + image * stb + y.to(tl.int64) * sty + x * stx, mask=is_pixel, other=ignored
    )
    is_class, counts = (label >= 0) & (label < classes), label != ignored
    label = tl.where(is_class, label, -1).to(tl.int32)
    highest = tl.full((PIXELS,), float("-inf"), tl.float32)
    total = tl.zeros((PIXELS,), tl.float32)
    of_label = tl.zeros((PIXELS,), tl.float32)
    for begin in range(0, classes, CLASSES):
        k = begin + tl.arange(0, CLASSES)[:, None]
        known = (k < classes) & is_pixel[None]
        score = resized_scores(
            scores + image * ssb + k.to(tl.int64) * ssc,
            y, x, height, width, ratio_y, ratio_x, ssy, ssx, known,
        )  # fmt: skip
        of_label += tl.sum(tl.where(k == label[None], score, 0.0), axis=0)
        score = tl.where(k < classes, score, float("-inf"))
        new = tl.maximum(highest, tl.max(score, axis=0))
        total = total * tl.exp(highest - new) + tl.sum(tl.exp(score - new[None]), axis=0)
        highest = new
    total = highest + tl.log(total)
    value = tl.where(is_class, total - of_label, float("nan"))
    place = image * out_height * out_width + pixel
    tl.store(loss + place, tl.where(counts, value, 0.0), mask=is_pixel)
    tl.store(log_sum + place, total, mask=is_pixel)


@triton.jit
def grad_kernel(
    grad, scores, targets, log_sum, out,
    classes, height, width, out_height, out_width, ratio_y, ratio_x, ignored,
    sgb, sgy, sgx, ssb, ssc, ssy, ssx, stb, sty, stx,
    PIXELS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """Gradient of the scores: each program gathers from the outputs that its pixels take part in.

    Those lie in the four cells around a pixel; all outputs of a cell have the same four corners.
    """
    image = tl.program_id(2).to(tl.int64)
    across = tl.cdiv(width, PIXELS)
    y = tl.program_id(0) // across
    x = (tl.program_id(0) % across) * PIXELS + tl.arange(0, PIXELS)
    k = tl.program_id(1) * CLASSES + tl.arange(0, CLASSES)[:, None]
    known = (k < classes) & (x < width)[None]
    scores += image * ssb + k.to(tl.int64) * ssc
    grad += image * sgb
    targets += image * stb
    log_sum += image * out_height * out_width
    total = tl.zeros((CLASSES, PIXELS), tl.float32)
    for cell in tl.static_range(4):
        top, left = y - 1 + cell // 2, x - 1 + cell % 2
        begin_y, end_y = outputs(top, ratio_y, out_height)
        begin_x, end_x = outputs(left, ratio_x, out_width)
        steps = tl.max(tl.where(x < width, end_x - begin_x, 0), axis=0)
        upper_left, upper_right, lower_left, lower_right = corners(
            scores,
            tl.maximum(top, 0), tl.minimum(top + 1, height - 1),
            tl.maximum(left, 0), tl.minimum(left + 1, width - 1),
            ssy, ssx, known,
        )  # fmt: skip
        for row in range(begin_y, end_y):
            first, second, down = source(top * 0 + row, ratio_y, height)
            share = tl.where(first == y, 1 - down, 0.0) + tl.where(second == y, down, 0.0)
            share = tl.where(first == top, share, 0.0)
            at_left = (1 - down) * upper_left + down * lower_left
            at_right = (1 - down) * upper_right + down * lower_right
            for step in range(steps):
                column = begin_x + step
                at, after, along = source(column, ratio_x, width)
                weight = tl.where(at == x, 1 - along, 0.0) + tl.where(after == x, along, 0.0)
                inside = (column < end_x) & (at == left) & (x < width)
                label = tl.load(targets + row * sty + column * stx, mask=inside, other=ignored)
                counts = label != ignored
                slope = tl.load(grad + row * sgy + column * sgx, mask=counts, other=0)
                place = log_sum + row * out_width + column
                level = tl.load(place, mask=counts, other=float("inf"))
                score = (1 - along)[None] * at_left + along[None] * at_right
                change = tl.exp(score - level[None]) - tl.where(k == label[None], 1.0, 0.0)
                total += (share * weight * slope)[None] * change
    place = out + ((image * classes + k) * height + y) * width + x[None]
    tl.store(place, total, mask=known)


@triton.jit
def argmax_kernel(
    scores, out,
    classes, height, width, out_height, out_width, ratio_y, ratio_x,
    ssb, ssc, ssy, ssx,
    PIXELS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """Best class (B, H, W); the smaller one of equal ones."""
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    is_pixel = pixel < out_height * out_width
    y, x = pixel // out_width, pixel % out_width
    highest = tl.full((PIXELS,), float("-inf"), tl.float32)
    best = tl.zeros((PIXELS,), tl.int32)
    for begin in range(0, classes, CLASSES):
        k = begin + tl.arange(0, CLASSES)[:, None]
        known = (k < classes) & is_pixel[None]
        score = resized_scores(
            scores + image * ssb + k.to(tl.int64) * ssc,
            y, x, height, width, ratio_y, ratio_x, ssy, ssx, known,
        )  # fmt: skip
        score = tl.where(k < classes, score, float("-inf"))
        of_block = tl.max(score, axis=0)
        first = tl.min(tl.where(score == of_block[None], k, classes), axis=0)
        best = tl.where(of_block > highest, first, best)
        highest = tl.maximum(highest, of_block)
    tl.store(out + image * out_height * out_width + pixel, best, mask=is_pixel)
