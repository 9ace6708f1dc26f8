"""Augmentations of semantic segmentation with OpenCV's arithmetic.

All are Detectron2 ``Augmentation`` / ``Transform`` classes, so any of Detectron2's own can stand
between them. They draw from NumPy's global generator, which the data loader seeds per sample.
Images are (H, W, 3) uint8 **BGR** throughout (as OpenCV decodes them; hue and saturation need the
channel order); the dataset mapper swaps to RGB once, at its end.

What differs from Detectron2's own classes: images are resized by OpenCV's bilinear rule without
low-pass filter (Pillow's filters, which gives other pixels when shrinking), labels by
``floor(target index * source size / target size)``, and sizes are rounded as written below.
"""

from collections.abc import Callable

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.transforms import (
    Augmentation,
    CropTransform,
    NoOpTransform,
    RandomFlip,
    Transform,
)

from .label_map import IGNORE_LABEL, count_ids
from .photometric import PhotometricDistortion
from .resizing import Size, Window, resize_image, resize_labels_window
from .rotation import RandomRotate90

_CROP_ATTEMPTS = 10


def keep_ratio_size(height: int, width: int, target: tuple[float, float]) -> tuple[int, int]:
    """Size of an image that is scaled, aspect kept, to fit into ``target``.

    Args:
        height, width: of the image, in pixels.
        target: long and short side in pixels, in any order; they bound the image's long and short
            side, whatever its orientation.

    Returns:
        New height and width, rounded half up, at least 1.
    """
    # Above 1 for small images: they are enlarged.
    factor = min(max(target) / max(height, width), min(target) / min(height, width))
    return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)


def shortest_edge_size(height: int, width: int, edge: int, max_size: int) -> tuple[int, int]:
    """Size of an image whose short side becomes ``edge``, its long side at most ``max_size``.

    The rounded size is passed through :func:`keep_ratio_size` once more, as the authors' pipeline
    does; that may change it by a pixel.
    """
    factor = edge / min(height, width)
    new_height, new_width = height * factor, width * factor
    if max(new_height, new_width) > max_size:
        shrink = max_size / max(new_height, new_width)
        new_height, new_width = new_height * shrink, new_width * shrink
    return keep_ratio_size(height, width, (int(new_height + 0.5), int(new_width + 0.5)))


class CvResizeTransform(Transform):
    """Resize: images by OpenCV's bilinear rule (no low-pass), labels by the nearest index.

    Args:
        h, w: size before, in pixels.
        new_h, new_w: size after, in pixels.
    """

    def __init__(self, h: int, w: int, new_h: int, new_w: int) -> None:
        super().__init__()
        self.h, self.w, self.new_h, self.new_w = h, w, new_h, new_w

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        assert img.shape[:2] == (self.h, self.w), (img.shape, self.h, self.w)
        return resize_image(img, (self.new_h, self.new_w))

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        size = (self.new_h, self.new_w)
        return resize_labels_window(segmentation, size, (0, 0, *size))

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords * np.array([self.new_w / self.w, self.new_h / self.h])

    def inverse(self) -> "CvResizeTransform":
        return CvResizeTransform(self.new_h, self.new_w, self.h, self.w)


class KeepRatioResize(Augmentation):
    """Scale the image, aspect kept, into ``scale`` times a random factor.

    Args:
        scale: (long side, short side) in pixels.
        ratio_range: uniform range of the factor; both sides are truncated after multiplying.
    """

    def __init__(
        self, scale: tuple[int, int], ratio_range: tuple[float, float] = (1.0, 1.0)
    ) -> None:
        self.scale, self.ratio_range = tuple(scale), tuple(ratio_range)

    def get_transform(self, image: np.ndarray) -> Transform:
        return CvResizeTransform(*image.shape[:2], *self.draw_size(*image.shape[:2]))

    def draw_size(self, height: int, width: int) -> Size:
        """Draw the new height and width of an image."""
        low, high = self.ratio_range
        ratio = np.random.uniform(low, high) if low < high else low
        target = (int(self.scale[0] * ratio), int(self.scale[1] * ratio))
        return keep_ratio_size(height, width, target)


class ShortestEdgeResize(Augmentation):
    """Scale the image to a random short side, as Mask2Former is trained.

    Args:
        edges: short sides in pixels to choose from, or (lowest, highest).
        max_size: bound of the long side in pixels.
        sampling: "choice" among ``edges`` or "range" between the two.
    """

    def __init__(self, edges: tuple[int, ...], max_size: int, sampling: str = "choice") -> None:
        self.edges, self.max_size, self.sampling = tuple(edges), max_size, sampling

    def get_transform(self, image: np.ndarray) -> Transform:
        return CvResizeTransform(*image.shape[:2], *self.draw_size(*image.shape[:2]))

    def draw_size(self, height: int, width: int) -> Size:
        """Draw the new height and width of an image."""
        if self.sampling == "range":
            edge = np.random.randint(self.edges[0], self.edges[1] + 1)
        else:
            edge = np.random.choice(self.edges)
        return shortest_edge_size(height, width, int(edge), self.max_size)


