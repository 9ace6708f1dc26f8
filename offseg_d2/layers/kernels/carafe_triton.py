"""Triton kernels of CARAFE, see ``offseg_d2.layers.carafe``.

A program works on a block of pixels, all of one image, which are numbered row by row. Sums are
kept in float32. Tensors have any strides: s?b, s?c, s?y, s?x are those of batch, channel or tap,
row and column. Results are contiguous.
"""

import triton
import triton.language as tl


@triton.jit
def forward_kernel(
    features, weights, out,
    channels, height, width,
    sfb, sfc, sfy, sfx, swb, swc, swy, swx,
    K: tl.constexpr, S: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A block of channels of a block of output pixels."""
    image = tl.program_id(2).to(tl.int64)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS).to(tl.int64)[:, None]
    out_width = S * width
    area = S * height * out_width
    y, x = pixel // out_width, pixel % out_width
    is_pixel, is_channel = pixel < area, channel < channels
    weights += image * swb + y.to(tl.int64) * swy + x * swx
    features += image * sfb + channel * sfc
    total = tl.zeros((CHANNELS, PIXELS), tl.float32)
    for tap in range(K * K):
        row, column = y // S + tap // K - K // 2, x // S + tap % K - K // 2
        inside = is_pixel & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        weight = tl.load(weights + tap * swc, mask=inside, other=0).to(tl.float32)
        place = features + (row.to(tl.int64) * sfy + column * sfx)[None]
        value = tl.load(place, mask=inside[None] & is_channel, other=0).to(tl.float32)
        total += weight[None] * value
    place = out + (image * channels + channel) * area + pixel[None]
    tl.store(place, total, mask=is_pixel[None] & is_channel)


@triton.jit
def grad_features_kernel(
    grad, weights, out,
    channels, height, width,
    sgb, sgc, sgy, sgx, swb, swc, swy, swx,
    K: tl.constexpr, S: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A block of channels of a block of input pixels: gathers from the outputs that read them."""
    image = tl.program_id(2).to(tl.int64)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS).to(tl.int64)[:, None]
    area = height * width
    y, x = pixel // width, pixel % width
    is_pixel, is_channel = pixel < area, channel < channels
    weights += image * swb
    grad += image * sgb + channel * sgc
    total = tl.zeros((CHANNELS, PIXELS), tl.float32)
    for step in range(K * K * S * S):
        tap, sub = step // (S * S), step % (S * S)
        row, column = y - tap // K + K // 2, x - tap % K + K // 2  # source of the output pixel
        inside = is_pixel & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        row, column = row * S + sub // S, column * S + sub % S
        place = weights + tap * swc + row.to(tl.int64) * swy + column * swx
        weight = tl.load(place, mask=inside, other=0).to(tl.float32)
        place = grad + (row.to(tl.int64) * sgy + column * sgx)[None]
        value = tl.load(place, mask=inside[None] & is_channel, other=0).to(tl.float32)
        total += weight[None] * value
    place = out + (image * channels + channel) * area + pixel[None]
    tl.store(place, total, mask=is_pixel[None] & is_channel)


@triton.jit
def grad_weights_kernel(
    grad, features, out,
    channels, height, width,
    sgb, sgc, sgy, sgx, sfb, sfc, sfy, sfx,
    K: tl.constexpr, S: tl.constexpr, PIXELS: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """A block of taps of a block of output pixels: sums over the channels."""
    image = tl.program_id(2).to(tl.int64)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    tap = tl.program_id(1) * TAPS + tl.arange(0, TAPS)[:, None]
    out_width = S * width
    area = S * height * out_width
    y, x = pixel // out_width, pixel % out_width
    is_pixel = pixel < area
    row, column = y[None] // S + tap // K - K // 2, x[None] // S + tap % K - K // 2
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    inside = inside & is_pixel[None] & (tap < K * K)
    grad += image * sgb + y.to(tl.int64) * sgy + x * sgx
    features += image * sfb + row.to(tl.int64) * sfy + column * sfx
    total = tl.zeros((TAPS, PIXELS), tl.float32)
    for _ in range(channels):
        slope = tl.load(grad, mask=is_pixel, other=0).to(tl.float32)
        total += slope[None] * tl.load(features, mask=inside, other=0).to(tl.float32)
        grad += sgc
        features += sfc
    place = out + (image * K * K + tap) * area + pixel[None]
    tl.store(place, total, mask=is_pixel[None] & (tap < K * K))
