"""Dense inference: whole image or sliding window, for any network that keeps the input size.

Shapes: B batch, K classes, H x W the network's input.
"""

import collections
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor

from offseg_d2.modeling.meta_arch.scores import MapScores, ScoreBands, Scores, band_height

MODES = ("whole", "slide")


@dataclass(frozen=True)
class InferenceSettings:
    """The way of an image through the network: whole or in windows.

    Attributes:
        mode: "whole" or "slide".
        crop_size: (height, width) of a window in pixels.
        stride: (vertical, horizontal) step between windows in pixels.
        window_batch: windows that go through the network at once.
        size_divisibility: the image is zero-padded (right, bottom) to a multiple of this first.
    """

    mode: str = "whole"
    crop_size: tuple[int, int] = (512, 512)
    stride: tuple[int, int] = (480, 480)
    window_batch: int = 4
    size_divisibility: int = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"`TEST.SEM_SEG.MODE` must be one of {MODES}, but is {self.mode!r}.")
        for key, pair in (("CROP_SIZE", self.crop_size), ("STRIDE", self.stride)):
            if len(pair) != 2 or min(pair) < 1:
                raise ValueError(f"`TEST.SEM_SEG.{key}` must be two positive sizes, but is {pair}.")
        gaps = any(step > size for step, size in zip(self.stride, self.crop_size, strict=True))
        if self.mode == "slide" and gaps:
            raise ValueError(
                f"`TEST.SEM_SEG.STRIDE` must not exceed CROP_SIZE {self.crop_size}, or pixels "
                f"between the windows get no prediction, but is {self.stride}."
            )
        if self.window_batch < 1:
            raise ValueError(
                f"`TEST.SEM_SEG.WINDOW_BATCH` must be at least 1, but is {self.window_batch}."
            )
        if self.size_divisibility < 0:
            raise ValueError(
                "`TEST.SEM_SEG.SIZE_DIVISIBILITY` must not be negative, but is "
                f"{self.size_divisibility}."
            )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "InferenceSettings":
        """Read `TEST.SEM_SEG`."""
        keys = cfg.TEST.SEM_SEG
        return cls(
            mode=keys.MODE,
            crop_size=tuple(keys.CROP_SIZE),
            stride=tuple(keys.STRIDE),
            window_batch=keys.WINDOW_BATCH,
            size_divisibility=keys.SIZE_DIVISIBILITY,
        )


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Zero-pad (B, C, H, W) on the right and bottom; ``multiple`` 0 or 1 changes nothing."""
    if multiple <= 1:
        return images
    height, width = images.shape[-2:]
    return F.pad(images, [0, -width % multiple, 0, -height % multiple])


def resize_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of (B, K, h, w) to ``size`` (height, width), half-pixel centres."""
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def window_origins(length: int, window: int, stride: int) -> list[int]:
    """Starts of the windows along one axis; the last is moved back to end with the image.

    An image shorter than the window gives one start, 0.
    """
    count = max(length - window + stride - 1, 0) // stride + 1
    return [min(i * stride, max(length - window, 0)) for i in range(count)]


def predict(
    network: Callable[[Tensor], Tensor], images: Tensor, settings: InferenceSettings
) -> Tensor:
    """Class logits for normalised images of one size.

    Args:
        network: (B, 3, h, w) -> logits (B, K, h, w), for any h, w.
        images: (B, 3, H, W), normalised.
        settings: whole image or sliding window.

    Returns:
        (B, K, H, W). With sliding windows the logits of overlapping windows are averaged.
    """
    size = tuple(images.shape[-2:])
    if settings.mode == "whole":
        return network(pad_to_multiple(images, settings.size_divisibility))[
            ..., : size[0], : size[1]
        ]

    def scores_of(crops: Tensor) -> list[Scores]:
        return [MapScores(logits, tuple(logits.shape[-2:])) for logits in network(crops)]

    logits: Tensor | None = None
    for sample, scores in enumerate(score_bands(scores_of, images, settings)):
        top = 0
        for band in scores.bands:
            if logits is None:
                logits = band.new_empty(len(images), len(band), *size)
            logits[sample, :, top : top + band.shape[1]] = band
            top += band.shape[1]
    assert logits is not None, "an image has at least one window"
    return logits


