"""Dense inference: whole image or sliding window, for any network that keeps the input size.

Shapes: B batch, K classes, H x W the network's input.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor

MODES = ("whole", "slide")


@dataclass(frozen=True)
class InferenceSettings:
    """How an image goes through the network.

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
    height, width = images.shape[-2:]
    images = pad_to_multiple(images, settings.size_divisibility)
    if settings.mode == "slide":
        logits = _predict_windows(network, images, settings)
    else:
        logits = network(images)
    return logits[..., :height, :width]


def _predict_windows(
    network: Callable[[Tensor], Tensor], images: Tensor, settings: InferenceSettings
) -> Tensor:
    batch, _, height, width = images.shape
    crop_height = min(settings.crop_size[0], height)
    crop_width = min(settings.crop_size[1], width)
    tops = window_origins(height, settings.crop_size[0], settings.stride[0])
    lefts = window_origins(width, settings.crop_size[1], settings.stride[1])
    windows = [
        (sample, slice(top, top + crop_height), slice(left, left + crop_width))
        for sample, top, left in product(range(batch), tops, lefts)
    ]
    total: Tensor | None = None
    count = images.new_zeros(1, height, width)
    for start in range(0, len(windows), settings.window_batch):
        chunk = windows[start : start + settings.window_batch]
        crops = images.new_empty(len(chunk), images.shape[1], crop_height, crop_width)
        for i, (sample, rows, columns) in enumerate(chunk):
            crops[i] = images[sample, :, rows, columns]
        for window, logits in zip(chunk, network(crops), strict=True):
            if total is None:
                total = logits.new_zeros(batch, logits.shape[0], height, width)
            sample, rows, columns = window
            total[sample, :, rows, columns] += logits
            if sample == 0:
                count[:, rows, columns] += 1
    assert total is not None, "an image has at least one window"
    return total / count
