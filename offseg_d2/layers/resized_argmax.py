"""The best class of each pixel of a resized score map, without ever holding the resized scores.

Resizing is linear interpolation: the scores of a pixel are a weighted mean of a few score vectors
of the map, its *corners*. So where one class is the best at all corners, it is the best at every
pixel between them, and a comparison of the map with itself settles most of the picture. Only the
pixels whose corners disagree are interpolated, in blocks that stay in the processor's cache.

Shapes: K classes, h x w score map, H x W result, P pixels with S corners. A *cell* is a rectangle
of pixels with the same corners.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from offseg_d2.layers.resampling import Resampling, weighted_sums
from offseg_d2.layers.threads import for_each

_MAP_BYTES = 8 << 20  # scores of the map that are worked on at once
_BLOCK_BYTES = 4 << 20  # interpolated scores at once
_BLOCK_PIXELS = 1 << 16  # pixels of the result in a block of rows
_CHUNK_PIXELS = 1 << 19  # pixels of the result that are worked on at once


def label_dtype(num_classes: int) -> torch.dtype:
    """The smallest integer type that holds the class ids and is common: uint8, int16 or int32."""
    if num_classes <= 256:
        return torch.uint8
    return torch.int16 if num_classes <= 32768 else torch.int32


def interpolated_argmax(scores: Tensor, rows: Resampling, columns: Resampling) -> Tensor:
    """Resize scores and choose the best class of each pixel; the first one of equal ones.

    Args:
        scores: (K, h, w), any memory layout; with the classes innermost it need not be copied.
        rows: h -> H.
        columns: w -> W.

    Returns:
        (H, W) class ids of :func:`label_dtype`: those of resizing everything and taking the
        argmax, but for ties within rounding.
    """
    scores = scores.detach()
    labels = scores.new_empty(len(rows), len(columns), dtype=label_dtype(scores.shape[0]))
    is_resized = not (rows.is_identity and columns.is_identity)

    def fill(chunk: tuple[int, int, int, int]) -> None:
        begin, end, top, bottom = chunk
        part = scores[:, top:bottom].permute(1, 2, 0)  # (rows, w, K)
        part = part.to(torch.promote_types(part.dtype, torch.float32)).contiguous()
        if is_resized:
            labels[begin:end] = _resized_labels(part, rows.cut(begin, end, top), columns)
        else:
            labels[begin:end] = _argmax(part)[:, : len(columns)]

    chunks = _chunks(scores, rows, columns)
    if scores.is_cpu:
        for_each(fill, chunks)
    else:
        for chunk in chunks:
            fill(chunk)
    return labels


def _chunks(
    scores: Tensor, rows: Resampling, columns: Resampling
) -> Iterator[tuple[int, int, int, int]]:
    """Rows of the result (first, last + 1), and rows of the map that they need."""
    map_rows = _MAP_BYTES // max(scores.shape[0] * scores.shape[2] * scores.element_size(), 1)
    result_rows = _CHUNK_PIXELS // max(len(columns), 1)
    if scores.is_cpu:  # something for each thread, and the last one not much later than the others
        result_rows = min(result_rows, -(-len(rows) // (2 * torch.get_num_threads())))
    starts, ends = rows.start.tolist(), rows.end.tolist()
    begin = 0
    for i in range(1, len(starts) + 1):
        if (
            i == len(starts)
            or i - begin >= result_rows
            or max(ends[begin : i + 1]) - starts[begin] > map_rows
        ):
            yield begin, i, starts[begin], max(ends[begin:i])
            begin = i


def _argmax(scores: Tensor) -> Tensor:
    """(..., K) -> (...) int64, the first of the largest."""
    if scores.device.type == "cpu" and type(scores) is Tensor:
        # NumPy's is vectorised along the innermost axis, which makes it three times as fast.
        return torch.from_numpy(scores.numpy().argmax(-1))
    return scores.argmax(-1)


@dataclass(frozen=True)
class _Runs:
    """Consecutive output positions with the same corners, along one axis.

    Attributes:
        corners: (G, T) int64 positions in the map, for each run.
        of: (n,) int64, run of each output position.
    """

    corners: Tensor
    of: Tensor

    @classmethod
    def find(cls, resampling: Resampling) -> "_Runs":
        extent = torch.stack([resampling.start, resampling.span])
        begins = F.pad((extent[:, 1:] != extent[:, :-1]).any(0), [1, 0], value=True)
        return cls(resampling.positions()[begins], begins.cumsum(0) - 1)


def _resized_labels(part: Tensor, rows: Resampling, columns: Resampling) -> Tensor:
    """Labels (H, W) of the map (h, w, K)."""
    vertical, horizontal = _Runs.find(rows), _Runs.find(columns)
    by_column = _argmax(part)[:, horizontal.corners]  # (h, G_w, T_w)
    labels, agree = by_column[..., 0], (by_column == by_column[..., :1]).all(-1)
    by_row = labels[vertical.corners]  # (G_h, T_h, G_w)
    agree = agree[vertical.corners].all(1) & (by_row == by_row[:, :1]).all(1)
    cells = torch.where(agree, by_row[:, 0], -1)  # (G_h, G_w)
    result = cells[vertical.of][:, horizontal.of]
    _fill_open_pixels(result, part, rows, columns)
    return result


def _fill_open_pixels(labels: Tensor, part: Tensor, rows: Resampling, columns: Resampling) -> None:
    """Label the pixels of (H, W) that are below 0, by interpolating the map (h, w, K) there."""
    _, width, num_classes = part.shape
    vectors = part.flatten(1)  # (h, w K)
    step = _BLOCK_BYTES // (vectors.shape[1] * vectors.element_size())
    step = max(min(step, _BLOCK_PIXELS // len(columns)), 1)
    pixels = max(_BLOCK_BYTES // (num_classes * vectors.element_size()), 1)
    row_positions = rows.positions()
    # Of all pixels of a block, so that those of the open ones need only be selected.
    first = torch.arange(step, device=part.device)[:, None, None] * width
    column_positions = (first + columns.positions()).flatten(0, 1)  # (step W, T)
    column_weights = columns.weights.repeat(step, 1)
    for begin in range(0, len(rows), step):
        block = slice(begin, begin + step)
        found = labels[block].flatten()
        is_open = (found < 0).nonzero()[:, 0]
        if not len(is_open):
            continue
        between = weighted_sums(vectors, row_positions[block], rows.weights[block])
        between = between.view(-1, num_classes)  # (n w, K)
        positions, weights = (
            x.index_select(0, is_open) for x in (column_positions, column_weights)
        )
        parts = zip(positions.split(pixels), weights.split(pixels), strict=True)
        found[is_open] = torch.cat([_argmax(weighted_sums(between, *part)) for part in parts])
        labels[block] = found.view(-1, len(columns))
