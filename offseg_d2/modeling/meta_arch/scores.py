"""Class scores of whole images that never have to exist as a whole.

A network's result for one input (:class:`Scores`) gives any rows of it on demand. The scores of a
whole image (:class:`ScoreBands`) are a stream of bands from top to bottom; label maps
(:func:`label_map`) and resized scores (:func:`resized_blocks`) follow it band by band. Their
values are those of computing and resizing everything; the memory is that of a band.

Shapes: K classes, H x W pixels of the network's input.
"""

import itertools
import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from offseg_d2.layers import Resampling, bilinear, interpolated_argmax, label_dtype, resample
from offseg_d2.layers.kernels import argmax_kernel, kernels_apply

BAND_BYTES = 16 << 20  # scores that are computed at once
DEVICE_BYTES = 256 << 20  # the same on devices other than the CPU


@dataclass(frozen=True)
class ScoreBands:
    """Scores of one image, from top to bottom.

    Attributes:
        size: (H, W).
        bands: (K, n, w) parts of a score map, each below the one before; can be read once.
        rows: rows of that map -> H; None if the map has the size of the input.
        columns: columns of that map -> W; None as well.
        resized: on devices other than the CPU in place of both: size to which the map is resized,
            of which the upper left H x W count.
    """

    size: tuple[int, int]
    bands: Iterable[Tensor]
    rows: Resampling | None = None
    columns: Resampling | None = None
    resized: tuple[int, int] | None = None


class Scores(ABC):
    """The scores a network gives for one image.

    Args:
        num_classes: K.
        size: (H, W).
    """

    def __init__(self, num_classes: int, size: tuple[int, int]) -> None:
        self.num_classes, self.size = num_classes, size

    @abstractmethod
    def rows(self, first: int, end: int) -> Tensor:
        """The rows ``first`` to ``end`` (excluded): (K, end - first, W) float32 or float64."""

    def as_bands(self, size: tuple[int, int]) -> ScoreBands:
        """The upper left part of ``size`` (height, width)."""
        step = band_height(self.num_classes, self.size[1])
        bands = (
            self.rows(first, min(first + step, size[0]))[..., : size[1]]
            for first in range(0, size[0], step)
        )
        return ScoreBands(size, bands)


class MapScores(Scores):
    """Scores that are the bilinear resize of a map, such as logits at stride 4.

    Args:
        score_map: (K, h, w).
        resized: (height, width) to which the map is resized, half-pixel centres.
        size: (H, W), the upper left part of it that counts; by default all.
    """

    def __init__(
        self, score_map: Tensor, resized: tuple[int, int], size: tuple[int, int] | None = None
    ) -> None:
        super().__init__(score_map.shape[0], size or resized)
        self._map, self._resized = score_map, resized
        self._whole: Tensor | None = None
        if not works_by_rows(score_map):
            return
        self._rows = _bilinear(score_map.shape[1], resized[0], score_map).cut(0, self.size[0])
        self._columns = _bilinear(score_map.shape[2], resized[1], score_map).cut(0, self.size[1])

    def rows(self, first: int, end: int) -> Tensor:
        if not works_by_rows(self._map):
            if self._whole is None:
                self._whole = _resize(self._map, self._resized)
            return self._whole[:, first:end, : self.size[1]]
        part = self._rows.cut(first, end)
        top, bottom = part.extent()
        scores = self._map[:, top:bottom].to(part.weights.dtype)
        return resample(scores, part.cut(0, end - first, top), self._columns)

    def as_bands(self, size: tuple[int, int]) -> ScoreBands:
        if not works_by_rows(self._map):
            return ScoreBands(size, [self._map], resized=self._resized)
        rows, columns = self._rows.cut(0, size[0]), self._columns.cut(0, size[1])
        return ScoreBands(size, [self._map], rows, columns)


