"""Pictures of an evaluation's report: examples with their errors, and the confusion matrix.

K classes, H x W pixels.
"""

import io
import logging
from collections.abc import Sequence

import numpy as np
from detectron2.data import Metadata
from PIL import Image

from offseg_d2.data import ImageSettings
from offseg_d2.data.image_settings import DEFAULT_SETTINGS
from offseg_d2.utils.fonts import load_font, plot_with_names, shorten
from offseg_d2.visualization.classes import color_map, mark_ignored, to_labels

from .pictures import read_photograph, with_legend

logger = logging.getLogger(__name__)

_SIDE = 400  # height or width of an example's pictures, in pixels
_ERROR_RGB, _IGNORED_RGB = (230, 30, 30), (96, 110, 140)
# A heat map of more classes has no room for numbers in its cells.
_MAX_CLASSES_WITH_NUMBERS = 25
_MAX_NAME_LENGTH = 100  # characters


def example_labels(class_ids: np.ndarray) -> np.ndarray:
    """Resize (H, W) class ids, by the nearest pixel, to 400 pixels on their longer side."""
    scale = _SIDE / max(class_ids.shape)
    height, width = (max(round(side * scale), 1) for side in class_ids.shape)
    return to_labels(class_ids, (height, width))


def draw_example(
    file_name: str,
    label: np.ndarray,
    prediction: np.ndarray,
    metadata: Metadata,
    ignore_value: int,
    settings: ImageSettings = DEFAULT_SETTINGS,
) -> bytes:
    """Draw an image, ground truth, prediction and errors side by side, with a legend.

    In the error map wrong pixels are red, ignored ones blue-grey. An image that cannot be read is
    left out with a warning: the numbers of a long evaluation are worth more than one picture.

    Args:
        file_name: of the image, which is resized to the label map.
        label: (H, W) integer class ids, already of the size to be shown.
        prediction: likewise.
        metadata: classes and colours.
        ignore_value: label of pixels that do not count.
        settings: how the values of image files become colours.

    Returns:
        JPEG file.
    """
    height, width = label.shape
    panels, grey = {}, np.full((height, width), 128, dtype=np.uint8)
    try:
        photograph = Image.fromarray(read_photograph(file_name, settings)).resize((width, height))
        panels["image"], grey = np.asarray(photograph), np.asarray(photograph.convert("L"))
    except (OSError, ValueError) as error:
        logger.warning("The report shows no photograph of %s: %s", file_name, error)
    # Half the contrast, so that red is seen first.
    errors = np.repeat((70 + 0.55 * grey[..., None]).astype(np.uint8), 3, axis=-1)
    errors[label != prediction] = _ERROR_RGB
    errors[label == ignore_value] = _IGNORED_RGB
    for name, ids in (("ground truth", label), ("prediction", prediction)):
        painted = color_map(ids, metadata)
        panels[name] = mark_ignored(painted, ids, len(metadata.stuff_classes))
    panels["errors"] = errors
    picture = Image.fromarray(with_legend(panels, [label, prediction], metadata))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85, subsampling=0)  # else thin red lines turn grey
    return buffer.getvalue()


def draw_confusion(matrix: np.ndarray, class_names: Sequence[str]) -> bytes:
    """Draw the shares of each label's pixels as a heat map.

    Args:
        matrix: (K + 1, K + 1) counts; rows are labels, columns predictions.
        class_names: K names.

    Returns:
        PNG file.
    """
    with plot_with_names(class_names):
        return _plot_confusion(matrix, class_names)


def _plot_confusion(matrix: np.ndarray, class_names: Sequence[str]) -> bytes:
    # Only here: a process that writes no report needs no plots.
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    num_classes = len(class_names)
    has_numbers = num_classes <= _MAX_CLASSES_WITH_NUMBERS
    shares = 100 * matrix[:-1, :-1] / np.maximum(matrix[:-1].sum(axis=1, keepdims=True), 1)
    cells = num_classes * (0.34 if has_numbers else 0.13)  # inches
    names = [shorten(name, _MAX_NAME_LENGTH) for name in class_names]
    size = 9 if has_numbers else 6
    font = load_font(size, "".join(names))
    # For the names, in inches; a layout that measures them takes seconds.
    margin = max(2.0, max(map(font.getlength, names)) / 72 + 0.5)
    side = cells + margin + 0.1
    figure = Figure(figsize=(side, side))
    axes = figure.add_axes((margin / side, margin / side, cells / side, cells / side))
    axes.set(xlabel="prediction", ylabel="ground truth")
    # The root lets rare confusions be seen.
    axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=100))
    axes.set_xticks(range(num_classes), names, rotation=90, fontsize=size)
    axes.set_yticks(range(num_classes), names, fontsize=size)
    if has_numbers:
        for (row, column), share in np.ndenumerate(shares):
            color = "white" if share > 40 else "black"
            shown = f"{share:.0f}" if share >= 0.5 else ""
            axes.text(column, row, shown, ha="center", va="center", fontsize=8, color=color)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
