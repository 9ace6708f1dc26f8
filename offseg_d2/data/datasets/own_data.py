"""A user's own data, in one step: a folder of images, label files and a list of classes.

::

    ROOT/classes.txt or ROOT/classes.json
    ROOT/images/SPLIT/NAME.jpg
    ROOT/annotations/SPLIT/NAME.png

Without a folder for each split, a fifth of the images, chosen by the hashes of their names, is the
split ``val`` and the others are ``train``. Labels may also be COCO JSON files, see
:mod:`.coco_folder`.

``folder:ROOT:SPLIT`` in ``DATASETS.TRAIN`` or ``DATASETS.TEST`` is such a dataset without any
code; :func:`register_folder` gives it a name of its own.
"""

import difflib
import functools
import logging
import os
from collections.abc import Iterable, Sequence

from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from .class_file import CLASS_FILES, ClassTable, class_table, find_class_file, read_class_file
from .coco_folder import coco_class_table, find_coco_files, load_coco
from .folder import LabelKind, Layout, SemSegFolder, register_sem_seg, register_split
from .own_layout import (
    IMAGE_SUFFIXES,
    IMAGES,
    LABELS,
    VALIDATION_SPLITS,
    describe_folder,
    explain_absence,
    split_by_name,
    split_folders,
    splits_of,
)

logger = logging.getLogger(__name__)

PREFIX = "folder:"
# Names under which exports have what is looked for here.
_OTHER_LABELS = ("masks", "labels", "mask", "label", "annotation", "SegmentationClass")


def register_folder(name: str, root: str, classes: Sequence[str] | str | None = None) -> list[str]:
    """Register the splits of a folder as ``{name}_{split}``; see the module's text for its forms.

    Args:
        name: of the dataset.
        root: folder with ``images/{split}`` and ``annotations/{split}``.
        classes: names of the classes, label file value by value from 0 on (255 is ignored); or the
            path of a file as :func:`~offseg_d2.data.datasets.class_file.read_class_file` reads it;
            None takes ``classes.json`` or ``classes.txt`` in ``root``.

    Returns:
        the registered names.

    Raises:
        FileNotFoundError: the folder, its images or the file of classes are not there.
        ValueError: the classes cannot be used, or the name is taken.
    """
    root = os.path.expanduser(root)
    splits = splits_of(root)
    if not splits:
        raise FileNotFoundError(
            f"`root` must hold a folder 'images' with a folder for each split, but "
            f"{describe_folder(root)}."
        )
    for split in splits:
        known = MetadataCatalog.get(f"{name}_{split}")
        if getattr(known, "stuff_classes", None) and getattr(known, "folder_root", None) != root:
            raise ValueError(
                f"`name` must not be that of another dataset, but '{known.name}' is taken."
            )
        _register(f"{name}_{split}", root, split, classes)
    return [f"{name}_{split}" for split in splits]


def ensure_registered(names: Iterable[str]) -> None:
    """Register those of the dataset names that are ``folder:ROOT:SPLIT``, if they are not yet.

    Raises:
        FileNotFoundError: a folder or its file of classes is not there.
        ValueError: a name is of another form, or the classes cannot be used.
    """
    for name in names:
        if name.startswith(PREFIX) and name not in DatasetCatalog.list():
            root, split = parse_name(name)
            if split not in splits_of(root):
                raise FileNotFoundError(explain_absence(name, root, split))
            _register(name, root, split, None)


def require_registered(name: str, key: str = "") -> None:
    """Check that a dataset of this name is registered; ``folder:`` names register themselves.

    Args:
        name: in the DatasetCatalog.
        key: of the configuration that holds the name, for the message.

    Raises:
        ValueError: it is not; names the nearest ones.
        FileNotFoundError: the folder that it names is not there.
    """
    ensure_registered([name])
    known = DatasetCatalog.list()
    if name in known:
        return
    nearest = difflib.get_close_matches(name, known, n=3)
    hint = f" Did you mean {', '.join(nearest)}?" if nearest else ""
    if key:
        raise ValueError(f"`{key}` must name registered datasets, but '{name}' is none.{hint}")
    raise ValueError(f"'{name}' must be a registered dataset, but is none.{hint}")


def adapt_to_folders(cfg: CfgNode, *, eval_only: bool = False) -> None:
    """Register the ``folder:`` datasets of a config, and set in it what follows from them.

    ``MODEL.SEM_SEG_HEAD.NUM_CLASSES`` becomes the number of classes of ``DATASETS.TRAIN`` (of
    ``DATASETS.TEST`` for an evaluation); so it does for other registered datasets where it has
    Detectron2's default value. In training, members of ``DATASETS.TEST`` with other classes (those
    of the config file that was started from) give way to the folder's split ``val`` (``valid``,
    ``validation``), if there is one; so does an empty ``DATASETS.TEST``. Each change is logged.
    Nothing else changes.

    Args:
        cfg: config, changed in place even if it is frozen.
        eval_only: the run evaluates only; ``DATASETS.TRAIN`` is not looked at.

    Raises:
        FileNotFoundError, ValueError: as :func:`ensure_registered`.
    """
    leading = cfg.DATASETS.TEST if eval_only else cfg.DATASETS.TRAIN
    ensure_registered([*leading, *cfg.DATASETS.TEST])
    folders = [name for name in leading if name.startswith(PREFIX)]
    head = cfg.MODEL.SEM_SEG_HEAD
    unset = head.NUM_CLASSES == get_cfg().MODEL.SEM_SEG_HEAD.NUM_CLASSES
    named = folders or [name for name in leading if unset and name in DatasetCatalog.list()]
    classes = MetadataCatalog.get(named[0]).get("stuff_classes") if named else None
    if not classes:
        return
    was_frozen = cfg.is_frozen()
    cfg.defrost()
    if len(classes) != head.NUM_CLASSES:
        logger.info(
            f"`MODEL.SEM_SEG_HEAD.NUM_CLASSES` is {len(classes)}, as '{named[0]}' has it "
            f"(the configuration says {head.NUM_CLASSES})."
        )
        head.NUM_CLASSES = len(classes)
    if folders and not eval_only:
        _replace_other_test_sets(cfg, folders[0])
    if was_frozen:
        cfg.freeze()


