"""The picture docs/idea.png: what offset learning does to toy features in the plane.

Three classes of pixels lie around three fixed class vectors, but turned differently in each image.
All moves are computed by ``OffsetLearning``; in place of learned projections it has the identity
and half of it, so that they can be followed by eye.
"""

import io
import math

import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from offseg_d2.modeling import OffsetLearning
from offseg_d2.utils.io import write_atomically

COLORS, MARKERS = ("#0072B2", "#D55E00", "#009E73"), ("o", "^", "s")
DIRECTIONS = torch.tensor([[0.0, 1.0], [-(0.75**0.5), -0.5], [0.75**0.5, -0.5]])  # of the classes
TURNS = {"Image A": math.radians(47), "Image B": math.radians(-51)}
PIXELS, RANGE = 45, 5.4  # pixels of a class; half width of a panel
TITLES = ("Fixed class vectors", "The offsets of this image", "The aligned pair")
CAPTION = (
    "Points: pixels in the colour of their true class, with a black edge if classified wrongly. "
    "Thick arrows: class vectors.\nBackground: the class that a pixel would get there. "
    "Pixels and class vectors move towards what they resemble."
)


def draw_classified(ax: Axes, pixels: Tensor, classes: Tensor) -> None:
    """Pixels, regions of the classes and the share of pixels in the right one."""
    line = torch.linspace(-RANGE, RANGE, 500)
    won = (torch.cartesian_prod(line, line).flip(1) @ classes.T).argmax(1).view(500, 500)
    ax.imshow(won, ListedColormap(COLORS), alpha=0.16, origin="lower", extent=2 * [-RANGE, RANGE])
    truth = torch.arange(3).repeat_interleave(PIXELS)
    wrong = (pixels @ classes.T).argmax(1) != truth
    for k in range(3):
        for chosen, edge in ((truth == k) & ~wrong, "none"), ((truth == k) & wrong, "black"):
            ax.scatter(*pixels[chosen].T, 30, COLORS[k], MARKERS[k], edgecolors=edge, lw=1.5)
    share = f"{100 * (1 - wrong.float().mean()):.0f} % right"
    ax.text(0.2 - RANGE, RANGE - 0.2, share, va="top", weight="bold", size=14)
    draw_arrows(ax, torch.zeros(3, 2), classes, COLORS, 4.0)


def draw_arrows(ax: Axes, starts: Tensor, ends: Tensor, colors: tuple, width: float) -> None:
    style = {"arrowstyle": "-|>", "lw": width, "mutation_scale": 6 + 4 * width, "shrinkA": 0}
    for start, end, color in zip(starts.tolist(), ends.tolist(), colors, strict=True):
        ax.annotate("", end, start, arrowprops={**style, "shrinkB": 0, "color": color})


def draw_image(row: list[Axes], turn: float, learning: OffsetLearning) -> None:
    """The three panels of one image."""
    cos, sin = math.cos(turn), math.sin(turn)
    classes, centers = 1.7 * DIRECTIONS, 3.0 * DIRECTIONS @ torch.tensor([[cos, sin], [-sin, cos]])
    pixels = (centers[:, None] + 0.55 * torch.randn(3, PIXELS, 2)).flatten(0, 1)
    aligned_pixels, aligned_classes = (aligned[0] for aligned in learning(pixels[None], classes))
    draw_classified(row[0], pixels, classes)
    colors = tuple(color for color in COLORS for _ in range(PIXELS))
    row[1].scatter(*pixels.T, 14, colors, alpha=0.3, linewidths=0)
    draw_arrows(row[1], pixels[::3], aligned_pixels[::3], colors[::3], 1.0)
    draw_arrows(row[1], torch.zeros(3, 2), classes, ("#b0b0b0",) * 3, 4.0)
    draw_arrows(row[1], classes, aligned_classes, COLORS, 4.0)
    draw_classified(row[2], aligned_pixels, aligned_classes)


def draw_idea(path: str) -> None:
    """Write the picture to ``path``, a PNG."""
    torch.manual_seed(2)
    learning = OffsetLearning(2).requires_grad_(False)
    learning.class_offset_proj.weight.copy_(torch.eye(2))
    learning.feature_offset_proj.weight.copy_(torch.eye(2) / 2)
    figure = Figure(figsize=(9.6, 7.0), dpi=188)
    axes = figure.subplots(2, 3)
    figure.subplots_adjust(0.04, 0.085, 0.995, 0.955, 0.04, 0.04)
    for row, (name, turn) in zip(axes, TURNS.items(), strict=True):
        draw_image(row, turn, learning)
        row[0].set_ylabel(name, fontsize=15)
    for ax, title in zip(axes.flat, (*TITLES, "", "", ""), strict=True):
        ax.set(xlim=(-RANGE, RANGE), ylim=(-RANGE, RANGE), xticks=[], yticks=[], aspect="equal")
        ax.set_title(title, fontsize=15)
    figure.text(0.04, 0.012, CAPTION, fontsize=11, linespacing=1.4)
    drawn, few_colors = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    Image.open(drawn).convert("RGB").quantize(96).save(few_colors, "PNG", optimize=True)
    write_atomically(path, few_colors.getvalue())