def band_height(num_classes: int, width: int) -> int:
    """Rows of scores that are computed at once."""
    return max(BAND_BYTES // (4 * num_classes * width), 1)


def label_map(scores: ScoreBands, size: tuple[int, int]) -> Tensor:
    """Resize scores (bilinear, half-pixel centres) and choose the best class of each pixel.

    Args:
        scores: of one image.
        size: (height, width) of the result.

    Returns:
        (height, width) class ids in the smallest common integer type; the first of equal ones.
    """
    labels: Tensor | None = None
    bands = iter(scores.bands)
    first = next(bands)
    scores = replace(scores, bands=itertools.chain([first], bands))
    if not works_by_rows(first):
        return _label_map_on_device(scores, size)
    for part in _parts(scores, size):
        if labels is None:
            labels = part.scores.new_empty(size, dtype=label_dtype(part.scores.shape[0]))
        labels[part.first : part.end] = interpolated_argmax(part.scores, part.rows, part.columns)
    assert labels is not None, "an image has at least one row"
    return labels


def resized_blocks(scores: ScoreBands, size: tuple[int, int]) -> Iterator[tuple[int, Tensor]]:
    """Resize scores (bilinear, half-pixel centres), some rows at a time.

    Args:
        scores: of one image.
        size: (height, width) of the result.

    Yields:
        first row, and (K, n, width) scores from there on; each row once, from top to bottom.
    """
    bands = iter(scores.bands)
    band = next(bands)
    scores = replace(scores, bands=itertools.chain([band], bands))
    if not works_by_rows(band):
        yield 0, _resize(_whole_map(scores), size)
        return
    for part in _parts(scores, size):
        step = band_height(part.scores.shape[0], max(size[1], part.scores.shape[2]))
        for first in range(part.first, part.end, step):
            rows = part.rows.cut(first - part.first, first - part.first + step)
            top, bottom = rows.extent()
            block = part.scores[:, top:bottom].to(rows.weights.dtype)
            yield first, resample(block, rows.cut(0, len(rows), top), part.columns)


def works_by_rows(scores: Tensor) -> bool:
    """Whether to work on a few rows of scores at a time, which stay in the processor's cache."""
    return scores.is_cpu


# Asking a device for a value waits for it, and starting many small operations takes longer than
# they do. So on a device all rows are worked on at once; label maps take the classes in portions.


def _label_map_on_device(scores: ScoreBands, size: tuple[int, int]) -> Tensor:
    """As :func:`label_map`, some classes at a time."""
    if scores.resized is None:
        scores = replace(scores, bands=[_whole_map(scores)])
    (score_map,) = scores.bands
    dtype = label_dtype(len(score_map))
    is_resized_once = scores.resized is None or tuple(scores.size) == tuple(size)
    if is_resized_once and kernels_apply(score_map):
        return argmax_kernel(score_map[None], *(scores.resized or size), *size, dtype)[0]
    largest = max(size[0] * size[1], math.prod(scores.resized or scores.size))
    step = max(DEVICE_BYTES // (4 * largest), 1)
    best: Tensor | None = None
    for first in range(0, len(score_map), step):
        portion = replace(scores, bands=[score_map[first : first + step]])
        found, ids = _resize(_whole_map(portion), size).max(dim=0)
        if best is None:
            best, labels = found, ids
        else:
            labels = torch.where(found > best, ids + first, labels)
            best = torch.maximum(found, best)
    return labels.to(dtype)


def _whole_map(scores: ScoreBands) -> Tensor:
    """All bands: (K, H, W)."""
    bands = list(scores.bands)
    whole = bands[0] if len(bands) == 1 else torch.cat(bands, dim=1)
    if scores.resized is not None:
        whole = _resize(whole, scores.resized)
    return whole[:, : scores.size[0], : scores.size[1]]


def _resize(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """(K, h, w) -> (K, *size), bilinear, half-pixel centres."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if tuple(scores.shape[1:]) == tuple(size):
        return scores
    return F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]


class _Part(NamedTuple):
    """Scores (K, n, w) that suffice for the rows ``first`` to ``end`` of a result."""

    scores: Tensor
    first: int
    end: int
    rows: Resampling
    columns: Resampling


def _parts(scores: ScoreBands, size: tuple[int, int]) -> Iterator[_Part]:
    """Cut the stream so that each row of the result of ``size`` is in one part."""
    rows = columns = carried = None
    top = done = 0
    for band in scores.bands:
        if rows is None:
            rows = _total(scores.rows, scores.size[0], size[0], band)
            columns = _total(scores.columns, scores.size[1], size[1], band)
            starts, ends = rows.start.tolist(), rows.end.tolist()
        if carried is not None and carried.shape[1]:
            # Side by side in the layout that what follows prefers.
            band = torch.cat([x.permute(1, 2, 0) for x in (carried, band)]).permute(2, 0, 1)
        bottom = top + band.shape[1]
        ready = bisect_right(ends, bottom)
        if ready > done:
            yield _Part(band, done, ready, rows.cut(done, ready, top), columns)
            done = ready
        if done == size[0]:
            return
        kept = min(starts[done], bottom)  # rows above are not needed any more
        carried, top = band[:, kept - top :], kept


def _total(first: Resampling | None, between: int, after: int, like: Tensor) -> Resampling:
    resize = _bilinear(between, after, like)
    return resize if first is None else first.then(resize)


def _bilinear(before: int, after: int, like: Tensor) -> Resampling:
    dtype = torch.promote_types(like.dtype, torch.float32)
    return bilinear(before, after, dtype=dtype, device=like.device)
