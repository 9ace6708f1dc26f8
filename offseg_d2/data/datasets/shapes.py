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
from .shapes_layout import FIRST_OBJECT, MOST_OBJECTS, lay_out_landscape, lay_out_objects

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
# Classes of the datasets shapes_k8, shapes_k32 and shapes_k150.
NUMBERS_OF_CLASSES = (8, 32, 150)
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
    classes: int = 8  # 8, or more: kinds of objects by form, texture and colour

    @property
    def folder_name(self) -> str:
        """Folder of these parameters and this version: other ones never share it."""
        values = dataclasses.astuple(self)
        # The names of scenes without them are older than the shift and the number of classes.
        if self.classes == len(SHAPES_CLASSES):
            values = values[:-1] if self.shift else values[:-2]
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
# Textures and hues of the objects of scenes with more classes.
_KIND_TEXTURES = ("stripes", "checker", "dots", "spokes", "plain")
_NUM_HUES = 6
_OBJECT_TEXTURES = ("stripes", "checker", "dots", "spokes", "clouds", "plain")
# Largest common shift of hue (half a turn: any hue), saturation and value.
_SHIFT_RANGES = np.array([0.5, 0.15, 0.15])


def generate_scene(
    index: int,
    seed: int = 0,
    variation: float = 0.5,
    size: tuple[int, int] = (192, 256),
    shift: float = 0.0,
    classes: int = len(SHAPES_CLASSES),
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one scene.

    Args:
        index, seed: which scene; the same numbers give the same scene.
        variation: in 0..1, how much a class's looks change between images on their own.
        size: (height, width) in pixels, at least 32.
        shift: in 0..1, how much the looks of all classes change between images together.
        classes: 8, or up to 153, see :func:`shapes_classes`.

    Returns:
        (H, W, 3) uint8 RGB image and (H, W) uint8 train ids (rows of :func:`shapes_classes`).

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
    styles = _styles(classes)
    looks = [_draw_look(rng, k, styles[k], variation, moved) for k in range(classes)]
    label, horizon = lay_out_landscape(layout, size)
    image = _paint_landscape(rng, looks, label, horizon)
    kinds = None if classes == len(SHAPES_CLASSES) else _kinds(index, seed, classes)
    for class_id, contours in lay_out_objects(layout, size, kinds):
        paint(rng, looks[class_id], contours, class_id, image, label)
    image = light(rng, image, variation)
    return cv2.convertScaleAbs(np.maximum(image, 0.0), alpha=255.0), label


def shapes_classes(classes: int) -> tuple[tuple[str, tuple[int, int, int]], ...]:
    """Names and colours of scenes with a number of classes.

    More than the eight of ``SHAPES_CLASSES`` are the landscape and objects that differ in form,
    texture and hue.

    Raises:
        ValueError: if ``classes`` is neither 8 nor in 9..153.
    """
    most = FIRST_OBJECT + len(_FORMS) * len(_KIND_TEXTURES) * _NUM_HUES
    if not len(SHAPES_CLASSES) <= classes <= most:
        raise ValueError(f"`classes` must be in {len(SHAPES_CLASSES)}..{most}, but is {classes!r}.")
    if classes == len(SHAPES_CLASSES):
        return SHAPES_CLASSES
    objects = []
    for kind in range(classes - FIRST_OBJECT):
        form, texture, hue = _traits(kind)
        value = 0.45 + 0.5 * texture / (len(_KIND_TEXTURES) - 1)
        color = hsv_to_rgb((hue + form / 5) / _NUM_HUES, 0.75, value)
        name = f"{_FORMS[form]} {_KIND_TEXTURES[texture]} {hue}"
        objects.append((name, tuple(round(255 * float(c)) for c in color)))
    return SHAPES_CLASSES[:FIRST_OBJECT] + tuple(objects)


_FORMS = tuple(name for name, _ in SHAPES_CLASSES[FIRST_OBJECT:])


def _traits(kind: int) -> tuple[int, int, int]:
    """Form, texture and hue of a kind of object; a few kinds already have all of each."""
    form, rest = kind % len(_FORMS), kind // len(_FORMS)
    texture, first_hue = rest % len(_KIND_TEXTURES), rest // len(_KIND_TEXTURES)
    return form, texture, (first_hue + form + texture) % _NUM_HUES


def _styles(classes: int) -> tuple[_Style, ...]:
    if classes == len(SHAPES_CLASSES):
        return _STYLES
    kinds = [_traits(kind) for kind in range(len(shapes_classes(classes)) - FIRST_OBJECT)]
    return _STYLES[:FIRST_OBJECT] + tuple(
        _Style(hue / _NUM_HUES, 0.7, 0.78, (0.02, -0.45, 0.16), _KIND_TEXTURES[texture], 12.0)
        for _, texture, hue in kinds
    )


def _kinds(index: int, seed: int, classes: int) -> list[int]:
    """Kinds of the objects of a scene, which take turns, so that none is rare."""
    count = classes - FIRST_OBJECT
    turns = np.arange(index * MOST_OBJECTS, (index + 1) * MOST_OBJECTS)
    orders = {
        turn: np.random.RandomState([seed, turn, 3]).permutation(count)
        for turn in set(turns // count)
    }
    return [int(orders[turn // count][turn % count]) for turn in turns]


def _draw_look(
    rng: np.random.RandomState, class_id: int, style: _Style, variation: float, moved: np.ndarray
) -> Look:
    """Draw the appearance of a class in one image.

    Args:
        rng: numbers of the image.
        class_id: its train id.
        style: its usual appearance.
        variation: how much the class changes on its own.
        moved: (4,) what the image does to all classes, in -1..1: hue, saturation, value, period.
    """
    own = variation * rng.uniform(-1, 1, 7)
    hue = style.hue + 0.5 * own[0]
    saturation = style.saturation + 0.3 * own[1]
    value = style.value + 0.25 * own[2]
    first = np.array([hue, saturation, value]) + moved[:3] * _SHIFT_RANGES
    second = first + style.second + own[3:6] * (0.12, 0.2, 0.15)
    texture = style.texture
    other = _OBJECT_TEXTURES[rng.randint(len(_OBJECT_TEXTURES))]
    # Not where the texture distinguishes classes of one form.
    by_form = class_id >= FIRST_OBJECT and style is _STYLES[min(class_id, len(_STYLES) - 1)]
    if rng.uniform() < 0.6 * variation and by_form:
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
    classes = shapes_classes(params.classes)
    label_map = {train_id: train_id for train_id in range(len(classes))}
    top_dir = os.path.join("shapes", params.folder_name)
    for split in _SPLITS:
        layout = Layout(top_dir, f"images/{split}", f"annotations/{split}", f"{split}.txt")
        folder = SemSegFolder(
            f"{prefix}_{split}", [layout], [LabelKind(".png", label_map)], image_suffixes=(".png",)
        )
        register_split(folder, classes, functools.partial(_make, top_dir, params))


def within_class_params(strength: float) -> ShapesParams:
    """Scenes that differ in nothing but how far a class's looks lie apart from image to image.

    Layouts and number of images are the same for all strengths. Mostly all classes of an image are
    shifted together; each changes on its own by a fifth of the strength, and so does the lighting.

    Args:
        strength: 0 (each class looks the same in all images) .. 1.
    """
    return ShapesParams(num_train=300, num_val=100, variation=0.2 * strength, shift=strength)


def register_within_class_shapes() -> None:
    """Register ``shapes_v0_train``, ... by strength and ``shapes_k8_train``, ... by classes."""
    for percent in WITHIN_CLASS_PERCENTS:
        register_shapes(f"shapes_v{percent}", within_class_params(percent / 100))
    for classes in NUMBERS_OF_CLASSES:
        params = within_class_params(1.0)
        params = dataclasses.replace(params, num_train=600, num_val=200, classes=classes)
        register_shapes(f"shapes_k{classes}", params)


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
            image, label = generate_scene(
                index, seed, params.variation, params.size, params.shift, params.classes
            )
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
