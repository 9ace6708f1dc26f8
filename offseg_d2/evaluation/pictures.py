"""Pictures of an evaluation: ground truth and prediction drawn over the image, side by side."""

import os
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from detectron2.data import Metadata
from detectron2.utils.file_io import PathManager

from offseg_d2.utils.io import write_atomically
from offseg_d2.visualization.overlay import legend, overlay, side_by_side

from .observers import EvaluationObserver
from .report_examples import ImageReader, read_photograph
from .submission import image_name

_JPEG_QUALITY = 92


class PictureWriter(EvaluationObserver):
    """Writes one JPEG for each image: ground truth, prediction, and a legend of their classes.

    Args:
        directory: local folder; inside it files lie and are called as the images.
        metadata: classes, colours and ``image_root`` of the data set.
        num_classes: K.
        opacity: of the colours, 0..1.
        read_image: returns (H, W, 3) uint8 RGB for a record's "file_name".
    """

    def __init__(
        self,
        directory: str,
        metadata: Metadata,
        num_classes: int,
        *,
        opacity: float = 0.5,
        read_image: ImageReader = read_photograph,
    ) -> None:
        self.directory = directory
        self.metadata = metadata
        self.num_classes = num_classes
        self.opacity = opacity
        self.read_image = read_image

    def process(
        self,
        record: Mapping[str, Any],
        label: np.ndarray,
        prediction: np.ndarray,
        counts: np.ndarray,
    ) -> None:
        """Write the picture, see :meth:`EvaluationObserver.process`."""
        self.write(record["file_name"], prediction, label)

    def write(self, file_name: str, prediction: np.ndarray, label: np.ndarray | None = None) -> str:
        """Write the picture of one image; returns its path.

        Args:
            file_name: of the image.
            prediction: (H, W) integer class ids.
            label: likewise; None draws the image itself in its place.
        """
        root = getattr(self.metadata, "image_root", "")
        name = os.path.splitext(image_name(file_name, root))[0] + ".jpg"
        path = PathManager.get_local_path(os.path.join(self.directory, name))
        picture = self._draw(self.read_image(file_name), prediction, label)
        options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
        encoded = cv2.imencode(".jpg", np.ascontiguousarray(picture[..., ::-1]), options)[1]
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_atomically(path, encoded.tobytes())
        return path

    def _draw(
        self, image: np.ndarray, prediction: np.ndarray, label: np.ndarray | None
    ) -> np.ndarray:
        panels, captions = [image], ["image"]
        if label is not None:
            panels, captions = [self._overlay(image, label)], ["ground truth"]
        row = side_by_side([*panels, self._overlay(image, prediction)], [*captions, "prediction"])
        maps = [prediction] if label is None else [prediction, label]
        present = np.concatenate([np.unique(class_ids) for class_ids in maps])
        strip = legend(self.metadata, row.shape[1], present, self.num_classes)
        return np.concatenate([row, strip])

    def _overlay(self, image: np.ndarray, class_ids: np.ndarray) -> np.ndarray:
        return overlay(image, class_ids.astype(np.int32), self.metadata, opacity=self.opacity)
