"""Triton kernels of the cosine between each pixel and its eight neighbours at a distance.

A program works on a block of pixels, all of one image, which are numbered row by row. Neighbours
are numbered row by row too, without the centre: n and 7 - n are opposite. Sums are kept in float32.
"""

import triton
import triton.language as tl


@triton.jit
def neighbour(n, y, x, height, width, distance):
    """Row and column of a neighbour, and whether it is inside the map."""
    n += tl.where(n >= 4, 1, 0)
    row, column = y + (n // 3 - 1) * distance, x + (n % 3 - 1) * distance
    return row, column, (row >= 0) & (row < height) & (column >= 0) & (column < width)


@triton.jit
def forward_kernel(
    features, similarity, norm,
    channels, height, width, distance, smallest,
    sfb, sfc, sfy, sfx,
    PIXELS: tl.constexpr,
):  # fmt: skip
    """All eight cosines of a block of pixels, and the pixels' norms."""
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    area = height * width
    is_pixel = pixel < area
    y, x = pixel // width, pixel % width
    n = tl.arange(0, 8)[:, None]
    row, column, inside = neighbour(n, y[None], x[None], height, width, distance)
    inside = inside & is_pixel[None]
    features += image * sfb
    at_centre = features + y.to(tl.int64) * sfy + x * sfx
    at_near = features + row.to(tl.int64) * sfy + column * sfx
    product = tl.zeros((8, PIXELS), tl.float32)
    near_square = tl.zeros((8, PIXELS), tl.float32)
    square = tl.zeros((PIXELS,), tl.float32)
    for _ in range(channels):
        centre = tl.load(at_centre, mask=is_pixel, other=0).to(tl.float32)
        near = tl.load(at_near, mask=inside, other=0).to(tl.float32)
        product += centre[None] * near
        near_square += near * near
        square += centre * centre
        at_centre += sfc
        at_near += sfc
    length = tl.sqrt(square)
    lengths = tl.maximum(length, smallest)[None] * tl.maximum(tl.sqrt(near_square), smallest)
    place = similarity + (image * 8 + n) * area + pixel[None]
    tl.store(place, product / lengths, mask=is_pixel[None])
    tl.store(norm + image * area + pixel, length, mask=is_pixel)


@triton.jit
def grad_kernel(
    grad, features, similarity, norm, out,
    channels, height, width, distance, smallest,
    sgb, sgn, sgy, sgx, sfb, sfc, sfy, sfx,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Gradient of a block of channels of a block of pixels.

    A pixel u takes part in its own cosine with a neighbour v, and in that of v with it. With the
    sum a of both gradients, that of u / |u| is the sum of a v / |v|; what is along u goes away.
    """
    image = tl.program_id(2).to(tl.int64)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS).to(tl.int64)[:, None]
    area = height * width
    is_pixel, is_channel = pixel < area, channel < channels
    y, x = pixel // width, pixel % width
    grad += image * sgb
    similarity += image * 8 * area
    norm += image * area
    features += image * sfb + channel * sfc
    total = tl.zeros((CHANNELS, PIXELS), tl.float32)
    along = tl.zeros((PIXELS,), tl.float32)
    for n in range(8):
        row, column, inside = neighbour(n + pixel * 0, y, x, height, width, distance)
        inside = inside & is_pixel
        row = row.to(tl.int64)
        own = tl.load(grad + n * sgn + y * sgy + x * sgx, mask=inside, other=0)
        other = tl.load(grad + (7 - n) * sgn + row * sgy + column * sgx, mask=inside, other=0)
        slope = own.to(tl.float32) + other.to(tl.float32)
        along += slope * tl.load(similarity + n * area + pixel, mask=inside, other=0)
        length = tl.load(norm + row * width + column, mask=inside, other=1)
        place = features + (row * sfy + column * sfx)[None]
        near = tl.load(place, mask=inside[None] & is_channel, other=0).to(tl.float32)
        total += (slope / tl.maximum(length, smallest))[None] * near
    length = tl.load(norm + pixel, mask=is_pixel, other=1)
    along = tl.where(length < smallest, 0.0, along)  # there the divisor is constant
    length = tl.maximum(length, smallest)
    place = features + (y.to(tl.int64) * sfy + x * sfx)[None]
    centre = tl.load(place, mask=is_pixel[None] & is_channel, other=0).to(tl.float32)
    total = (total - (along / length)[None] * centre) / length[None]
    place = out + (image * channels + channel) * area + pixel[None]
    tl.store(place, total, mask=is_pixel[None] & is_channel)
