"""Pictures of the offsets from a configuration and images (``offseg offsets``).

The terms come from :mod:`.visualization.offset_trace`, the picture from `offset_figure` beside it.
"""

import difflib
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata

from offseg_d2.config import ConfigError
from offseg_d2.inference.predictor import MAX_PIXELS, Predictor, find_images
from offseg_d2.visualization.classes import class_names
from offseg_d2.visualization.offset_figure import TracedImage, draw_offsets
from offseg_d2.visualization.offset_trace import trace_offsets


def trace_image(predictor: Predictor, image: np.ndarray) -> TracedImage:
    """Trace the offsets in a (H, W, 3) uint8 BGR image, at the network's resolution."""
    sample = predictor.sample(image)
    planes = sample["image"].numpy()
    rgb = planes if predictor.cfg.INPUT.FORMAT == "RGB" else planes[::-1]
    trace = trace_offsets(predictor.model, sample)
    return TracedImage(np.ascontiguousarray(rgb.transpose(1, 2, 0)), trace)


def draw_offset_picture(
    cfg: CfgNode,
    inputs: Sequence[str],
    *,
    class_name: str | None = None,
    pixel: tuple[int, int] | None = None,
    plain_weights: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Draw the offsets of a model.

    Args:
        cfg: of a model with offsets; ``MODEL.WEIGHTS`` names its checkpoint.
        inputs: images and folders of such; the first image is shown.
        class_name: name or number of the class to show.
        pixel: (x, y) in the first image as it lies in its file.
        plain_weights: checkpoint of the same model with the plain classifier.
        max_pixels: image files of more are refused before they are decoded.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: the model has no offsets, or there is no such class, pixel or image.
        FileNotFoundError, CheckpointError: a checkpoint cannot be used.
    """
    paths = find_images(inputs)
    if cfg.MODEL.SEM_SEG_HEAD.CLASSIFIER != "offset":
        raise ConfigError(
            "`MODEL.SEM_SEG_HEAD.CLASSIFIER` must be 'offset' to show offsets, but is "
            f"{cfg.MODEL.SEM_SEG_HEAD.CLASSIFIER!r}."
        )
    predictor = Predictor(cfg)
    predictor.read.settings = predictor.read.settings._replace(max_pixels=max_pixels)
    class_id = None if class_name is None else find_class(class_name, predictor.metadata)
    originals = [predictor.read(path) for path in paths]
    images = [trace_image(predictor, image) for image in originals]
    shown = images[0].rgb.shape
    if pixel is not None:
        pixel = shown_pixel(pixel, originals[0].shape, shown)
    return draw_offsets(
        images,
        predictor.metadata,
        class_id=class_id,
        pixel=pixel,
        plain_labels=_plain_labels(cfg, plain_weights, originals[0], shown[:2]),
    )


def shown_pixel(
    pixel: tuple[int, int], size: Sequence[int], shown: Sequence[int]
) -> tuple[int, int]:
    """Position at which the pixel (x, y) of an image file of (height, width, ...) is shown.

    Raises:
        ValueError: it lies outside the file's image.
    """
    (x, y), (height, width) = pixel, size[:2]
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(
            f"`--pixel` must lie in the image, x below {width} and y below {height}, "
            f"but is {(x, y)}."
        )
    return x * shown[1] // width, y * shown[0] // height


def _plain_labels(
    cfg: CfgNode, weights: str | None, image: np.ndarray, size: tuple[int, ...]
) -> np.ndarray | None:
    if weights is None:
        return None
    plain = cfg.clone()
    plain.defrost()
    plain.MODEL.WEIGHTS, plain.MODEL.SEM_SEG_HEAD.CLASSIFIER = weights, "plain"
    labels = torch.as_tensor(Predictor(plain).label_map(image), dtype=torch.float32)
    resized = torch.nn.functional.interpolate(labels[None, None], tuple(size), mode="nearest-exact")
    return resized[0, 0].numpy().astype(np.int64)


def find_class(name: str, metadata: Metadata) -> int:
    """Number of a class, by its name or number.

    Raises:
        ValueError: there is no such class; names the nearest ones.
    """
    names = class_names(metadata)
    if name in names:
        return names.index(name)
    if name.isdigit() and int(name) < len(names):
        return int(name)
    nearest = difflib.get_close_matches(name, names, n=3)
    hint = f" Did you mean {', '.join(nearest)}?" if nearest else ""
    raise ValueError(f"`--class` must name one of the {len(names)} classes, but is {name!r}.{hint}")