class CategoryLimitedCrop(Augmentation):
    """Random crop in which no class takes ``max_area`` of the labelled area or more.

    A crop is drawn up to 10 times and taken if it holds at least two classes and the largest one
    covers less than ``max_area``; the 11th is taken as it is. Sides smaller than the crop stay
    whole (the model pads).

    Args:
        size: (height, width) in pixels.
        max_area: bound in (0, 1]; 1 takes the first crop.
    """

    def __init__(self, size: tuple[int, int], max_area: float = 0.75) -> None:
        self.size, self.max_area = tuple(size), max_area

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray | None) -> Transform:
        height, width = image.shape[:2]

        def cut(window: Window) -> np.ndarray:
            y, x, crop_h, crop_w = window
            return sem_seg[y : y + crop_h, x : x + crop_w]

        y, x, crop_h, crop_w = self.draw_window(height, width, None if sem_seg is None else cut)
        if (crop_h, crop_w) == (height, width):
            return NoOpTransform()
        return CropTransform(x, y, crop_w, crop_h, width, height)

    def draw_window(
        self, height: int, width: int, labels_in: Callable[[Window], np.ndarray] | None
    ) -> Window:
        """Draw the crop of an image.

        Args:
            height, width: of the image, in pixels.
            labels_in: gives the train ids within a window; None takes the first crop.
        """
        crop_h, crop_w = min(self.size[0], height), min(self.size[1], width)
        if (crop_h, crop_w) == (height, width):
            return (0, 0, height, width)
        for attempt in range(_CROP_ATTEMPTS + 1):
            y = np.random.randint(0, height - crop_h + 1)
            x = np.random.randint(0, width - crop_w + 1)
            window = (y, x, crop_h, crop_w)
            if labels_in is None or self.max_area >= 1.0 or attempt == _CROP_ATTEMPTS:
                break
            if self._is_mixed(labels_in(window)):
                break
        return window

    def _is_mixed(self, labels: np.ndarray) -> bool:
        counts = count_ids(labels)
        counts[IGNORE_LABEL] = 0
        return np.count_nonzero(counts) >= 2 and counts.max() / counts.sum() < self.max_area


def build_augmentations(cfg: CfgNode, is_train: bool) -> list[Augmentation]:
    """Build what ``cfg.INPUT`` says; at test resize only.

    Raises:
        ValueError: a key has a value that cannot be used.
    """
    if not is_train:
        if cfg.TEST.SEM_SEG.TTA.ENABLED:  # each view is made from the image as it is
            return []
        return [KeepRatioResize(_pair(cfg.INPUT.RESIZE.SCALE_TEST, "INPUT.RESIZE.SCALE_TEST"))]
    augmentations = [_build_train_resize(cfg)]
    crop = cfg.INPUT.CROP
    if crop.ENABLED:
        augmentations.append(CategoryLimitedCrop(crop_size(cfg), crop.SINGLE_CATEGORY_MAX_AREA))
    if cfg.INPUT.FLIP_PROBABILITY > 0:
        augmentations.append(RandomFlip(cfg.INPUT.FLIP_PROBABILITY))
    vertical = _probability(cfg, "VERTICAL_FLIP_PROBABILITY")
    if vertical > 0:
        augmentations.append(RandomFlip(vertical, horizontal=False, vertical=True))
    rotated = _probability(cfg, "ROTATE_90_PROBABILITY")
    if rotated > 0:
        augmentations.append(RandomRotate90(rotated))
    if cfg.INPUT.PHOTOMETRIC_DISTORTION:
        augmentations.append(PhotometricDistortion())
    return augmentations


def _build_train_resize(cfg: CfgNode) -> Augmentation:
    resize = cfg.INPUT.RESIZE
    if resize.TYPE_TRAIN == "shortest_edge":
        sampling = cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
        return ShortestEdgeResize(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, sampling)
    if resize.TYPE_TRAIN != "keep_ratio":
        raise ValueError(
            f"`INPUT.RESIZE.TYPE_TRAIN` must be one of ['keep_ratio', 'shortest_edge'], "
            f"but is {resize.TYPE_TRAIN!r}."
        )
    low_high = tuple(resize.RATIO_RANGE)
    if len(low_high) != 2 or not 0 < low_high[0] <= low_high[1]:
        raise ValueError(
            f"`INPUT.RESIZE.RATIO_RANGE` must be two numbers 0 < low <= high, "
            f"but is {list(low_high)}."
        )
    return KeepRatioResize(_pair(resize.SCALE, "INPUT.RESIZE.SCALE"), low_high)


def _probability(cfg: CfgNode, key: str) -> float:
    value = cfg.INPUT[key]
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"`INPUT.{key}` must be in [0, 1], but is {value!r}.")
    return value


def crop_size(cfg: CfgNode) -> tuple[int, int]:
    """Height and width of training crops in pixels.

    Raises:
        ValueError: `INPUT.CROP.SIZE` is no such pair, or `INPUT.CROP.TYPE` another kind.
    """
    if cfg.INPUT.CROP.TYPE != "absolute":
        raise ValueError(f"`INPUT.CROP.TYPE` must be 'absolute', but is {cfg.INPUT.CROP.TYPE!r}.")
    return _pair(cfg.INPUT.CROP.SIZE, "INPUT.CROP.SIZE")


def _pair(value: list[int], key: str) -> tuple[int, int]:
    if len(value) != 2 or not all(isinstance(v, int) and v > 0 for v in value):
        raise ValueError(f"`{key}` must be two positive integers, but is {list(value)}.")
    return tuple(value)
