"""Label files of Pascal Context from ``trainval_merged.json``.

The file lists images with their split (``phase``) and, for each, segments as run lengths in COCO's
form with a category of more than 400. Segments of the 59 kept categories become the values 1..59,
all else 0 (see :data:`~offseg_d2.data.datasets.pascal_context.CATEGORIES`).
"""

import collections
import io
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image
from pycocotools import mask as mask_util
from tqdm import tqdm

from offseg_d2.utils.io import write_atomically

from .pascal_context import CATEGORIES, LABEL_DIR, LIST_DIR, PASCAL_CONTEXT_60_CLASSES

ANNOTATION_FILE = "trainval_merged.json"
_PHASES = ("train", "val")


class Conversion(NamedTuple):
    """Result of :func:`convert_annotations`."""

    written: int
    skipped: int  # were there already
    lists: list[str]  # list files that it wrote


def convert_annotations(annotation_file: str, voc_dir: str) -> Conversion:
    """Write the label files and the lists of the splits, with a progress bar.

    A label file that is there already is left as it is: each is complete or absent, so an
    interrupted conversion is taken up by running it again. Lists that are there are kept, too.

    Args:
        annotation_file: ``trainval_merged.json``; it is read into memory as a whole.
        voc_dir: the folder ``VOC2010``.

    Raises:
        FileNotFoundError: the file or the folder is not there.
        ValueError: the file is of another form; names it.
    """
    if not PathManager.isdir(voc_dir):
        raise FileNotFoundError(f"The folder VOC2010 must be '{voc_dir}', but there is none.")
    images, segments = _read(annotation_file)
    label_dir = os.path.join(voc_dir, LABEL_DIR)
    PathManager.mkdirs(label_dir)
    present = set(PathManager.ls(label_dir))
    written = 0
    for image in tqdm(images, unit="image", disable=None):
        file_name = f"{_stem(image)}.png"
        if file_name not in present:
            labels = draw_labels(image["height"], image["width"], segments[image["image_id"]])
            write_atomically(os.path.join(label_dir, file_name), _encode(labels))
            written += 1
    return Conversion(written, len(images) - written, _write_lists(images, voc_dir))


def draw_labels(height: int, width: int, segments: Iterable[Mapping[str, Any]]) -> np.ndarray:
    """Draw segments into a label map; where they overlap, the one of fewer pixels counts.

    Seams overlap by a few pixels, and small things lie before large ones: this is how the label
    files in circulation have it.

    Args:
        height, width: of the image, in pixels.
        segments: objects with ``category_id`` and ``segmentation``, run lengths in COCO's form
            (compressed or not).

    Returns:
        (height, width) uint8, 0..59.

    Raises:
        ValueError: a segment is of another form or size.
    """
    values = {category_id: value for value, (category_id, _) in enumerate(CATEGORIES)}
    drawn = [
        (values[segment["category_id"]], _decode(segment["segmentation"], height, width))
        for segment in segments
        if segment["category_id"] in values
    ]
    labels = np.zeros((height, width), dtype=np.uint8)
    for value, pixels in sorted(drawn, key=lambda item: -np.count_nonzero(item[1])):
        labels[pixels] = value
    return labels


def _decode(runs: Any, height: int, width: int) -> np.ndarray:
    """Run lengths -> (height, width) bool."""
    if not isinstance(runs, Mapping) or list(runs.get("size", ())) != [height, width]:
        raise ValueError(
            f"A segment must be run lengths of {height} x {width} pixels (height x width), "
            f"but is {str(runs)[:100]}."
        )
    if isinstance(runs["counts"], list):
        runs = mask_util.frPyObjects(runs, height, width)
    return mask_util.decode(runs).astype(bool)


def _read(path: str) -> tuple[list[dict[str, Any]], dict[int, list[dict[str, Any]]]]:
    """Images, and the segments of each by its ``image_id``."""
    if not PathManager.isfile(path):
        raise FileNotFoundError(f"The annotations must be in '{path}', but there is no such file.")
    with PathManager.open(path, encoding="utf-8") as file:
        try:
            content = json.load(file)
        except ValueError as error:
            raise ValueError(f"'{path}' must be complete JSON, but is not: {error}.") from None
    if not isinstance(content, dict) or not {"images", "annos_segmentation"} <= content.keys():
        raise ValueError(
            f"'{path}' must hold 'images' and 'annos_segmentation', as trainval_merged.json does."
        )
    segments = collections.defaultdict(list)
    for segment in content["annos_segmentation"]:
        segments[segment["image_id"]].append(segment)
    return content["images"], segments


def _stem(image: Mapping[str, Any]) -> str:
    return os.path.splitext(os.path.basename(image["file_name"]))[0]


def _encode(labels: np.ndarray) -> bytes:
    """A palette PNG: the values are the labels, the palette shows them in the classes' colours."""
    picture = Image.fromarray(labels, mode="P")
    picture.putpalette([channel for _, color in PASCAL_CONTEXT_60_CLASSES for channel in color])
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _write_lists(images: Iterable[Mapping[str, Any]], voc_dir: str) -> list[str]:
    """Write the lists of the splits where there are none; return their paths."""
    names = collections.defaultdict(list)
    for image in images:
        names[image["phase"]].append(_stem(image))
    written = []
    for phase in _PHASES:
        path = os.path.join(voc_dir, LIST_DIR, f"{phase}.txt")
        if names[phase] and not PathManager.exists(path):
            PathManager.mkdirs(os.path.dirname(path))
            write_atomically(path, "".join(f"{name}\n" for name in sorted(names[phase])).encode())
            written.append(path)
    return written
