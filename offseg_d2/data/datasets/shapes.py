"""Shapes: drawn scenes whose classes change their looks from image to image.

A landscape (sky, hills, ground) with objects (disc, box, triangle, ring, cross) on it. Each image
draws an appearance for each class: two colours, a texture with its scale, and for the whole image
the lighting. So two discs of one image look alike, but those of two images differ, and a fixed
vector per class matches them badly. ``variation`` says how much: at 0 each class always has its
own colour and texture, at 1 these say next to nothing and only shape and place decide.

Everything is drawn by this file (NumPy, OpenCV), the same for the same seed. The images are
written below ``DETECTRON2_DATASETS/shapes`` when the dataset is first asked for.
"""

import dataclasses
import functools
import json
import os
import zlib

import cv2
import numpy as np

from .folder import LabelKind, Layout, SemSegFolder, datasets_root, register_split
from .generated import generated_folder
from .shapes_drawing import CONTOURS, Look, hsv_to_rgb, light, mix, paint, texture_blend

# (name, colour of overlays), by train id
SHAPES_CLASSES = (
    ("sky", (86, 180, 233)),
    ("hills", (0, 114, 90)),
    ("ground", (148, 112, 72)),
    ("disc", (240, 228, 66)),
    ("box", (213, 94, 0)),
    ("triangle", (204, 60, 140)),
    ("ring", (120, 60, 200)),
    ("cross", (230, 30, 40)),
)
# To be raised whenever the drawing changes, so that folders of images are made anew.
GENERATOR_VERSION = 1


@dataclasses.dataclass(frozen=True)
class ShapesParams:
    """What a generated dataset consists of."""

    num_train: int = 200
    num_val: int = 50
    seed: int = 0
    variation: float = 0.5  # 0 none .. 1 strong
    size: tuple[int, int] = (192, 256)  # (height, width) in pixels

    @property
    def folder_name(self) -> str:
        """Folder of these parameters and this version: other ones never share it."""
        stamp = zlib.crc32(repr((GENERATOR_VERSION, dataclasses.astuple(self))).encode())
        return f"v{GENERATOR_VERSION}-{stamp:08x}"


@dataclasses.dataclass(frozen=True)
class _Style:
    """A class's usual appearance."""

    hue: float  # 0..1
    saturation: float
    value: float
    second: tuple[float, float, float]  # hue, saturation, value of the second colour, relative
    texture: str
    period: float  # of the texture, in pixels at 192 rows


_STYLES = (
    _Style(0.58, 0.40, 0.88, (0.00, -0.30, 0.10), "clouds", 60.0),
    _Style(0.40, 0.42, 0.42, (0.04, 0.10, 0.16), "clouds", 16.0),
    _Style(0.11, 0.42, 0.62, (0.02, -0.08, -0.16), "furrows", 22.0),
    _Style(0.15, 0.80, 0.95, (-0.06, 0.10, -0.22), "stripes", 13.0),
    _Style(0.03, 0.72, 0.72, (0.02, -0.45, 0.20), "checker", 17.0),
    _Style(0.88, 0.55, 0.82, (0.00, -0.45, 0.15), "dots", 11.0),
    _Style(0.74, 0.60, 0.62, (0.04, -0.30, 0.30), "spokes", 11.0),
    _Style(0.98, 0.80, 0.80, (0.00, -0.70, 0.12), "stripes", 9.0),
)
_OBJECT_TEXTURES = ("stripes", "checker", "dots", "spokes", "clouds", "plain")
_FIRST_OBJECT = 3
# Usual height of an object's centre, as a part of the image's height, and its spread.
_OBJECT_ROWS = ((0.35, 0.18), (0.70, 0.12), (0.62, 0.15), (0.40, 0.20), (0.60, 0.18))
_OBJECT_TURNS = (np.pi, 0.35, 0.35, np.pi, 0.6)  # largest turn in radians