def _replace_other_test_sets(cfg: CfgNode, train_name: str) -> None:
    """Leave out test sets of other classes than ``train_name``; take its split val instead."""
    classes = MetadataCatalog.get(train_name).stuff_classes
    before = tuple(cfg.DATASETS.TEST)
    kept = tuple(
        name
        for name in before
        # A folder was named on purpose: if its classes differ, the loader says so. A name that
        # nobody registered is misspelt: the error that names it comes with the evaluation set-up.
        if name.startswith(PREFIX)
        or name not in DatasetCatalog.list()
        or getattr(MetadataCatalog.get(name), "stuff_classes", None) == classes
    )
    if kept and kept == before:
        return
    root, _ = parse_name(train_name)
    validation = [split for split in VALIDATION_SPLITS if split in splits_of(root)]
    if not kept and validation:
        kept = (f"{PREFIX}{root}:{validation[0]}",)
        ensure_registered(kept)
    if kept == before:
        return
    cfg.DATASETS.TEST = kept
    if not before:
        logger.info(f"`DATASETS.TEST` is {kept}, which the folder has; it was empty.")
        return
    reason = f"whose classes are not those of '{train_name}'"
    logger.warning(f"`DATASETS.TEST` is {kept} instead of {before}, {reason}.")


def parse_name(name: str) -> tuple[str, str]:
    """Return root and split of ``folder:ROOT:SPLIT``; the root may hold colons.

    Raises:
        ValueError: the name is of another form.
    """
    root, _, split = name.removeprefix(PREFIX).rpartition(":")
    if not root or not split or "/" in split:
        raise ValueError(f"A dataset folder must be named 'folder:ROOT:SPLIT', but is '{name}'.")
    return os.path.expanduser(root), split


def _table(root: str, classes: Sequence[str] | str | None) -> ClassTable:
    if classes is None:
        return read_class_file(find_class_file(root))
    if isinstance(classes, str):
        return read_class_file(classes)
    return class_table({"classes": list(classes)}, "`classes`")


def _register(name: str, root: str, split: str, classes: Sequence[str] | str | None) -> None:
    coco = find_coco_files(root)
    if coco:
        table = _register_coco(name, root, split, coco, classes)
    else:
        table = _table(root, classes)
        folder = _folder(name, root, split, table)
        register_split(folder, table.classes, find_root=_no_root)
    metadata = MetadataCatalog.get(name)
    metadata.folder_root = root
    metadata.has_part_of_files = not (coco or split_folders(root))
    if table.has_palette:
        metadata.label_colors = [color for _, color in table.classes]
        metadata.ignored_colors = table.ignored_colors


def _folder(name: str, root: str, split: str, table: ClassTable) -> SemSegFolder:
    is_divided = bool(split_folders(root))
    inner = f"/{split}" if is_divided else ""
    labels: str | None = f"{LABELS}{inner}"
    if not PathManager.isdir(os.path.join(root, labels)):
        other = next((n for n in _OTHER_LABELS if PathManager.isdir(os.path.join(root, n))), None)
        hint = f" Rename '{root}/{other}' to '{LABELS}' if it holds the labels." if other else ""
        logger.info(
            f"'{name}' has no folder '{root}/{labels}': it can be predicted, not trained on or "
            f"evaluated.{hint}"
        )
        labels = None
    return SemSegFolder(
        name,
        [Layout(root, f"{IMAGES}{inner}", labels)],
        [LabelKind(".png", table.label_map)],
        image_suffixes=IMAGE_SUFFIXES,
        choose=list if is_divided else functools.partial(split_by_name, root, split),
    )


def _register_coco(
    name: str, root: str, split: str, files: dict[str, str], classes: Sequence[str] | str | None
) -> ClassTable:
    if classes is not None and not isinstance(classes, str):
        raise ValueError(
            f"`classes` must be None or the path of a file for COCO JSON files, but is {classes!r}."
        )
    there = (os.path.join(root, file) for file in CLASS_FILES)
    class_file = classes or next((path for path in there if PathManager.isfile(path)), None)
    path = files.get(split, files.get("", ""))
    table = coco_class_table(path, class_file)
    choose = functools.partial(split_by_name, root, split) if "" in files else list
    register_sem_seg(
        name,
        functools.partial(load_coco, name, root, split, path, choose),
        stuff_classes=[name for name, _ in table.classes],
        stuff_colors=[color for _, color in table.classes],
        label_map=table.label_map,
    )
    return table


def _no_root() -> str:
    """The layout's folder is a path of its own, not below DETECTRON2_DATASETS."""
    return ""
