"""Pictures of segmentations: colour overlays, palette maps, panels side by side, legends.

Names and colours of the classes come from Detectron2's metadata (``stuff_classes``,
``stuff_colors``). Pictures are (H, W, 3) uint8 RGB, label maps (H, W) integers; ids that are no
class (such as the ignored 255) stay uncoloured, get grey stripes, or are black in a palette map.

Shapes: K classes, H x W pixels.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from detectron2.data import Metadata
from detectron2.utils.visualizer import VisImage, Visualizer
from PIL import Image, ImageDraw
from torch import Tensor

from offseg_d2.utils.fonts import cut_to, load_font, plot_with_names, wrap_to
from offseg_d2.visualization.classes import (
    class_colors,
    class_names,
    color_map,
    is_class,
    mark_ignored,
    stripes,
    to_labels,
)

# On a smaller picture names would hide what they name; a legend serves better.
MIN_SIDE_FOR_NAMES = 320
# A connected region with a larger share of the picture gets a name besides the class's largest one.
_SHARE_OF_SECOND_NAME = 0.1
IGNORED = "ignored"  # in legends
_PAPER, _INK = (255, 255, 255), (30, 30, 30)


class SemSegVisualizer(Visualizer):
    """Detectron2's ``Visualizer`` with another ``draw_sem_seg``.

    Detectron2 turns each class into polygons, which lose thin objects and give classes with holes
    another look than the rest, and its names may lie on another class. Here every pixel is
    coloured exactly, all classes have the same thin borders, and a name stands where its region
    is widest or, if it would not be readable there, nowhere.
    """

    def draw_sem_seg(
        self,
        sem_seg: Tensor | np.ndarray,
        area_threshold: int | None = None,
        alpha: float = 0.5,
        names: bool = True,
        ignored: bool = False,
    ) -> VisImage:
        """Draw a segmentation over the image.

        Args:
            sem_seg: (K, H, W) scores or (H, W) class ids, resized to the image if need be.
            area_threshold: regions of fewer pixels get no name.
            alpha: opacity of the colours, 0..1.
            names: write the names of the classes into their regions.
            ignored: mark pixels that are no class by grey stripes.
        """
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"The opacity must be in 0..1, but is {alpha!r}.")
        num_classes = sem_seg.shape[0] if len(sem_seg.shape) == 3 else 0
        labels = to_labels(sem_seg, self.img.shape[:2])
        colors = class_colors(self.metadata, num_classes)
        painted = color_map(labels, self.metadata, num_classes).astype(np.float32)
        if ignored:
            painted = mark_ignored(painted, labels, len(colors))
        opacity = np.where(
            is_class(labels, len(colors)) | ignored, np.float32(alpha), np.float32(0.0)
        )
        mixed = self.img + opacity[..., None] * (painted - self.img)
        mixed += (0.6 * min(1.0, 2 * alpha)) * _borders(labels)[..., None] * (255.0 - mixed)
        self.output.reset_image(mixed + 0.5)
        if names:
            known = class_names(self.metadata, len(colors))
            with plot_with_names(known):
                self._draw_names(labels, known, area_threshold or 0)
        return self.output

    def _draw_names(self, labels: np.ndarray, names: Sequence[str], area_threshold: int) -> None:
        height, width = labels.shape
        font_size = float(np.clip(min(height, width) / 40, 7, 30))  # in points
        text_height = 1.3 * font_size * self.output.dpi / 72  # in pixels, with its background
        font = load_font(round(font_size * self.output.dpi / 72), "".join(names))
        occupied: list[tuple[float, float, float, float]] = []
        # Halfway to white: names stand on black, and Detectron2 would tint greys.
        colors = (class_colors(self.metadata, len(names)) / 255.0 + 1.0) / 2
        present = np.bincount(labels[is_class(labels, len(names))], minlength=len(names))
        for class_id in np.argsort(-present, kind="stable")[: np.count_nonzero(present)]:
            text = names[class_id]
            text_width = font.getlength(text) + 0.48 * text_height
            if text_width > width:  # the picture would cut it
                continue
            for x, y, radius, area in _widest_spots(labels == class_id):
                x = float(np.clip(x, text_width / 2, max(width - text_width / 2, text_width / 2)))
                box = (x - text_width / 2, y - text_height / 2, text_width, text_height)
                if area < area_threshold or radius < text_height / 2 or _overlaps(box, occupied):
                    continue
                occupied.append(box)
                self.draw_text(text, (x, box[1]), font_size=font_size, color=colors[class_id])


def _borders(labels: np.ndarray) -> np.ndarray:
    """Pixels whose neighbour to the right or below is of another class: (H, W) bool."""
    borders = np.zeros(labels.shape, dtype=bool)
    borders[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    borders[:-1] |= labels[:-1] != labels[1:]
    return borders


def _widest_spots(mask: np.ndarray) -> list[tuple[float, float, float, int]]:
    """(x, y) where the regions worth a name are widest, the radius there, and their areas."""
    count, regions, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), 8)
    areas = stats[1:count, cv2.CC_STAT_AREA]
    # Padded: a region also ends where the picture ends.
    distance = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    spots = []
    for index in np.argsort(-areas, kind="stable"):
        if spots and areas[index] < _SHARE_OF_SECOND_NAME * mask.size:
            break
        inside = np.where(regions == index + 1, distance, 0.0)
        y, x = np.unravel_index(inside.argmax(), inside.shape)
        spots.append((float(x), float(y), float(inside[y, x]), int(areas[index])))
    return spots


def _overlaps(box: tuple[float, ...], others: Sequence[tuple[float, ...]]) -> bool:
    x, y, width, height = box
    return any(
        x < other[0] + other[2]
        and other[0] < x + width
        and y < other[1] + other[3]
        and other[1] < y + height
        for other in others
    )


def overlay(
    image: np.ndarray,
    sem_seg: Tensor | np.ndarray,
    metadata: Metadata,
    *,
    opacity: float = 0.5,
    names: bool | None = None,
    scale: float = 1.0,
    ignored: bool = False,
) -> np.ndarray:
    """Draw a segmentation over an image.

    Args:
        image: (H, W, 3) uint8 RGB.
        sem_seg: (K, h, w) scores or (h, w) class ids of any size; resized to the picture's.
        metadata: classes and colours.
        opacity: of the colours, 0 (image only) to 1 (colours only).
        names: write class names; None does so if the picture is large enough.
        scale: size of the picture, relative to the image's.
        ignored: mark pixels that are no class by grey stripes, as ground truth needs it; by
            default they stay as they are in the image.

    Returns:
        (scale H, scale W, 3) uint8 RGB.

    Raises:
        ValueError: ``opacity`` or ``sem_seg`` cannot be used.
    """
    image = enlarge(image, scale)
    if names is None:
        names = min(image.shape[:2]) >= MIN_SIDE_FOR_NAMES
    visualizer = SemSegVisualizer(image, metadata)
    return visualizer.draw_sem_seg(sem_seg, alpha=opacity, names=names, ignored=ignored).get_image()


def enlarge(image: np.ndarray, scale: float) -> np.ndarray:
    """Resize a picture by a factor."""
    size = (max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1))
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA)


def side_by_side(
    pictures: Sequence[np.ndarray], captions: Sequence[str] | None = None, gap: int = 6
) -> np.ndarray:
    """Put pictures of one height beside each other, with captions above them if given.

    Raises:
        ValueError: the heights differ.
    """
    heights = {picture.shape[0] for picture in pictures}
    if len(heights) != 1:
        raise ValueError(f"Pictures side by side must have one height, but have {sorted(heights)}.")
    space = np.full((heights.pop(), gap, 3), _PAPER, dtype=np.uint8)
    row = np.concatenate([part for p in pictures for part in (space, p)][1:], axis=1)
    if captions is None:
        return row
    font_size = _font_size(row.shape[1])
    head = Image.new("RGB", (row.shape[1], 2 * font_size), _PAPER)
    pen, left = ImageDraw.Draw(head), 0
    for picture, caption in zip(pictures, captions, strict=True):
        center = (left + picture.shape[1] / 2, font_size)
        font = load_font(font_size, caption)
        shown = cut_to(caption, font, picture.shape[1])
        pen.text(center, shown, fill=_INK, font=font, anchor="mm")
        left += picture.shape[1] + gap
    return np.concatenate([np.asarray(head), row])


def legend(
    metadata: Metadata,
    width: int,
    labels: np.ndarray | None = None,
    num_classes: int = 0,
    ignored: bool = False,
) -> np.ndarray:
    """Draw a strip with colour and name of the classes, wrapped to a width.

    Args:
        metadata: classes and colours.
        width: of the strip in pixels.
        labels: (H, W) label map; only its classes are listed. None lists all.
        num_classes: at least so many, whatever the metadata holds.
        ignored: also list the stripes of pixels that are no class, if there are any.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    colors = class_colors(metadata, num_classes)
    names = class_names(metadata, len(colors))
    class_ids = range(len(names)) if labels is None else np.unique(labels)
    shown = [int(i) for i in class_ids if 0 <= i < len(names)]
    if ignored and len(shown) < len(class_ids):
        shown.append(len(names))
        names, colors = [*names, IGNORED], np.concatenate([colors, colors[:1]])
    font_size = _font_size(width)
    font = load_font(font_size, "".join(names[i] for i in shown))
    room = width - 3 * font_size  # for a name; a tiny picture's legend is cut instead of a column
    step, spots, below = 2 * font_size, [], 0
    left, top = font_size // 2, 0
    for class_id in shown:
        lines = [names[class_id]] if room < 4 * font_size else wrap_to(names[class_id], font, room)
        extent = round(max(map(font.getlength, lines))) + 3 * font_size
        if left + extent > width and left > font_size // 2:
            left, top, below = font_size // 2, top + step + below, 0
        spots.append((left, top, class_id, lines))
        left, below = left + extent, max(below, (len(lines) - 1) * _line_height(font_size))
    strip = Image.new("RGB", (width, top + step + below), _PAPER)
    pen = ImageDraw.Draw(strip)
    for left, top, class_id, lines in spots:
        corner = (left, top + font_size // 2)
        swatch = (*corner, left + font_size, top + font_size // 2 + font_size)
        pen.rectangle(swatch, fill=tuple(colors[class_id].tolist()), outline=_INK)
        if names[class_id] is IGNORED:
            strip.paste(Image.fromarray(stripes(font_size, font_size)), corner)
        for number, text in enumerate(lines):
            middle = top + font_size + number * _line_height(font_size)
            pen.text((left + 1.5 * font_size, middle), text, fill=_INK, font=font, anchor="lm")
    return np.asarray(strip)


def _line_height(font_size: int) -> int:
    return round(1.3 * font_size)


def _font_size(width: int) -> int:
    return int(np.clip(width / 64, 10, 32))
