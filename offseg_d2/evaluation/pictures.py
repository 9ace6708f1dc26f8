"""Pictures of an evaluation: ground truth and prediction beside each other, with a legend.

H x W pixels.
"""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from detectron2.data import Metadata
from detectron2.utils.file_io import PathManager

from offseg_d2.data import ImageSettings, read_image
from offseg_d2.data.image_settings import DEFAULT_SETTINGS
from offseg_d2.utils.io import write_picture
from offseg_d2.visualization.overlay import legend, overlay, side_by_side

from .observers import EvaluatedImage, EvaluationObserver
from .submission import image_name


class PictureWriter(EvaluationObserver):
    """Writes one JPEG for each image: ground truth, prediction, and a legend of their classes.

    Args:
        directory: local folder; inside it files lie and are called as the images.
        metadata: classes, colours and ``image_root`` of the data set.
        num_classes: K.
        settings: how the values of image files become colours.
    """

    def __init__(
        self,
        directory: str,
        metadata: Metadata,
        num_classes: int,
        settings: ImageSettings = DEFAULT_SETTINGS,
    ) -> None:
        self.settings = settings
        self.directory = directory
        self.metadata = metadata
        self.num_classes = num_classes

    def process(self, image: EvaluatedImage) -> None:
        """Write the picture, see :meth:`EvaluationObserver.process`."""
        self.write(image.file_name, image.prediction, image.label)

    def write(self, file_name: str, prediction: np.ndarray, label: np.ndarray | None = None) -> str:
        """Write the picture of one image; returns its path.

        Args:
            file_name: of the image.
            prediction: (H, W) integer class ids.
            label: likewise; None draws the image itself instead.
        """
        root = getattr(self.metadata, "image_root", "")
        name = os.path.splitext(image_name(file_name, root))[0] + ".jpg"
        path = PathManager.get_local_path(os.path.join(self.directory, name))
        image = read_photograph(file_name, self.settings)
        panels, maps = {"image": image}, [prediction]
        if label is not None:
            panels, maps = {"ground truth": self._overlay(image, label)}, [prediction, label]
        panels["prediction"] = self._overlay(image, prediction)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_picture(path, with_legend(panels, maps, self.metadata, self.num_classes))
        return path

    def _overlay(self, image: np.ndarray, class_ids: np.ndarray) -> np.ndarray:
        return overlay(image, class_ids.astype(np.int32), self.metadata, ignored=True)


def with_legend(
    panels: Mapping[str, np.ndarray],
    maps: Sequence[np.ndarray],
    metadata: Metadata,
    num_classes: int = 0,
) -> np.ndarray:
    """Pictures side by side under their captions, above the names of the classes they show.

    Args:
        panels: caption -> (H, W, 3) uint8 RGB.
        maps: (H, W) integer class ids; what is no class is listed as ignored.
        metadata: classes and colours.
        num_classes: at least so many, whatever the metadata holds.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    row = side_by_side(list(panels.values()), list(panels))
    present = np.concatenate([np.unique(class_ids) for class_ids in maps])
    return np.concatenate([row, legend(metadata, row.shape[1], present, num_classes, ignored=True)])


def read_photograph(file_name: str, settings: ImageSettings) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an image file, EXIF orientation applied.

    Raises:
        DataFileError: the file cannot be read.
    """
    return np.ascontiguousarray(read_image(file_name, settings)[..., ::-1])
