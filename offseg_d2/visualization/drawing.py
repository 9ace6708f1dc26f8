"""Label maps drawn over their images, or as palette PNGs."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.data import Metadata
from PIL import Image

from offseg_d2.visualization.classes import class_colors, class_names
from offseg_d2.visualization.overlay import legend, overlay, side_by_side

STYLES = ("overlay", "side-by-side", "label-map")
UNCHOSEN = 255  # value in label maps of classes that were not asked for


@dataclass(frozen=True)
class DrawOptions:
    """The style in which predictions are drawn.

    Attributes:
        style: "overlay"; "side-by-side", the image beside it; or "label-map", a palette PNG whose
            values are the class ids.
        opacity: of the colours, 0..1.
        legend: a strip with the names of the classes below; "side-by-side" always has it.
        classes: names of the classes that are drawn; empty for all.
    """

    style: str = "overlay"
    opacity: float = 0.5
    legend: bool = False
    classes: tuple[str, ...] = ()


def choose_classes(labels: np.ndarray, classes: Sequence[str], metadata: Metadata) -> np.ndarray:
    """Set all classes that are not among ``classes`` (if there are any) to 255.

    Raises:
        ValueError: there is no class of such a name.
    """
    if not classes:
        return labels
    names = class_names(metadata)
    unknown = [name for name in classes if name not in names]
    if unknown:
        raise ValueError(f"`--classes` must be among {names}, but {unknown[0]!r} is not.")
    chosen = np.isin(labels, [names.index(name) for name in classes])
    return np.where(chosen, labels, UNCHOSEN)


def draw_labels(
    image: np.ndarray, labels: np.ndarray, metadata: Metadata, options: DrawOptions
) -> np.ndarray:
    """Draw a label map over its image: (H, W, 3) uint8 BGR and (H, W) -> RGB picture."""
    labels = choose_classes(labels, options.classes, metadata)
    rgb = np.ascontiguousarray(image[..., ::-1])
    picture = overlay(rgb, labels, metadata, opacity=options.opacity)
    if options.style == "side-by-side":
        picture = side_by_side([rgb, picture])
    if options.style == "side-by-side" or options.legend:
        picture = np.concatenate([picture, legend(metadata, picture.shape[1], labels)])
    return picture


def palette_png(labels: np.ndarray, metadata: Metadata) -> bytes:
    """A PNG whose values are the class ids, shown in the colours of the classes.

    Args:
        labels: (H, W) ids below 256; 255 is black.
        metadata: of at most 255 classes.

    Raises:
        ValueError: there are more classes.
    """
    colors = class_colors(metadata)
    if len(colors) > UNCHOSEN:
        raise ValueError(f"A label map must have at most 255 classes, but has {len(colors)}.")
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[: len(colors)] = colors
    picture = Image.fromarray(labels.astype(np.uint8), mode="P")
    picture.putpalette(palette.tobytes())
    content = io.BytesIO()
    picture.save(content, format="PNG")
    return content.getvalue()
