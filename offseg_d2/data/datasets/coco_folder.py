"""A user's folder whose labels are COCO JSON files, as Roboflow, CVAT and others export them.

Layouts, the first that is there::

    ROOT/SPLIT/_annotations.coco.json      images beside it
    ROOT/annotations/instances_SPLIT.json  or SPLIT.json; images in ROOT/images/SPLIT, ROOT/SPLIT,
                                           ROOT/images or ROOT
    ROOT/_annotations.coco.json            or annotations.json, instances*.json, result.json, ...
"""

import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from detectron2.utils.file_io import PathManager

from offseg_d2.data.coco_labels import UNCOVERED, CocoFile, coco_label_name, read_coco_file
from offseg_d2.utils.io import list_folder

from .class_file import ClassTable, class_table, read_class_file
from .folder import IncompleteDatasetError, describe_missing, replace_metadata

_ROBOFLOW = "_annotations.coco.json"
_TOP_FILE = re.compile(r"(.*\.coco|annotations|coco|result|instances.*)\.json")
_NAMED_SPLIT = re.compile(r"(train|val|test).*", re.IGNORECASE)
_IGNORED = 255
BACKGROUND = "background"


def find_coco_files(root: str) -> dict[str, str]:
    """Return split -> JSON file; a file without a split of its own has the split ""."""
    inner = {entry: os.path.join(root, entry, _ROBOFLOW) for entry in sorted(list_folder(root))}
    found = {split: path for split, path in inner.items() if PathManager.isfile(path)}
    if found:
        return found
    folder = os.path.join(root, "annotations")
    entries = sorted(list_folder(folder)) if PathManager.isdir(folder) else []
    names = [name for name in entries if name.endswith(".json")]
    others = set(entries) - set(names)
    if any(o.endswith(".png") or PathManager.isdir(os.path.join(folder, o)) for o in others):
        return {}  # label files
    names = [name for name in names if name.startswith("instances_")] or names
    if not names:
        folder = root
        names = sorted(name for name in list_folder(root) if _TOP_FILE.fullmatch(name))
    splits = {re.sub(r"^instances_|\.json$", "", n): os.path.join(folder, n) for n in names}
    if len(splits) == 1 and not any(map(_NAMED_SPLIT.fullmatch, splits)):
        return {"": next(iter(splits.values()))}
    return splits


def coco_class_table(path: str, class_file: str | None) -> ClassTable:
    """Classes of a COCO JSON file, and what the values of its drawn label maps mean.

    Without a file of classes: "background" for the pixels that no annotation covers, then the
    categories. With one: its classes in its order, which must hold all categories; uncovered pixels
    are its class "background", or ignored if it has none.

    Args:
        path: JSON file.
        class_file: ``classes.txt`` or ``classes.json``, or None.

    Raises:
        ValueError: a file cannot be used; names it.
    """
    categories = read_coco_file(path).categories
    if class_file is None:
        lower = [name.lower() for name in categories]
        names = categories if BACKGROUND in lower else [BACKGROUND, *categories]
        table = class_table({"classes": names}, f"'{path}'")
    else:
        table = read_class_file(class_file)
    names = [name for name, _ in table.classes]
    absent = [name for name in categories if name not in names]
    if absent:
        raise ValueError(
            f"'{class_file}' must list all categories of '{path}', but lacks {absent}; categories "
            f"there: {categories}."
        )
    background = [index for index, name in enumerate(names) if name.lower() == BACKGROUND]
    label_map = {UNCOVERED: background[0] if background else _IGNORED}
    label_map |= {value: names.index(name) for value, name in enumerate(categories, start=1)}
    return ClassTable(table.classes, {_IGNORED: _IGNORED, **label_map}, has_palette=False)


def load_coco(
    name: str, root: str, split: str, path: str, choose: Callable[[Sequence[str]], Sequence[str]]
) -> list[dict[str, Any]]:
    """Return the samples of a split, in the order of the file.

    Args:
        name: of the dataset, for messages.
        root: its folder.
        split: name of the split.
        path: its JSON file.
        choose: returns those of the images' file names that are wanted.

    Raises:
        ValueError: the JSON file cannot be used; names it.
        IncompleteDatasetError: images are missing.
    """
    content = read_coco_file(path)
    folder = _image_folder(root, split, path, content)
    replace_metadata(name, image_root=folder)
    wanted = set(choose([image.file_name for image in content.images.values()]))
    samples = [
        {
            "file_name": os.path.join(folder, image.file_name),
            "sem_seg_file_name": coco_label_name(path, image_id),
            "image_id": os.path.splitext(image.file_name)[0],
            "height": image.height,
            "width": image.width,
        }
        for image_id, image in content.images.items()
        if image.file_name in wanted
    ]
    there = {s["file_name"] for s in samples if PathManager.isfile(s["file_name"])}
    missing = describe_missing(folder, [s["file_name"] for s in samples], there)
    if missing:
        raise IncompleteDatasetError(f"Dataset '{name}' must have {missing}.", samples)
    return samples


def _image_folder(root: str, split: str, path: str, content: CocoFile) -> str:
    beside = [os.path.dirname(path)] if os.path.basename(path) == _ROBOFLOW else []
    images = os.path.join(root, "images")
    folders = [*beside, os.path.join(images, split), os.path.join(root, split), images, root]
    first = next(iter(content.images.values()), None)
    fitting = (
        folder
        for folder in folders
        if first is not None and PathManager.isfile(os.path.join(folder, first.file_name))
    )
    return next(fitting, folders[0])
