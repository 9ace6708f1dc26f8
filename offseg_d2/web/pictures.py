"""The pictures of the page: label maps over an image, heat maps, differences.

Pictures are drawn at a size that suits a screen; what is downloaded has the size of the image.
All pictures are (H, W, 3) uint8 RGB.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from detectron2.data import Metadata

from offseg_d2.visualization.classes import to_labels
from offseg_d2.visualization.drawing import choose_classes
from offseg_d2.visualization.overlay import overlay, side_by_side

OVERLAY, LABELS, SIDE_BY_SIDE, OFFSETS = "Overlay", "Labels", "Side by side", "Offsets"
VIEWS = (OVERLAY, LABELS, SIDE_BY_SIDE, OFFSETS)
# Longest side of a picture on the page, in pixels.
_SMALLEST, _LARGEST = 960, 1600
_MOST_ENLARGED = 6
_GAP = 6  # between pictures side by side
_DIFFERENT = (214, 39, 104)
_PALE = 236  # of what is not a chosen class, where no image is shown


@dataclass(frozen=True)
class Heat:
    """Values over an image.

    Attributes:
        values: (h, w) at any size.
        title: what they are.
        unit: written after the ends of the scale.
    """

    values: np.ndarray
    title: str
    unit: str = ""

    @property
    def ends(self) -> tuple[str, str]:
        """Least and largest value as texts."""
        low, high = float(np.nanmin(self.values)), float(np.nanmax(self.values))
        return f"{low:.3g}{self.unit}", f"{high:.3g}{self.unit}"


def screen_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of the picture of an image on the page."""
    longest = max(height, width)
    scale = min(max(_SMALLEST / longest, 1.0), _MOST_ENLARGED, _LARGEST / longest)
    if longest <= _LARGEST and longest >= _SMALLEST:
        scale = 1.0
    return max(round(height * scale), 1), max(round(width * scale), 1)


def resize(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a picture or float map to (height, width), smoothly."""
    if picture.shape[:2] == size:
        return picture
    method = cv2.INTER_AREA if size[0] < picture.shape[0] else cv2.INTER_CUBIC
    return cv2.resize(picture, size[::-1], interpolation=method)


def draw_labels(
    image: np.ndarray,
    labels: np.ndarray,
    metadata: Metadata,
    view: str,
    *,
    opacity: float = 0.5,
    classes: Sequence[str] = (),
) -> np.ndarray:
    """Draw a label map in a view.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) class ids.
        metadata: of the classes.
        view: "Overlay", "Labels" or "Side by side".
        opacity: of the colours, 0..1.
        classes: names of those that are drawn; all, if there are none.
    """
    labels = choose_classes(labels.astype(np.int32), classes, metadata)
    if view == LABELS:
        return overlay(np.full_like(image, _PALE), labels, metadata, opacity=1.0)
    drawn = overlay(image, labels, metadata, opacity=opacity)
    return side_by_side([image, drawn], gap=_GAP) if view == SIDE_BY_SIDE else drawn


def draw_heat(
    image: np.ndarray,
    heat: Heat,
    *,
    opacity: float = 0.5,
    pixel: tuple[int, int] | None = None,
) -> np.ndarray:
    """Draw values over an image, from dark (least) to bright (largest).

    Args:
        image: (H, W, 3) uint8 RGB.
        heat: the values.
        opacity: of the colours, 0..1.
        pixel: (x, y) in the picture that is marked.
    """
    values = cv2.resize(heat.values.astype(np.float32), image.shape[1::-1])
    low, high = float(heat.values.min()), float(heat.values.max())
    scaled = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    colors = cv2.applyColorMap((255 * scaled).astype(np.uint8), cv2.COLORMAP_MAGMA)[..., ::-1]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    picture = (grey + opacity * (colors.astype(np.float32) - grey) + 0.5).astype(np.uint8)
    if pixel is not None:
        size = max(image.shape[1] // 40, 8)
        for color, thickness in (((0, 0, 0), 5), ((80, 240, 255), 2)):
            cv2.drawMarker(picture, pixel, color, cv2.MARKER_CROSS, size, thickness)
    return picture


def draw_difference(image: np.ndarray, differs: np.ndarray) -> np.ndarray:
    """Paint the pixels where two models differ over the faded image.

    Args:
        image: (H, W, 3) uint8 RGB.
        differs: (h, w) bool, of any size.
    """
    faded = (image * 0.35 + 160).astype(np.uint8)
    painted = to_labels(differs.astype(np.uint8), image.shape[:2]).astype(bool)
    return np.where(painted[..., None], np.array(_DIFFERENT, dtype=np.uint8), faded)


def pixel_of_click(
    click: tuple[int, int], view: str, size: tuple[int, int]
) -> tuple[int, int] | None:
    """Which pixel of the image was clicked at.

    Args:
        click: (x, y) in the picture on the page.
        view: that the picture shows.
        size: (height, width) of the image.

    Returns:
        (x, y) in the image; None between two pictures.
    """
    (rows, columns), (x, y) = screen_size(*size), click
    if view == SIDE_BY_SIDE and x >= columns:
        x -= columns + _GAP
    if not (0 <= x < columns and 0 <= y < rows):
        return None
    return x * size[1] // columns, y * size[0] // rows
