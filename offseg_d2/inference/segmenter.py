"""The shortest way from a checkpoint to a segmented image.

::

    from offseg_d2 import Segmenter

    segment = Segmenter.from_checkpoint("output/demo/model_final.pth")
    result = segment("street.jpg")
    result.areas()          # {"road": 0.31, "sky": 0.22, ...}
    result.polygons("sky")  # outlines; result.rle("sky") for COCO
    result.save("street_overlay.png")
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import Metadata
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask

from offseg_d2.checkpoint import CheckpointError, load_checkpoint_file
from offseg_d2.config import load_config, load_config_text
from offseg_d2.data import ImageReader, ImageSettings
from offseg_d2.data.datasets.class_file import class_table
from offseg_d2.inference.predictor import MAX_PIXELS, Predictor
from offseg_d2.inference.windows import label_map_by_windows
from offseg_d2.utils.io import write_picture
from offseg_d2.visualization.classes import class_names, color_map

# Others, such as CMYK, have no single meaning as 8-bit RGB.
_PILLOW_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16", "I;16B", "I;16L"}
ImageLike = str | os.PathLike[str] | np.ndarray | Image.Image


@dataclass(frozen=True)
class Segmentation:
    """A segmented image.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) integer class ids.
        metadata: names and colours of the classes.
        confidence: (H, W) float32, probability of each pixel's class, where it was asked for.
    """

    image: np.ndarray
    labels: np.ndarray
    metadata: Metadata
    confidence: np.ndarray | None = None

    def areas(self) -> dict[str, float]:
        """Share of the image of each class that is in it, the largest first."""
        ids, counts = np.unique(self.labels, return_counts=True)
        names = class_names(self.metadata, int(ids.max()) + 1)
        order = counts.argsort()[::-1]
        return {names[ids[i]]: float(counts[i]) / self.labels.size for i in order}

    def mask(self, name: str) -> np.ndarray:
        """Pixels of a class: (H, W) bool.

        Raises:
            ValueError: there is no class of this name.
        """
        names = class_names(self.metadata)
        if name not in names:
            raise ValueError(f"`name` must be one of {names}, but is {name!r}.")
        return self.labels == names.index(name)

    def polygons(self, name: str, *, min_area: float = 0.0) -> list[np.ndarray]:
        """Outlines of the connected parts of a class, through the centres of their border pixels.

        Holes are not cut out; :meth:`rle` has them.

        Args:
            name: of the class.
            min_area: parts with a smaller area inside the outline are left out, in pixels.

        Returns:
            (N, 2) int32 corners x, y of each part, the largest first.

        Raises:
            ValueError: there is no class of this name.
        """
        mask = self.mask(name).astype(np.uint8)
        found, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        areas = [cv2.contourArea(contour) for contour in found]
        order = sorted(range(len(found)), key=lambda index: -areas[index])
        return [found[index].reshape(-1, 2) for index in order if areas[index] >= min_area]

    def rle(self, name: str) -> dict[str, Any]:
        """Pixels of a class as COCO's compressed run lengths: {"size": [H, W], "counts": text}.

        Raises:
            ValueError: there is no class of this name.
        """
        encoded = coco_mask.encode(np.asfortranarray(self.mask(name).astype(np.uint8)))
        return {"size": [int(n) for n in encoded["size"]], "counts": encoded["counts"].decode()}

    def overlay(self, opacity: float = 0.5) -> np.ndarray:
        """The image under the colours of its classes: (H, W, 3) uint8 RGB."""
        from offseg_d2.visualization.overlay import overlay  # draws with matplotlib

        return overlay(self.image, self.labels, self.metadata, opacity=opacity)

    def colors(self) -> np.ndarray:
        """The pure colours of the classes: (H, W, 3) uint8 RGB."""
        return color_map(self.labels, self.metadata)

    def save(self, path: str, opacity: float = 0.5) -> None:
        """Write the overlay; ``path`` ends in .png or .jpg."""
        write_picture(path, self.overlay(opacity))


class Segmenter:
    """A trained model, called with images.

    Args:
        predictor: the model with its preprocessing.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    @classmethod
    def from_checkpoint(
        cls,
        path: str,
        *,
        config_file: str = "",
        device: str = "",
        opts: Sequence[str] = (),
        max_pixels: int = MAX_PIXELS,
    ) -> "Segmenter":
        """Load a model.

        Args:
            path: checkpoint. Those that this project trains carry their configuration and the
                names of their classes.
            config_file: configuration, for a checkpoint that carries none, or instead of it.
            device: "cpu", "cuda", ...; by default that of the configuration if it is there.
            opts: KEY VALUE pairs that change the configuration.
            max_pixels: image files of more are refused before they are decoded.

        Raises:
            FileNotFoundError, CheckpointError: the file is absent, damaged, or has no
                configuration and none is given.
            ConfigError: the configuration cannot be used.
        """
        content = load_checkpoint_file(path)
        changes = [*opts, "MODEL.WEIGHTS", path, *(["MODEL.DEVICE", device] if device else [])]
        if config_file:
            cfg = load_config(config_file, changes)
        elif isinstance(content.get("cfg"), str):
            cfg = load_config_text(content["cfg"], path, changes)
        else:
            raise CheckpointError(
                f"Checkpoint file `{path}` must carry a configuration to be used alone, but has "
                "none; name the configuration of the model too (config_file)."
            )
        predictor = Predictor(cfg, metadata=_classes_of(path, content, cfg))
        predictor.read.settings = predictor.read.settings._replace(max_pixels=max_pixels)
        return cls(predictor)

    def __call__(self, image: ImageLike, *, confidence: bool = False) -> Segmentation:
        """Segment an image.

        Args:
            image: path, PIL image, or (H, W, 3) uint8 **RGB** (grey (H, W) too).
            confidence: also give the probability of each pixel's class; takes a little longer.

        Raises:
            FileNotFoundError, DataFileError: the file cannot be read.
            ValueError: an array of another shape or type.
        """
        if not confidence:
            return self.batch([image])[0]
        bgr, rgb = _read(image, self.predictor.read)
        labels = np.empty(bgr.shape[:2], dtype=np.int32)
        chosen = np.empty(bgr.shape[:2], dtype=np.float32)
        for first, block in self.predictor.probability_blocks(bgr):
            rows = slice(first, first + block.shape[1])
            best = block.max(dim=0)
            chosen[rows], labels[rows] = best.values.cpu().numpy(), best.indices.cpu().numpy()
        return Segmentation(rgb, labels, self.predictor.metadata, chosen)

    def probabilities(self, image: ImageLike) -> np.ndarray:
        """Probabilities of all classes: (K, H, W) float32, whose sum over the classes is 1.

        Args:
            image: as above.

        Raises:
            FileNotFoundError, DataFileError: the file cannot be read.
            ValueError: an array of another shape or type.
        """
        bgr, _ = _read(image, self.predictor.read)
        blocks = [block.cpu().numpy() for _, block in self.predictor.probability_blocks(bgr)]
        return np.concatenate(blocks, axis=1).astype(np.float32, copy=False)

    def large(
        self,
        image: np.ndarray,
        *,
        window: int = 2048,
        overlap: int = 256,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Label map of an image that is too large for memory, window by window.

        Each window is predicted as an image of its own, at its own test scale; where windows
        overlap, each counts up to the middle.

        Args:
            image: (H, W, 3) uint8 **RGB**, such as a ``np.memmap``; only windows of it are read.
            window: side of a window in pixels.
            overlap: of neighbouring windows in pixels, less than half a window.
            out: (H, W) integers to be filled, such as a ``np.memmap``; a new uint8 array if None.

        Returns:
            ``out``.

        Raises:
            ValueError: a number, shape or type cannot be used.
        """
        return label_map_by_windows(lambda part: self(part).labels, image, window, overlap, out)

    def batch(self, images: Sequence[ImageLike]) -> list[Segmentation]:
        """Segment several images; those of one size go through the network together.

        Args:
            images: as above, all in memory at once.

        Returns:
            what each would give alone, in the same order.

        Raises:
            FileNotFoundError, DataFileError: one of the files cannot be read.
            ValueError: an array of another shape or type.
        """
        pictures = [_read(image, self.predictor.read) for image in images]
        label_maps = self.predictor.label_maps([bgr for bgr, _ in pictures])
        return [
            Segmentation(rgb, labels, self.predictor.metadata)
            for (_, rgb), labels in zip(pictures, label_maps, strict=True)
        ]


def _read(image: ImageLike, read: ImageReader) -> tuple[np.ndarray, np.ndarray]:
    """The image as the predictor takes it, BGR, and in RGB; each (H, W, 3) uint8."""
    if isinstance(image, str | os.PathLike):
        bgr = read(os.fspath(image))
        return bgr, np.ascontiguousarray(bgr[..., ::-1])
    rgb = _to_rgb(image, read)
    return np.ascontiguousarray(rgb[..., ::-1]), rgb


def _to_rgb(image: np.ndarray | Image.Image, read: ImageReader) -> np.ndarray:
    if isinstance(image, Image.Image):
        return _pixels_of(image, read)
    if not (isinstance(image, np.ndarray) and image.dtype == np.uint8):
        what = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"`image` must be a path, a PIL image or uint8 values, but is {what}.")
    if image.ndim == 2:
        return np.repeat(image[..., None], 3, axis=2)
    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"`image` must have the shape (H, W, 3), but has {image.shape}.")
    return image


def _pixels_of(image: Image.Image, read: ImageReader) -> np.ndarray:
    """Return the pixels that would be read of the image's file: upright, 8 bits, no opacity."""
    _refuse_lost_bits(image, read.settings)
    if image.mode not in _PILLOW_MODES:
        raise ValueError(
            f"`image` must be of one of Pillow's modes {sorted(_PILLOW_MODES)}, but is "
            f"{image.mode!r}; convert it to 'RGB' as it is meant."
        )
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        read.warn(read.settings.range_warning("The image", int(values.min()), int(values.max())))
        return np.repeat(read.settings.to_bytes(values)[..., None], 3, axis=2)
    return np.asarray(image.convert("RGB"))


def _refuse_lost_bits(image: Image.Image, settings: ImageSettings) -> None:
    """Refuse what Pillow does not read as the settings say: other bands, colours of 16 bits."""
    if settings.bands and image.format == "TIFF":
        raise ValueError("`image` must be given by its path for `INPUT.BANDS`, but is a PIL image.")
    stored = str(image.tile[0].args) if getattr(image, "tile", None) else ""
    if settings.max_value < 65535 and ";16" in stored and not image.mode.startswith("I"):
        raise ValueError(
            "`image` must be given by its path for `INPUT.MAX_VALUE_16_BIT`, because Pillow keeps "
            "only the upper 8 bits of 16-bit colours, but is a PIL image."
        )


def _classes_of(path: str, content: dict, cfg: CfgNode) -> Metadata | None:
    """Names and colours that the checkpoint carries, whatever a data set of that name has here."""
    classes = content.get("classes")
    names = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
    if not isinstance(classes, dict) or "names" not in classes:
        return None
    try:
        table = class_table(
            {"classes": classes["names"], "palette": classes.get("colors")}, "Its entry `classes`"
        )
    except ValueError as error:
        raise CheckpointError(f"Checkpoint file `{path}` cannot be used alone: {error}") from None
    return Metadata(
        name=names[0] if names else "checkpoint",
        stuff_classes=[name for name, _ in table.classes],
        stuff_colors=[tuple(color) for _, color in table.classes],
    )
