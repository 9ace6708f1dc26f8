"""Label maps that a COCO JSON file describes by polygons and run lengths, drawn while loading.

``FILE.json#IMAGE_ID`` stands where the name of a label file stands otherwise. Values of a drawn
label map: 0 where no annotation covers a pixel, else 1 for the first category in the order of their
ids, 2 for the second, and so on. Smaller annotations lie on larger ones; of two of one size the
later one is on top.
"""

import functools
import json
import logging
from collections.abc import Mapping, Set
from typing import Any, NamedTuple

import numpy as np
from detectron2.utils.file_io import PathManager
from pycocotools import mask as coco_mask

from .image_io import MAX_PIXELS, DataFileError

logger = logging.getLogger(__name__)

UNCOVERED = 0
_MARK = ".json#"
_MAX_CATEGORIES = 254
_MIN_POLYGON = 6  # numbers, of three corners; pycocotools takes four for a box


class CocoImage(NamedTuple):
    """An image of a COCO JSON file."""

    file_name: str
    height: int  # pixels
    width: int
    annotations: bytes  # JSON: [value in the label map, segmentation] of each


class CocoFile(NamedTuple):
    """What a COCO JSON file says about label maps."""

    categories: list[str]  # in the order of their ids
    images: dict[int, CocoImage]  # by id


def coco_label_name(path: str, image_id: int) -> str:
    """Return the name of the label map of an image."""
    return f"{path}#{image_id}"


def is_coco_label(name: str) -> bool:
    """True for the name of a label map that is drawn."""
    return _MARK in name


def draw_coco_label(name: str) -> np.ndarray:
    """Draw a label map, (H, W) uint8.

    Args:
        name: as :func:`coco_label_name` gives it.

    Raises:
        DataFileError: the file or the annotations of this image cannot be used.
    """
    path, _, image_id = name.rpartition("#")
    image = read_coco_file(path).images[int(image_id)]
    try:
        return _draw(json.loads(image.annotations), image.height, image.width)
    except Exception as error:  # pycocotools complains by many types
        raise DataFileError(
            f"Label file '{name}' must hold polygons or run lengths of the image's "
            f"{image.width}x{image.height} pixels, but holds others: {error}."
        ) from None


def _draw(annotations: list[tuple[int, Any]], height: int, width: int) -> np.ndarray:
    labels = np.full((height, width), UNCOVERED, dtype=np.uint8)
    masks = [(value, _encode(segmentation, height, width)) for value, segmentation in annotations]
    for value, mask in sorted(masks, key=lambda item: -int(coco_mask.area(item[1]))):
        labels[coco_mask.decode(mask) == 1] = value
    return labels


def _encode(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Run lengths, as pycocotools has them, of polygons or of run lengths of either form."""
    if isinstance(segmentation, list):
        polygons = [p for p in segmentation if len(p) >= _MIN_POLYGON]
        rles = coco_mask.frPyObjects(polygons, height, width) if polygons else []
        return coco_mask.merge(rles)
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(f"a size of {segmentation['size']}")
    counts = segmentation["counts"]
    if isinstance(counts, list):
        if sum(counts) != height * width or min(counts) < 0:
            raise ValueError(f"run lengths of {sum(counts)} pixels")
        return coco_mask.frPyObjects(segmentation, height, width)
    return {"size": [height, width], "counts": counts.encode()}


@functools.lru_cache(maxsize=8)
def read_coco_file(path: str) -> CocoFile:
    """Read a COCO JSON file; once, as long as the process lives.

    A category without annotations that others name as their supercategory, and that has none
    itself, groups them, as in Roboflow's exports; it is left out. Annotations without segmentation
    are left out with a warning unless all are.

    Raises:
        DataFileError: it cannot be read or is of another form; names the file.
    """
    try:
        with PathManager.open(path, encoding="utf-8-sig") as file:
            content = json.load(file)
        used = {item["category_id"] for item in content["annotations"]}
        categories = _categories(content["categories"], used)
        values = {id_: value for value, (id_, _) in enumerate(categories, start=1)}
        segments: dict[int, list[tuple[int, Any]]] = {item["id"]: [] for item in content["images"]}
        skipped = _sort_annotations(content["annotations"], values, segments)
        images = {item["id"]: _image(item, segments[item["id"]]) for item in content["images"]}
    except (OSError, UnicodeError, json.JSONDecodeError) as error:
        raise DataFileError(f"'{path}' cannot be read as JSON: {error}.") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise DataFileError(
            f"'{path}' must be a COCO JSON file with 'images', 'annotations' and 'categories', but "
            f"is not ({type(error).__name__}: {error})."
        ) from None
    except ValueError as error:
        raise DataFileError(f"'{path}' must {error}.") from None
    if skipped:
        logger.warning("'%s': %d annotations have no segmentation: left out.", path, skipped)
    return CocoFile([name for _, name in categories], images)


def _categories(given: list[Mapping[str, Any]], used: Set[int]) -> list[tuple[int, str]]:
    """Ids and names, by id; ``used`` are the ids of those with annotations."""
    names = {item["id"]: str(item["name"]) for item in given}
    above = {item["name"]: item.get("supercategory") for item in given}
    tops = {top for name, top in above.items() if top != name}
    groups = {
        item["id"]
        for item in given
        if item["name"] in tops and above[item["name"]] in (None, "", "none")
    }
    kept = [(id_, names[id_]) for id_ in sorted(names) if id_ in used or id_ not in groups]
    if not 1 <= len(kept) <= _MAX_CATEGORIES:
        raise ValueError(f"have 1 to {_MAX_CATEGORIES} categories, but has {len(kept)}")
    return kept


def _sort_annotations(
    annotations: list[Mapping[str, Any]],
    values: Mapping[int, int],
    segments: dict[int, list[tuple[int, Any]]],
) -> int:
    """Give each image its annotations; returns how many have no segmentation."""
    skipped = 0
    for item in annotations:
        if item["category_id"] not in values or item["image_id"] not in segments:
            raise ValueError(
                f"give its annotations a category and an image that it lists, but annotation "
                f"{item.get('id')} has category {item['category_id']} and image {item['image_id']}"
            )
        if item.get("segmentation"):
            entry = (values[item["category_id"]], item["segmentation"])
            segments[item["image_id"]].append(entry)
        else:
            skipped += 1
    if skipped and skipped == len(annotations):
        raise ValueError(
            "have polygons or run lengths in 'segmentation', but has none (only boxes?)"
        )
    return skipped


def _image(item: Mapping[str, Any], segments: list[tuple[int, Any]]) -> CocoImage:
    height, width, image_id = item["height"], item["width"], item["id"]
    is_size = all(isinstance(side, int) and side > 0 for side in (height, width))
    if not is_size or height * width > MAX_PIXELS or not isinstance(image_id, int):
        raise ValueError(
            f"give its images integers as id, height and width, but gives {image_id!r}, {height!r} "
            f"and {width!r}"
        )
    # Compact: a large file's annotations as Python objects take several times its size.
    return CocoImage(item["file_name"], height, width, json.dumps(segments).encode())
