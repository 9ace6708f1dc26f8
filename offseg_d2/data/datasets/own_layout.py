"""What a user's folder holds: its splits, and what was meant where they are not found."""

import difflib
import hashlib
import logging
import os
from collections.abc import Sequence

from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import log_first_n

from offseg_d2.utils.io import list_folder

from .coco_folder import find_coco_files

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
IMAGES, LABELS = "images", "annotations"
VALIDATION_SPLITS = ("val", "valid", "validation")
_DRAWN_SPLITS = ("train", "val")  # of a folder that has none
_VALIDATION_SHARE = 0.2


def splits_of(root: str) -> list[str]:
    """Return the names of the splits of a folder, by name; empty if it holds no images.

    Raises:
        FileNotFoundError: there is no such folder; names the nearest one.
    """
    if not PathManager.isdir(root):
        raise FileNotFoundError(
            f"Dataset folder '{root}' must exist, but there is none.{_nearest_folder(root)}"
        )
    coco = find_coco_files(root)
    folders = [] if coco else split_folders(root)
    if "" in coco or (not (coco or folders) and _image_files(os.path.join(root, IMAGES))):
        return list(_DRAWN_SPLITS)
    return sorted(coco) or folders


def split_folders(root: str) -> list[str]:
    """Return the folders in ``images``, by name."""
    images = os.path.join(root, IMAGES)
    entries = list_folder(images) if PathManager.isdir(images) else []
    return sorted(e for e in entries if PathManager.isdir(os.path.join(images, e)))


def _image_files(folder: str) -> list[str]:
    entries = list_folder(folder) if PathManager.isdir(folder) else []
    return [entry for entry in entries if entry.lower().endswith(IMAGE_SUFFIXES)]


def _nearest_folder(path: str) -> str:
    parent, name = os.path.split(path.rstrip("/"))
    entries = list_folder(parent or ".") if PathManager.isdir(parent or ".") else []
    nearest = difflib.get_close_matches(name, entries, n=1)
    return f" Did you mean '{os.path.join(parent, nearest[0])}'?" if nearest else ""


def explain_absence(name: str, root: str, split: str) -> str:
    """Say what a folder holds instead of a split, and what was meant perhaps."""
    splits = splits_of(root)
    text = f"Dataset '{name}' must have its images in '{root}/{IMAGES}/{split}', but "
    if not splits:
        return f"{text}{describe_folder(root)}; splits there: none."
    nearest = difflib.get_close_matches(split, splits, n=1)
    if split in VALIDATION_SPLITS:
        nearest = [other for other in VALIDATION_SPLITS if other in splits] or nearest
    hint = f" Did you mean 'folder:{root}:{nearest[0]}'?" if nearest else ""
    return f"{text}there is no such folder; splits there: {', '.join(splits)}.{hint}"


def describe_folder(root: str) -> str:
    """Say what a folder without images in their places holds; part of a sentence."""
    flat = len(_image_files(root))
    if flat:
        return (
            f"'{root}' holds {flat} image files itself: move the images to '{root}/{IMAGES}' and "
            f"the label files, NAME.png for each image NAME, to '{root}/{LABELS}'"
        )
    entries = ", ".join(sorted(list_folder(root))[:8]) or "nothing"
    return f"there is no such folder and no COCO JSON file; '{root}' holds {entries}"


def split_by_name(root: str, split: str, names: Sequence[str]) -> list[str]:
    """Return the share of a split, "train" or "val", of a folder that has none.

    The fifth of the names with the smallest hashes is "val", at least one: the same on all
    machines, and nearly the same when files are added.
    """
    order = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    validation = set(order[: max(1, round(_VALIDATION_SHARE * len(order)))])
    chosen = [name for name in names if (name in validation) == (split == "val")]
    text = (
        f"'{root}' has no folders of splits: {len(chosen)} of {len(names)} images, chosen by the "
        f"hashes of their names, are '{split}'."
    )
    log_first_n(logging.INFO, text, key="message", name=__name__)  # it is listed for each use
    return chosen
