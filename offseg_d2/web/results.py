"""Results for an uploaded image: label maps, pictures, areas, offsets, files. Needs no gradio.

Pictures are (H, W, 3) uint8 RGB. Pictures for the page are at most :data:`_LARGEST` pixels wide or
high; files have the size of the image.
"""

import dataclasses
import functools
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from PIL import Image

from offseg_d2.config import ConfigError
from offseg_d2.inference.offset_views import shown_pixel, trace_image
from offseg_d2.inference.segmenter import Segmentation, Segmenter
from offseg_d2.utils.io import write_picture
from offseg_d2.visualization.classes import class_colors, class_names, to_labels
from offseg_d2.visualization.drawing import UNCHOSEN, palette_png
from offseg_d2.visualization.offset_figure import TracedImage, draw_offsets
from offseg_d2.visualization.offset_trace import offset_layer
from offseg_d2.web.uploads import Limits, Upload, UploadError, read_upload

logger = logging.getLogger(__name__)
T = TypeVar("T")

DIFFERENT = "A and B differ"
_LARGEST = 1600
Annotated = tuple[np.ndarray, list[tuple[np.ndarray, str]]]


@dataclass(frozen=True, eq=False)
class Result:
    """Predictions for an uploaded image.

    Attributes:
        upload: the image.
        predictions: one of each model; their labels are of the smallest integer type.
        seconds: taken by each model.
    """

    upload: Upload
    predictions: tuple[Segmentation, ...]
    seconds: tuple[float, ...]

    @property
    def difference(self) -> np.ndarray:
        """Pixels where the two models differ: (H, W) bool."""
        first, second = self.predictions
        return first.labels != second.labels