def generate_scene(
    index: int, seed: int = 0, variation: float = 0.5, size: tuple[int, int] = (192, 256)
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one scene.

    Args:
        index, seed: which scene; the same numbers give the same scene.
        variation: in 0..1, how much a class's looks change between images.
        size: (height, width) in pixels, at least 32.

    Returns:
        (H, W, 3) uint8 RGB image and (H, W) uint8 train ids (rows of ``SHAPES_CLASSES``).

    Raises:
        ValueError: an argument is out of range.
    """
    if not 0.0 <= variation <= 1.0:
        raise ValueError(f"`variation` must be in 0..1, but is {variation!r}.")
    if min(size) < 32:
        raise ValueError(f"`size` must be at least 32 pixels, but is {tuple(size)}.")
    # RandomState: NumPy promises that its numbers never change. Two of them, so that the layout
    # is the same for any variation.
    layout, rng = (np.random.RandomState([seed, index, stream]) for stream in (0, 1))
    looks = [_draw_look(rng, k, variation) for k in range(len(_STYLES))]
    label, horizon = _lay_out_landscape(layout, size)
    image = _paint_landscape(rng, looks, label, horizon)
    for class_id, contours in _lay_out_objects(layout, size):
        paint(rng, looks[class_id], contours, class_id, image, label)
    image = light(rng, image, variation)
    return cv2.convertScaleAbs(np.maximum(image, 0.0), alpha=255.0), label


def _draw_look(rng: np.random.RandomState, class_id: int, variation: float) -> Look:
    """Draw the appearance of a class in one image."""
    style = _STYLES[class_id]
    shift = variation * rng.uniform(-1, 1, 7)
    hue = style.hue + 0.5 * shift[0]
    saturation = style.saturation + 0.3 * shift[1]
    value = style.value + 0.25 * shift[2]
    first = np.array([hue, saturation, value])
    second = first + style.second + shift[3:6] * (0.12, 0.2, 0.15)
    texture = style.texture
    other = _OBJECT_TEXTURES[rng.randint(len(_OBJECT_TEXTURES))]
    if rng.uniform() < 0.6 * variation and class_id >= _FIRST_OBJECT:
        texture = other
    angle = (0.0 if class_id < _FIRST_OBJECT else np.pi) * variation * rng.uniform(-0.5, 0.5)
    period = style.period * 2.0 ** (0.8 * shift[6])
    colors = np.stack([hsv_to_rgb(*first), hsv_to_rgb(*second)])
    return Look(colors, texture, period, angle, rng.uniform(0, 2 * np.pi, 2))


def _lay_out_landscape(
    rng: np.random.RandomState, size: tuple[int, int]
) -> tuple[np.ndarray, float]:
    """Return (H, W) uint8 of sky, hills and ground, and the horizon's row."""
    height, width = size
    horizon = rng.uniform(0.42, 0.62) * height
    columns = np.arange(width) / width * 2 * np.pi
    waves = sum(
        rng.uniform(0.2, 1.0) / k * np.sin(k * columns + rng.uniform(0, 2 * np.pi))
        for k in (1, 2, 3, 5)
    )
    ridge = horizon - height * (rng.uniform(0.10, 0.20) + 0.055 * waves)
    edge = horizon + height * 0.012 * np.sin(columns * 1.5 + rng.uniform(0, 2 * np.pi))
    rows = np.arange(height)[:, None]
    label = (rows >= ridge).astype(np.uint8) + (rows >= np.maximum(edge, ridge)).astype(np.uint8)
    return label, horizon


def _paint_landscape(
    rng: np.random.RandomState, looks: list[Look], label: np.ndarray, horizon: float
) -> np.ndarray:
    """Return the (H, W, 3) float32 RGB image of a landscape, hazy at the horizon."""
    height, width = label.shape
    # In pixels of an image of 192 rows: the look does not depend on the size.
    scale = np.float32(192 / height)
    x = (np.arange(width, dtype=np.float32)[None] - np.float32(width / 2)) * scale
    y = np.arange(height, dtype=np.float32)[:, None] * scale
    # The ground is seen in perspective: its furrows run to the horizon.
    depth = 40.0 / (np.maximum(y - np.float32(horizon) * scale, 0.0) + 14.0)
    image = mix(looks[0], texture_blend(rng, looks[0], *np.broadcast_arrays(x, y)))
    for class_id, u in ((1, x), (2, x * depth)):
        look = looks[class_id]
        layer = mix(look, texture_blend(rng, look, *np.broadcast_arrays(u, y)))
        cv2.copyTo(layer, (label == class_id).astype(np.uint8), image)
    rows = np.arange(height, dtype=np.float32)[:, None, None]
    haze = np.clip(1.0 - np.abs(rows - np.float32(horizon)) / (0.5 * height), 0.0, 1.0) ** 2
    return image * (1.0 - 0.22 * haze) + 0.2 * haze


def _lay_out_objects(
    rng: np.random.RandomState, size: tuple[int, int]
) -> list[tuple[int, np.ndarray]]:
    """Place up to eleven objects that hardly overlap; far (high) ones come first.

    Returns:
        Class id and contours, (contours, points, 2) as (x, y), of each.
    """
    height, width = size
    placed: list[tuple[float, float, float, int]] = []
    for _ in range(rng.randint(6, 12)):
        kind = rng.randint(len(_OBJECT_ROWS))
        mean, spread = _OBJECT_ROWS[kind]
        y = np.clip(rng.normal(mean, spread), 0.08, 0.92) * height
        x = rng.uniform(0.04, 0.96) * width
        radius = rng.uniform(0.09, 0.19) * height
        if all(np.hypot(y - p[0], x - p[1]) > 0.85 * (radius + p[2]) for p in placed):
            placed.append((y, x, radius, kind))
    return [
        (_FIRST_OBJECT + kind, _outline(rng, kind, radius) + np.array([x, y]))
        for y, x, radius, kind in sorted(placed)
    ]


def _outline(rng: np.random.RandomState, kind: int, radius: float) -> np.ndarray:
    """Return the contours of an object around (0, 0), stretched and turned."""
    contours = CONTOURS[kind]() * radius * np.array([1.0, rng.uniform(0.8, 1.2)])
    turn = _OBJECT_TURNS[kind] * rng.uniform(-1, 1)
    cos, sin = np.cos(turn), np.sin(turn)
    return contours @ np.array([[cos, sin], [-sin, cos]])


def register_shapes(prefix: str = "shapes", params: ShapesParams | None = None) -> None:
    """Register ``{prefix}_train`` and ``{prefix}_val``, made when they are first asked for.

    Args:
        prefix: another one registers other parameters beside the default ones.
        params: what the dataset consists of.
    """
    params = params or ShapesParams()
    label_map = {train_id: train_id for train_id in range(len(SHAPES_CLASSES))}
    top_dir = os.path.join("shapes", params.folder_name)
    for split in _SPLITS:
        layout = Layout(top_dir, f"images/{split}", f"annotations/{split}", f"{split}.txt")
        folder = SemSegFolder(
            f"{prefix}_{split}", [layout], [LabelKind(".png", label_map)], image_suffixes=(".png",)
        )
        register_split(folder, SHAPES_CLASSES, functools.partial(_make, top_dir, params))


_SPLITS = ("train", "val")


def _make(top_dir: str, params: ShapesParams) -> str:
    """Root below which the images lie, drawn if they are not there yet."""
    return generated_folder(datasets_root(), top_dir, functools.partial(_write, params))


def _write(params: ShapesParams, path: str) -> None:
    """Write all scenes of both splits below ``path``."""
    for stream, (split, count) in enumerate(
        zip(_SPLITS, (params.num_train, params.num_val), strict=True)
    ):
        names = [f"{split}_{index:05d}" for index in range(count)]
        for kind in ("images", "annotations"):
            os.makedirs(os.path.join(path, kind, split))
        for index, name in enumerate(names):
            # The splits draw from different numbers: 2 * seed and 2 * seed + 1.
            seed = 2 * params.seed + stream
            image, label = generate_scene(index, seed, params.variation, params.size)
            _write_png(os.path.join(path, "images", split, f"{name}.png"), image[..., ::-1])
            _write_png(os.path.join(path, "annotations", split, f"{name}.png"), label)
        with open(os.path.join(path, f"{split}.txt"), "w") as file:
            file.write("".join(f"{name}\n" for name in names))
    with open(os.path.join(path, "params.json"), "w") as file:
        json.dump({"version": GENERATOR_VERSION, **dataclasses.asdict(params)}, file, indent=1)


def _write_png(path: str, pixels: np.ndarray) -> None:
    encoded = cv2.imencode(".png", np.ascontiguousarray(pixels))[1]
    with open(path, "wb") as file:
        file.write(encoded.tobytes())
