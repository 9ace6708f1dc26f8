"""Files of a registered dataset, gaps included."""

import collections
import itertools
import os
from collections.abc import Iterator
from typing import Any

from detectron2.data import DatasetCatalog
from detectron2.utils.file_io import PathManager

from ..coco_labels import is_coco_label
from ..datasets import require_registered
from .faults import Fault

Sample = dict[str, Any]
_MAX_NAMES_SHOWN = 3


def list_samples(name: str) -> list[Sample]:
    """Return the samples of a dataset, also of one whose files are partly missing.

    A loader that finds gaps raises an error whose ``samples`` are those that should be there;
    the check of each file will name what is missing.

    Raises:
        FileNotFoundError: the expected files are not known.
        ValueError: the dataset is not registered, cannot be listed, or is empty.
    """
    require_registered(name)
    try:
        samples = DatasetCatalog.get(name)
    except FileNotFoundError as error:
        samples = getattr(error, "samples", None)
        if not samples:
            raise
    except (AssertionError, KeyError) as error:  # how Detectron2's own loaders complain
        raise ValueError(f"Dataset '{name}' must be readable, but is not: {error}.") from error
    if not samples:
        raise ValueError(f"Dataset '{name}' must hold at least one image, but is empty.")
    return list(samples)


def find_duplicates(name: str, samples: list[Sample]) -> Iterator[Fault]:
    """Find files and names that belong to several samples; each sample is named once."""
    for key, what in (
        ("file_name", "is the image"),
        ("sem_seg_file_name", "is the label map"),
        ("image_id", "is the name"),
    ):
        counts = collections.Counter(r[key] for r in samples if r.get(key) is not None)
        repeated = {value: count for value, count in counts.items() if count > 1}
        for value, count in repeated.items():
            yield Fault("duplicate", str(value), f"{what} of {count} samples of '{name}'")
        samples = [sample for sample in samples if sample.get(key) not in repeated]


def find_unused(samples: list[Sample], is_part: bool = False) -> Iterator[Fault]:
    """Look for files beside those of the samples, in the same folders and with the same endings.

    Where every complete pair is used, a file without its counterpart is half a pair that was
    dropped, and a fault. Elsewhere a list chooses what is used, and one line says how much is not.

    Args:
        samples: of the dataset.
        is_part: the other pairs of the folders are those of another split.
    """
    pairs = [
        (r["file_name"], r["sem_seg_file_name"])
        for r in samples
        if r.get("sem_seg_file_name") and not is_coco_label(r["sem_seg_file_name"])
    ]
    endings = [_endings(os.path.basename(i), os.path.basename(m)) for i, m in pairs]
    image_folder_of = {os.path.dirname(m): os.path.dirname(i) for i, m in pairs}
    used = {path for pair in pairs for path in pair}
    folders = set(image_folder_of.values())
    images = {
        (folder, stem): path
        for folder in folders
        for stem, path in _unused_files(folder, {image for image, _ in endings}, used)
    }
    labels = {
        (image_folder, stem): path
        for folder, image_folder in image_folder_of.items()
        for stem, path in _unused_files(folder, {label for _, label in endings}, used)
    }
    pairs_left = images.keys() & labels.keys()
    if is_part:
        images = {key: path for key, path in images.items() if key not in pairs_left}
        labels = {key: path for key, path in labels.items() if key not in pairs_left}
    elif pairs_left:
        yield from _summarize_unused([*images.values(), *labels.values()])
        return
    for path in sorted(images.values()):
        yield Fault("missing_label", path, "has no label map, and is not used")
    for path in sorted(labels.values()):
        yield Fault("missing_image", path, "is the label map of no image, and is not used")


def _endings(image: str, label: str) -> tuple[str, str]:
    """Parts behind the common beginning: a_rgb.png, a_ids.png -> rgb.png, ids.png."""
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(image, label, strict=False))
    common = sum(1 for _ in pairs)
    if common in (len(image), len(label)):
        common = len(os.path.splitext(label)[0])
    return image[common:], label[common:]


def _unused_files(folder: str, endings: set[str], used: set[str]) -> Iterator[tuple[str, str]]:
    """Yield stem and path of the files of a folder that have one of the endings."""
    for name in PathManager.ls(folder) if PathManager.isdir(folder) else ():
        path = os.path.join(folder, name)
        ending = max((e for e in endings if name.endswith(e)), key=len, default=None)
        if ending is not None and path not in used and not name.startswith("."):
            yield name[: len(name) - len(ending)].rstrip("._-"), path


def _summarize_unused(paths: list[str]) -> Iterator[Fault]:
    by_folder = collections.defaultdict(list)
    for path in paths:
        by_folder[os.path.dirname(path)].append(os.path.basename(path))
    for folder, names in sorted(by_folder.items()):
        shown = ", ".join(sorted(names)[:_MAX_NAMES_SHOWN])
        more = ", ..." if len(names) > _MAX_NAMES_SHOWN else ""
        yield Fault(
            "unlisted", folder, f"holds {len(names)} files that are not used: {shown}{more}"
        )
