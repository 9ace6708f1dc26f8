"""The best and the worst images of an evaluation, chosen with bounded memory.

Each process keeps label and prediction, made small, of its own n best and n worst images; the n
best of all processes are among these.

Shapes: K classes, H x W pixels.
"""

import bisect
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image, ImageOps

from .report_figures import ExamplePictures, draw_example, thumbnail_labels

logger = logging.getLogger(__name__)

ImageReader = Callable[[str], np.ndarray]


@dataclass(frozen=True)
class ImageResult:
    """What is known of one image.

    Attributes:
        file_name: of the image.
        scores: "mIoU" and "pACC" of this image alone, percent; NaN if it has no labelled pixel.
        class_ids: the classes of its ground truth, the largest first.
        pictures: only of images that a process keeps.
    """

    file_name: str
    scores: Mapping[str, float]
    class_ids: tuple[int, ...] = ()
    pictures: ExamplePictures | None = None


@dataclass(frozen=True)
class _Kept:
    label: np.ndarray
    prediction: np.ndarray
    class_ids: tuple[int, ...]


class ExampleKeeper:
    """Keeps the images with the lowest and the highest scores that it is offered.

    Args:
        number: how many at each end.
        max_side: largest height and width to be shown, in pixels.
        colors: (K, 3) uint8 RGB.
        ignore_value: label of pixels that do not count.
        read_image: returns (H, W, 3) uint8 RGB for a file name.
    """

    def __init__(
        self,
        number: int,
        max_side: int,
        colors: np.ndarray,
        ignore_value: int,
        read_image: ImageReader,
    ) -> None:
        self.number = number
        self.max_side = max_side
        self.colors = colors
        self.ignore_value = ignore_value
        self.read_image = read_image
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._order: list[tuple[float, str]] = []  # at most 2 n, ascending
        self._kept: dict[str, _Kept] = {}

    def offer(
        self, file_name: str, score: float, label: np.ndarray, prediction: np.ndarray
    ) -> None:
        """Keep an image if it is among the best or worst so far; NaN scores are not ranked.

        Args:
            file_name: of the image.
            score: the higher, the better.
            label: (H, W) integer class ids, not kept itself.
            prediction: likewise.
        """
        if math.isnan(score) or self.number == 0:
            return
        key = (score, file_name)  # equal scores: by name, whatever the order of the images
        place = bisect.bisect_left(self._order, key)
        is_full = len(self._order) == 2 * self.number
        if is_full and place == self.number:  # worse than the best ones, better than the worst
            return
        self._order.insert(place, key)
        self._kept[file_name] = _Kept(
            _compact(thumbnail_labels(label, self.max_side)),
            _compact(thumbnail_labels(prediction, self.max_side)),
            _classes_by_size(label, len(self.colors)),
        )
        if is_full:
            _, dropped = self._order.pop(self.number)
            del self._kept[dropped]

    def result(self, file_name: str, scores: Mapping[str, float]) -> ImageResult:
        """What is known of an image, with pictures if it is kept."""
        kept = self._kept.get(file_name)
        if kept is None:
            return ImageResult(file_name, scores)
        return ImageResult(file_name, scores, kept.class_ids, self._draw(file_name, kept))

    def _draw(self, file_name: str, kept: _Kept) -> ExamplePictures:
        try:
            image = self.read_image(file_name)
        except (OSError, ValueError) as error:
            # The numbers of a long evaluation are worth more than one picture.
            logger.warning("The report shows no photograph of %s: %s", file_name, error)
            image = None
        return draw_example(image, kept.label, kept.prediction, self.colors, self.ignore_value)


def _compact(labels: np.ndarray) -> np.ndarray:
    """The same ids in a small type; a copy, so that the whole map can be freed."""
    small = labels.min(initial=0) >= 0 and labels.max(initial=0) <= 255
    return labels.astype(np.uint8 if small else np.int32)


def _classes_by_size(label: np.ndarray, num_classes: int) -> tuple[int, ...]:
    counted = label[(label >= 0) & (label < num_classes)]
    sizes = np.bincount(counted.astype(np.int64), minlength=num_classes)
    order = np.argsort(-sizes, kind="stable")[: np.count_nonzero(sizes)]
    return tuple(int(class_id) for class_id in order)


def choose_examples(
    images: list[ImageResult], rank_by: str, number: int
) -> tuple[list[ImageResult], list[ImageResult]]:
    """Choose the best and the worst images; no image is both.

    Args:
        images: of all processes; those that may be chosen with their pictures.
        rank_by: "mIoU" or "pACC".
        number: how many of each at most.

    Returns:
        best (best first), worst (worst first).
    """
    order = [image for image in images if not math.isnan(image.scores[rank_by])]
    order.sort(key=lambda image: (image.scores[rank_by], image.file_name))
    num_worst = min(number, len(order) // 2)
    num_best = min(number, len(order) - num_worst)
    best = sorted(order[len(order) - num_best :], key=lambda image: -image.scores[rank_by])
    return best, order[:num_worst]


def read_photograph(file_name: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an image file, EXIF orientation applied.

    Raises:
        OSError: the file is missing or no image.
    """
    with PathManager.open(file_name, "rb") as file, Image.open(file) as picture:
        return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