class Models:
    """One model, or two to compare. They are not to be run from several threads at once.

    Args:
        segmenters: one or two, of the same classes.
        limits: of the uploads.

    Attributes:
        names: of the models on the page.
        classes: names of the classes.
        colors: name of a class -> its colour, "#rrggbb".

    Raises:
        ConfigError: the models have different classes.
    """

    def __init__(self, segmenters: Sequence[Segmenter], limits: Limits) -> None:
        self.segmenters, self.limits = tuple(segmenters), limits
        self.names = ("Model",) if len(segmenters) == 1 else ("A", "B")
        metadata = segmenters[0].predictor.metadata
        self.classes = class_names(metadata)
        colors = class_colors(metadata).tolist()
        self.colors = {
            name: "#{:02x}{:02x}{:02x}".format(*color)
            for name, color in zip(self.classes, colors, strict=True)
        }
        for other in segmenters[1:]:
            if (names := class_names(other.predictor.metadata)) != self.classes:
                raise ConfigError(
                    "`--weights2` must be a checkpoint of the same classes as `--weights`, "
                    f"{len(self.classes)} from {self.classes[:3]} on, but has "
                    f"{len(names)} from {names[:3]} on."
                )
        # The terms of the offsets are large: only those of the image drawn last stay in memory.
        self._trace = functools.lru_cache(maxsize=len(self.segmenters))(self._compute_trace)

    def has_offsets(self, index: int) -> bool:
        """Return whether a model has an offset classifier or mask predictor."""
        try:
            offset_layer(self.segmenters[index].predictor.model)
        except ValueError:
            return False
        return True

    def describe(self, index: int) -> str:
        """Describe a model in one line that begins with the end of its file's path."""
        predictor = self.segmenters[index].predictor
        millions = sum(p.numel() for p in predictor.model.parameters()) / 1e6
        backbone = predictor.cfg.MODEL.BACKBONE.NAME.removeprefix("build_")
        kind = "offset" if self.has_offsets(index) else "plain"
        file = "/".join(os.path.abspath(predictor.cfg.MODEL.WEIGHTS).split(os.sep)[-2:])
        return (
            f"{file}: {backbone.removesuffix('_backbone')}, {kind} classifier, {len(self.classes)} "
            f"classes, {millions:.1f} M parameters, on {predictor.cfg.MODEL.DEVICE}"
        )

    def predict(self, path: str) -> Result:
        """Run every model on an uploaded file.

        Raises:
            UploadError: the file cannot be used, or a model fails on it.
        """
        upload = read_upload(path, self.limits, self.segmenters[0].predictor.read.settings)
        predictions, seconds = [], []
        for segmenter in self.segmenters:
            start = time.perf_counter()
            predicted = _run(segmenter, upload.image)
            seconds.append(time.perf_counter() - start)
            labels = predicted.labels.astype(np.min_scalar_type(len(self.classes)), copy=False)
            predictions.append(dataclasses.replace(predicted, labels=labels))
        return Result(upload, tuple(predictions), tuple(seconds))

    def status(self, result: Result) -> str:
        """Describe a result in one line: size, seconds, difference, what was not used."""
        height, width = result.upload.image.shape[:2]
        parts = [f"{width} × {height} pixels"]
        for name, seconds in zip(self.names, result.seconds, strict=True):
            parts.append(f"{name}: {seconds:.2f} s")
        if len(result.predictions) > 1:
            parts.append(f"{DIFFERENT} in {100 * result.difference.mean():.1f} % of the pixels")
        return " · ".join([*parts, *result.upload.notes])

    def annotated(self, result: Result) -> list[Annotated]:
        """Split results into image and masks: one of each model, and where two of them differ.

        Returns:
            picture and [(mask, name of its class)], the largest class first; masks are (H, W)
            float, 0 or 1.
        """
        height, width = result.upload.image.shape[:2]
        scale = min(1.0, _LARGEST / max(height, width))
        size = max(round(height * scale), 1), max(round(width * scale), 1)
        image = cv2.resize(result.upload.image, size[::-1], interpolation=cv2.INTER_AREA)
        shown: list[Annotated] = []
        for prediction in result.predictions:
            labels = to_labels(prediction.labels, size)
            names = [(self.classes.index(name), name) for name in prediction.areas()]
            shown.append((image, [((labels == i).astype(float), name) for i, name in names]))
        if len(result.predictions) > 1:
            differs = to_labels(result.difference.astype(np.uint8), size)
            shown.append((image, [(differs.astype(float), DIFFERENT)]))
        return shown

    def areas(self, result: Result) -> list[list[Any]]:
        """List the classes of an image by their area.

        Returns:
            rows of class, percent and pixels; with two models, of class, percent of A, of B, and
            the difference in percentage points.
        """
        areas = [prediction.areas() for prediction in result.predictions]
        if len(areas) == 1:
            size = result.predictions[0].labels.size
            return [
                [name, round(100 * share, 2), round(share * size)]
                for name, share in areas[0].items()
            ]
        shares = {name: [100 * area.get(name, 0.0) for area in areas] for name in self.classes}
        rows = [
            [name, round(a, 2), round(b, 2), round(b - a, 2)]
            for name, (a, b) in shares.items()
            if a or b
        ]
        return sorted(rows, key=lambda row: -max(row[1:3]))

    def classes_at(self, result: Result, pixel: tuple[int, int]) -> list[str]:
        """Return the class of each model at (x, y) of the image."""
        x, y = pixel
        return [self.classes[int(prediction.labels[y, x])] for prediction in result.predictions]

    def draw_offsets(
        self, result: Result, index: int, name: str | None, pixel: tuple[int, int] | None
    ) -> np.ndarray:
        """Draw the maps of the offsets of a model: similarity, attention, lengths, scores.

        Args:
            result: of the image.
            index: of a model with offsets; it is run again if another image was drawn last.
            name: class to show; by default that of the pixel, or the largest one.
            pixel: (x, y) in the image; by default one of the class.

        Raises:
            UploadError: the model fails on the image.
        """
        traced = self._trace(result, index)
        if pixel is not None:
            pixel = shown_pixel(pixel, result.upload.image.shape, traced.rgb.shape)
        class_id = None if name is None else self.classes.index(name)
        metadata = self.segmenters[index].predictor.metadata
        return _run(lambda: draw_offsets([traced], metadata, class_id=class_id, pixel=pixel))

    def _compute_trace(self, result: Result, index: int) -> TracedImage:
        bgr = np.ascontiguousarray(result.upload.image[..., ::-1])
        return _run(trace_image, self.segmenters[index].predictor, bgr)

    def write_files(self, result: Result, folder: str, opacity: float = 0.5) -> list[str]:
        """Write label map (values are class ids) and overlay of each model as PNG.

        Args:
            result: of the image.
            folder: to write into.
            opacity: of the overlay, 0..1.

        Returns:
            paths of the files.
        """
        paths = []
        for name, prediction in zip(self.names, result.predictions, strict=True):
            suffix = "" if len(self.names) == 1 else f"_{name}"
            stem = os.path.join(folder, result.upload.stem)
            paths += [f"{stem}_labels{suffix}.png", f"{stem}_overlay{suffix}.png"]
            if len(self.classes) <= UNCHOSEN:
                with open(paths[-2], "wb") as file:
                    file.write(palette_png(prediction.labels, prediction.metadata))
            else:
                Image.fromarray(prediction.labels.astype(np.uint16)).save(paths[-2])
            write_picture(paths[-1], prediction.overlay(opacity))
        return paths


def _run(function: Callable[..., T], *args: Any) -> T:
    """Call a function; its failure becomes a message without details, and an entry of the log."""
    try:
        return function(*args)
    except (MemoryError, torch.OutOfMemoryError):
        logger.exception("not enough memory")
        message = "There is not enough memory for this image; please make it smaller."
    except Exception:
        logger.exception("the model failed")
        message = "The model cannot be run on this image; the server's log says why."
    raise UploadError(message)
