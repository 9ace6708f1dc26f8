"""Predictions as palette PNGs: class ids, or in the form that a benchmark's test server takes.

A PNG holds indices into a palette of the classes' colours: programs that measure read the indices,
people see colours. Files can be read back into class ids, so that an evaluation can go on where it
was stopped; each is either complete or not there.

Forms (``TEST.SEM_SEG.PREDICTION_FORMAT``):

* "class_ids": class ids 0..K-1, 255 for none; named as the image, in its folders.
* "cityscapes": label ids 7, 8, 11, ..., 33, 0 for none; ``<city>_<sequence>_<frame>_pred.png``,
  which cityscapesScripts' ``evalPixelLevelSemanticLabeling`` and the server recognise by its
  beginning.
* "ade20k": 1..150, 0 for none; named as the image.
"""

import functools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image

from offseg_d2.data.image_io import open_with_pillow, read_bytes
from offseg_d2.utils.io import write_atomically

# trainId -> id of github.com/mcordts/cityscapesScripts, helpers/labels.py
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_CITYSCAPES_NAME = re.compile(r"([^_]+_\d+_\d+)(_.*)?\.\w+")


@dataclass(frozen=True)
class PredictionFormat:
    """The form in which a prediction is written.

    Attributes:
        ids: id of each class in the file; None for the class ids themselves.
        none: id of pixels that are predicted as no class.
        keep_folders: files lie in folders as the images do, instead of all in one.
    """

    ids: tuple[int, ...] | None
    none: int
    keep_folders: bool = False


PREDICTION_FORMATS: dict[str, PredictionFormat] = {
    "class_ids": PredictionFormat(None, 255, keep_folders=True),
    "cityscapes": PredictionFormat(CITYSCAPES_IDS, 0),
    "ade20k": PredictionFormat(tuple(range(1, 151)), 0),
}


class PredictionFolder:
    """A folder of predictions, one PNG for each image.

    Args:
        directory: local folder, made when the first file is written.
        format_name: one of :data:`PREDICTION_FORMATS`.
        class_colors: (K, 3) RGB, 0..255, of the palette.
        image_root: folder of the images, whose inner folders are used again if the form allows it.

    Attributes:
        num_classes: K.

    Raises:
        ValueError: the form is unknown, or not one for K classes.
    """

    def __init__(
        self,
        directory: str,
        format_name: str,
        class_colors: Sequence[Sequence[int]] | np.ndarray,
        image_root: str = "",
    ) -> None:
        if format_name not in PREDICTION_FORMATS:
            raise ValueError(
                f"`TEST.SEM_SEG.PREDICTION_FORMAT` must be one of {sorted(PREDICTION_FORMATS)}, "
                f"but is {format_name!r}."
            )
        self.directory = directory
        self.image_root = image_root
        self.format_name = format_name
        self.format = PREDICTION_FORMATS[format_name]
        colors = np.asarray(class_colors, dtype=np.uint8).reshape(-1, 3)
        self.num_classes = len(colors)
        ids = self.format.ids or tuple(range(self.num_classes))
        if len(ids) != self.num_classes or self.num_classes > 255:
            allowed = len(ids) if self.format.ids else "at most 255"
            raise ValueError(
                f"`TEST.SEM_SEG.PREDICTION_FORMAT` {format_name!r} must be used with {allowed} "
                f"classes, but the data set has {self.num_classes}."
            )
        self._to_file = np.full(256, self.format.none, dtype=np.uint8)
        self._to_file[: len(ids)] = ids
        self._to_class = np.full(256, 255, dtype=np.uint8)
        self._to_class[list(ids)] = np.arange(len(ids))
        palette = np.zeros((256, 3), dtype=np.uint8)
        palette[list(ids)] = colors
        self._palette = palette.tobytes()
        self._owners: dict[str, str] = {}  # path -> image

    def path(self, file_name: str) -> str:
        """Path of the prediction for an image.

        Raises:
            ValueError: the form cannot be used for an image of this name, or the prediction for
                another image has the same path.
        """
        name = image_name(file_name, self.image_root if self.format.keep_folders else "")
        if self.format_name == "cityscapes":
            match = _CITYSCAPES_NAME.fullmatch(name)
            if match is None:
                raise ValueError(
                    "Images must be named <city>_<sequence>_<frame>_leftImg8bit.png for "
                    f"`TEST.SEM_SEG.PREDICTION_FORMAT` 'cityscapes', but one is '{file_name}'."
                )
            name = f"{match[1]}_pred.png"
        path = os.path.join(self.directory, os.path.splitext(name)[0] + ".png")
        owner = self._owners.setdefault(path, file_name)
        if owner != file_name:
            raise ValueError(
                f"Images must have different names for predictions to be written, but '{owner}' "
                f"and '{file_name}' would both have '{path}'."
            )
        return path

    def write(self, file_name: str, class_ids: np.ndarray) -> str:
        """Write the prediction for an image; returns the path.

        Args:
            file_name: of the image.
            class_ids: (H, W) integers; those outside 0..K-1 become the form's "none".
        """
        path = PathManager.get_local_path(self.path(file_name))
        known = (class_ids >= 0) & (class_ids < self.num_classes)
        indices = self._to_file[np.where(known, class_ids, 255).astype(np.uint8)]
        picture = Image.fromarray(indices)
        picture.putpalette(self._palette)  # the mode becomes "P"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_atomically(path, functools.partial(picture.save, format="PNG"))
        return path

    def load(self, sample: Mapping[str, Any]) -> np.ndarray | None:
        """Read the prediction for an image back.

        Args:
            sample: with "file_name" and, to be checked against, "height" and "width".

        Returns:
            (H, W) uint8 class ids, 255 for none; None if the file is not there, is damaged, or has
            another size than the image.
        """
        path = self.path(sample["file_name"])
        if not PathManager.isfile(path):
            return None
        try:
            with open_with_pillow(read_bytes(path, "Prediction")) as picture:
                indices = np.array(picture) if picture.mode == "P" else None
        # Pillow reports broken files as OSError, SyntaxError or ValueError.
        except (OSError, SyntaxError, ValueError):
            return None
        if indices is None:
            return None
        size = sample.get("height", indices.shape[0]), sample.get("width", indices.shape[1])
        return self._to_class[indices] if indices.shape == size else None


def image_name(file_name: str, root: str) -> str:
    """Path of an image relative to ``root`` if it lies there, else its last part."""
    if root:
        relative = os.path.relpath(file_name, root)
        if not relative.startswith(os.pardir):
            return relative
    return os.path.basename(file_name)
