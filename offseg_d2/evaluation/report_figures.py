"""Pictures of an evaluation's report, all as texts that stand in the page itself.

Each is made small before anything is encoded: label maps by the nearest pixel, so that no colour
appears that is no class, photographs by averaging.

Shapes: K classes, H x W pixels.
"""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

# Colours of right and wrong cells of the confusion matrix; how much is their opacity, so that the
# matrix suits a light and a dark page.
RIGHT_RGB, WRONG_RGB = (37, 99, 235), (224, 62, 26)
_ERROR_RGB, _IGNORED_RGB = (230, 30, 30), (96, 110, 140)
_JPEG = {"format": "JPEG", "quality": 80, "optimize": True}
_PNG = {"format": "PNG", "optimize": True}
# Colours of the plot that stand for those of the page, and the page's names of them.
_PAGE_COLORS = {"#010203": "currentColor", "#040506": "var(--accent)"}


@dataclass(frozen=True)
class ExamplePictures:
    """One image's pictures of one (height, width), as ``data:`` addresses.

    Attributes:
        size: (height, width) in pixels.
        image: the photograph; None if it could not be read.
        truth: ground truth in the classes' colours, transparent where no class is.
        prediction: likewise.
        error: the photograph in grey, wrong pixels red, ignored ones blue-grey.
    """

    size: tuple[int, int]
    image: str | None
    truth: str
    prediction: str
    error: str


def thumbnail_labels(labels: np.ndarray, max_side: int) -> np.ndarray:
    """Shrink an (H, W) map to at most ``max_side`` pixels a side, by the pixel nearest to each."""
    height, width = labels.shape
    scale = max(height, width, max_side) / max_side
    new_height, new_width = max(round(height / scale), 1), max(round(width / scale), 1)
    rows = (2 * np.arange(new_height) + 1) * height // (2 * new_height)
    columns = (2 * np.arange(new_width) + 1) * width // (2 * new_width)
    return labels[rows[:, None], columns]


def draw_example(
    image: np.ndarray | None,
    label: np.ndarray,
    prediction: np.ndarray,
    colors: np.ndarray,
    ignore_value: int,
) -> ExamplePictures:
    """Draw the four pictures of one image.

    Args:
        image: (any size, 3) uint8 RGB, resized to the label map's size; None leaves it out.
        label: (H, W) integer class ids, already of the size to be shown.
        prediction: (H, W) integer class ids.
        colors: (K, 3) uint8 RGB.
        ignore_value: label of pixels that do not count.
    """
    height, width = label.shape
    grey = np.full((height, width, 3), 128, dtype=np.uint8)
    photo = None
    if image is not None:
        photo = Image.fromarray(image).resize((width, height), Image.Resampling.BOX)
        # Half the contrast: what is red shall be seen first.
        faded = 70 + np.asarray(photo.convert("L"), dtype=np.float32)[..., None] * 0.55
        grey = np.broadcast_to(faded, grey.shape).astype(np.uint8)
    error = grey.astype(np.float32)
    ignored = label == ignore_value
    for mask, color in ((ignored, _IGNORED_RGB), (~ignored & (label != prediction), _ERROR_RGB)):
        error[mask] = 0.2 * error[mask] + 0.8 * np.array(color, dtype=np.float32)
    return ExamplePictures(
        size=(height, width),
        image=None if photo is None else _data_address(photo, _JPEG),
        truth=_data_address(_paint(label, colors), _PNG),
        prediction=_data_address(_paint(prediction, colors), _PNG),
        # Full chroma resolution: thin red lines would otherwise turn grey.
        error=_data_address(Image.fromarray(error.astype(np.uint8)), {**_JPEG, "subsampling": 0}),
    )


def _paint(labels: np.ndarray, colors: np.ndarray) -> Image.Image:
    """Paint classes in their colours and everything else transparent."""
    num_classes = len(colors)
    is_class = (labels >= 0) & (labels < num_classes)
    ids = np.where(is_class, labels, num_classes)
    table = np.concatenate([colors, np.zeros((1, 3), dtype=np.uint8)]).astype(np.uint8)
    if num_classes > 255:  # too many for a palette
        alpha = (255 * is_class[..., None]).astype(np.uint8)
        return Image.fromarray(np.concatenate([table[ids], alpha], axis=-1))
    picture = Image.fromarray(ids.astype(np.uint8))
    picture.putpalette(table.tobytes())
    picture.info["transparency"] = num_classes
    return picture


def matrix_opacity(shares: np.ndarray) -> np.ndarray:
    """Opacity 0..1 of cells that hold these shares; the root lets rare confusions be seen."""
    return np.sqrt(np.clip(np.nan_to_num(shares), 0.0, 1.0))


def draw_matrix(shares: np.ndarray) -> str:
    """Draw a matrix, one pixel a cell, as a ``data:`` address.

    Args:
        shares: (K, K) of each label (row) that is predicted as the column's class; NaN is empty.
    """
    pixels = np.empty((*shares.shape, 4), dtype=np.uint8)
    pixels[..., :3] = WRONG_RGB
    np.einsum("iic->ic", pixels)[:, :3] = RIGHT_RGB
    pixels[..., 3] = np.rint(255 * matrix_opacity(shares))
    return _data_address(Image.fromarray(pixels), _PNG)


def _data_address(picture: Image.Image, options: dict) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, **options)
    text = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{options['format'].lower()};base64,{text}"


def draw_histogram(values: Sequence[float], name: str, mean: float) -> str:
    """Draw how the images' scores are spread, as an ``<svg>`` in the page's own colours and font.

    Args:
        values: score of each image, percent.
        name: of the score.
        mean: of ``values``, marked by a line.
    """
    ink, accent = _PAGE_COLORS
    # svg.fonttype "none": texts stay texts, which a page can give its font and a reader can find.
    settings = {"svg.fonttype": "none", "svg.hashsalt": "report", "font.size": 10.5}
    settings |= {"text.color": ink, "axes.edgecolor": ink, "axes.labelcolor": ink}
    settings |= {"xtick.color": ink, "ytick.color": ink}
    with rc_context(settings):
        figure = Figure(figsize=(5.4, 2.1), layout="constrained")
        axes = figure.add_subplot()
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        axes.hist(values, bins=np.linspace(0, 100, 41), color=accent, rwidth=0.9)
        axes.axvline(mean, color=ink, linewidth=1, linestyle="--")
        axes.set(xlim=(0, 100), xlabel=f"{name} of an image (%)", ylabel="images")
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    return _for_page(buffer.getvalue())


def _for_page(svg: str) -> str:
    """What a page needs of an SVG file: no declarations, no metadata, no fixed fonts and colours.

    Addresses of name spaces go as well: a page needs none, and it shall name no host at all.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(?:xmlns(?::\w+)?|version)="[^"]*"', "", svg)
    svg = re.sub(r"\sxlink:href=", " href=", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: var(--font)", svg)
    for color, page_color in _PAGE_COLORS.items():
        svg = svg.replace(color, page_color)
    return svg
