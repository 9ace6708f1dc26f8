"""Shapes: drawn scenes whose classes change their looks from image to image.

A landscape (sky, hills, ground) with objects (disc, box, triangle, ring, cross) on it. Each image
draws an appearance for each class: two colours, a texture with its scale, and for the whole image
the lighting. So two discs of one image look alike, but those of two images differ, and a fixed
vector per class matches them badly. Two strengths say how much, each 0..1:

* ``variation``: each class changes on its own. At 0 it always has its own colour and texture, at 1
  these say next to nothing and only shape and place decide.
* ``shift``: all classes of an image change together (hue, saturation, value, scale of the
  textures). So colours differ from image to image, but within an image the classes keep their
  relations to each other and can be distinguished as well as before.

``shapes_v0``, ``shapes_v50`` and ``shapes_v100`` are the scenes of an experiment in which only the
differences between images grow, see :func:`within_class_params`.

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
from .shapes_drawing import Look, hsv_to_rgb, light, mix, paint, texture_blend
from .shapes_layout import FIRST_OBJECT, lay_out_landscape, lay_out_objects

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
# Strengths of the datasets shapes_v0, shapes_v50 and shapes_v100.
WITHIN_CLASS_PERCENTS = (0, 50, 100)
# To be raised whenever the drawing changes, so that folders of images are drawn again.
GENERATOR_VERSION = 1


@dataclasses.dataclass(frozen=True)
class ShapesParams:
    """The parts of a generated dataset."""

    num_train: int = 200
    num_val: int = 50
    seed: int = 0
    variation: float = 0.5  # 0 none .. 1 strong
    size: tuple[int, int] = (192, 256)  # (height, width) in pixels
    shift: float = 0.0  # 0 none .. 1 strong

    @property
    def folder_name(self) -> str:
        """Folder of these parameters and this version: other ones never share it."""
        values = dataclasses.astuple(self)
        if not self.shift:  # the name of these scenes is older than the shift
            values = values[:-1]
        stamp = zlib.crc32(repr((GENERATOR_VERSION, values)).encode())
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
# Largest common shift of hue (half a turn: any hue), saturation and value.
_SHIFT_RANGES = np.array([0.5, 0.15, 0.15])


def generate_scene(
    index: int,
    seed: int = 0,
    variation: float = 0.5,
    size: tuple[int, int] = (192, 256),
    shift: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one scene.

    Args:
        index, seed: which scene; the same numbers give the same scene.
        variation: in 0..1, how much a class's looks change between images on their own.
        size: (height, width) in pixels, at least 32.
        shift: in 0..1, how much the looks of all classes change between images together.

    Returns:
        (H, W, 3) uint8 RGB image and (H, W) uint8 train ids (rows of ``SHAPES_CLASSES``).

    Raises:
        ValueError: an argument is out of range.
    """
    for name, value in (("variation", variation), ("shift", shift)):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"`{name}` must be in 0..1, but is {value!r}.")
    if min(size) < 32:
        raise ValueError(f"`size` must be at least 32 pixels, but is {tuple(size)}.")
    # RandomState: NumPy promises that its numbers never change. Several of them, so that the
    # layout is the same for any variation, and each class's own looks are for any shift.
    layout, rng, common = (np.random.RandomState([seed, index, stream]) for stream in (0, 1, 2))
    moved = shift * common.uniform(-1, 1, 4)
    looks = [_draw_look(rng, k, variation, moved) for k in range(len(_STYLES))]
    label, horizon = lay_out_landscape(layout, size)
    image = _paint_landscape(rng, looks, label, horizon)
    for class_id, contours in lay_out_objects(layout, size):
        paint(rng, looks[class_id], contours, class_id, image, label)
    image = light(rng, image, variation)
    return cv2.convertScaleAbs(np.maximum(image, 0.0), alpha=255.0), label


def _draw_look(
    rng: np.random.RandomState, class_id: int, variation: float, moved: np.ndarray
) -> Look:
    """Draw the appearance of a class in one image.

    Args:
        rng: numbers of the image.
        class_id: row of ``_STYLES``.
        variation: how much the class changes on its own.
        moved: (4,) what the image does to all classes, in -1..1: hue, saturation, value, period.
    """
    style = _STYLES[class_id]
    own = variation * rng.uniform(-1, 1, 7)
    hue = style.hue + 0.5 * own[0]
    saturation = style.saturation + 0.3 * own[1]
    value = style.value + 0.25 * own[2]
    first = np.array([hue, saturation, value]) + moved[:3] * _SHIFT_RANGES
    second = first + style.second + own[3:6] * (0.12, 0.2, 0.15)
    texture = style.texture
    other = _OBJECT_TEXTURES[rng.randint(len(_OBJECT_TEXTURES))]
    if rng.uniform() < 0.6 * variation and class_id >= FIRST_OBJECT:
        texture = other
    angle = (0.0 if class_id < FIRST_OBJECT else np.pi) * variation * rng.uniform(-0.5, 0.5)
    period = style.period * 2.0 ** (0.8 * own[6] + 0.4 * moved[3])
    colors = np.stack([hsv_to_rgb(*first), hsv_to_rgb(*second)])
    return Look(colors, texture, period, angle, rng.uniform(0, 2 * np.pi, 2))


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


def within_class_params(strength: float) -> ShapesParams:
    """Scenes that differ in nothing but how far a class's looks lie apart from image to image.

    Layouts and number of images are the same for all strengths. Mostly all classes of an image are
    shifted together; each changes on its own by a fifth of the strength, and so does the lighting.

    Args:
        strength: 0 (each class looks the same in all images) .. 1.
    """
    return ShapesParams(num_train=300, num_val=100, variation=0.2 * strength, shift=strength)


def register_within_class_shapes() -> None:
    """Register ``shapes_v0_train``, ``shapes_v0_val`` and so on for each strength in percent."""
    for percent in WITHIN_CLASS_PERCENTS:
        register_shapes(f"shapes_v{percent}", within_class_params(percent / 100))


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
            image, label = generate_scene(index, seed, params.variation, params.size, params.shift)
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