def score_bands(
    network: Callable[[Tensor], Sequence[Scores]], images: Tensor, settings: InferenceSettings
) -> Iterator[ScoreBands]:
    """Class scores of normalised images of one size, without ever holding those of an image.

    Args:
        network: (B, 3, h, w) -> B scores at (h, w), for any h, w.
        images: (B, 3, H, W), normalised.
        settings: whole image or sliding window.

    Yields:
        the scores of each image; those of one must be read before the next is asked for.
    """
    size = (images.shape[-2], images.shape[-1])
    images = pad_to_multiple(images, settings.size_divisibility)
    if settings.mode == "whole":
        for scores in network(images):
            yield scores.as_bands(size)
        return
    grid = _WindowGrid.of(images, settings)
    windows = _scores_of_windows(network, images, grid, settings.window_batch)
    for _ in images:
        own = itertools.islice(windows, len(grid.tops) * len(grid.lefts))
        bands = (band[..., : size[1]] for band in _merged_windows(own, grid, size[0]))
        yield ScoreBands(size, bands)
        # What is left below `size` belongs to the padding; the windows there have to be passed.
        collections.deque(own, maxlen=0)


@dataclass(frozen=True)
class _WindowGrid:
    """Positions of the windows of an image, in pixels: all pairs of ``tops`` and ``lefts``."""

    tops: list[int]
    lefts: list[int]
    height: int  # of a window
    width: int
    image_width: int

    @classmethod
    def of(cls, images: Tensor, settings: InferenceSettings) -> "_WindowGrid":
        size = images.shape[-2:]
        tops, lefts = (
            window_origins(*lengths)
            for lengths in zip(size, settings.crop_size, settings.stride, strict=True)
        )
        height, width = (min(*pair) for pair in zip(size, settings.crop_size, strict=True))
        return cls(tops, lefts, height, width, size[1])


def _scores_of_windows(
    network: Callable[[Tensor], Sequence[Scores]], images: Tensor, grid: _WindowGrid, at_once: int
) -> Iterator[Scores]:
    """Image by image, row by row; a batch of windows may span several images."""
    windows = itertools.product(range(len(images)), grid.tops, grid.lefts)
    while chunk := list(itertools.islice(windows, at_once)):
        crops = images.new_empty(len(chunk), images.shape[1], grid.height, grid.width)
        for crop, (sample, top, left) in zip(crops, chunk, strict=True):
            crop.copy_(images[sample, :, top : top + grid.height, left : left + grid.width])
        yield from network(crops)


def _merged_windows(windows: Iterator[Scores], grid: _WindowGrid, height: int) -> Iterator[Tensor]:
    """Averages of the windows of one image: bands (K, n, W) that make up the first rows.

    A row is finished when the next windows begin below it, and windows are let go when they end
    above. So there are never more than two rows of overlapping windows (for strides above half
    a window), and of these only what the network has computed.
    """
    active: list[tuple[int, int, Scores]] = []
    counts: Tensor | None = None
    done = 0
    for top, next_top in zip(grid.tops, [*grid.tops[1:], height], strict=True):
        active = [window for window in active if window[0] + grid.height > done]
        active += [(top, left, next(windows)) for left in grid.lefts]
        step = band_height(active[0][2].num_classes, grid.image_width)
        for first in range(done, min(next_top, height), step):
            end = min(first + step, next_top, height)
            total = _sum_of_rows(active, grid, first, end)
            if counts is None:
                per_row = _counts(grid.tops, grid.height, height, total)
                per_column = _counts(grid.lefts, grid.width, grid.image_width, total)
                counts = torch.outer(per_row, per_column)
            yield total.div_(counts[first:end])
        done = next_top


def _counts(origins: list[int], window: int, length: int, like: Tensor) -> Tensor:
    """Number of windows over each position of one axis."""
    counts = like.new_zeros(length)
    for origin in origins:
        counts[origin : origin + window] += 1
    return counts


def _sum_of_rows(
    windows: list[tuple[int, int, Scores]], grid: _WindowGrid, first: int, end: int
) -> Tensor:
    """(K, end - first, W): sum of what the windows (top, left, scores) say about these rows."""
    total: Tensor | None = None
    for top, left, scores in windows:
        begin, stop = max(first, top), min(end, top + grid.height)
        if begin >= stop:
            continue
        rows = scores.rows(begin - top, stop - top)
        if total is None:  # classes innermost, the layout that what follows prefers
            total = rows.new_zeros(end - first, grid.image_width, len(rows)).permute(2, 0, 1)
        total[:, begin - first : stop - first, left : left + grid.width] += rows
    assert total is not None, "every row lies in a window"
    return total
