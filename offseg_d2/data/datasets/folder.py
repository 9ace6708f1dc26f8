"""Datasets that are folders of images and label files, paired by name.

One dataset may be laid out in several ways, and its label files may come in several kinds (as
downloaded, or as some tool has converted them). Both are decided by what lies on the disk, when
the data is asked for: the root is an environment variable, and nothing is read on import.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from offseg_d2.utils.io import decode_text, list_folder

_MAX_NAMES_SHOWN = 5


def datasets_root() -> str:
    """Return the folder that holds the datasets: ``DETECTRON2_DATASETS``, else "datasets"."""
    return os.path.expanduser(os.environ.get("DETECTRON2_DATASETS") or "datasets")


@dataclasses.dataclass(frozen=True)
class Layout:
    """One way of laying out a split; the folders are relative to ``top_dir``."""

    top_dir: str  # relative to the root
    image_dir: str
    label_dir: str | None  # None: the labels of this split are not public
    list_file: str | None = None  # one NAME a line; None takes all files of the folders

    @property
    def parts(self) -> list[str]:
        """Required paths, relative to the root; the dataset's own folder first."""
        inner = (self.image_dir, self.label_dir, self.list_file)
        return [self.top_dir, *(os.path.join(self.top_dir, part) for part in inner if part)]


@dataclasses.dataclass(frozen=True)
class LabelKind:
    """Names of label files (NAME + suffix) and the meaning of their ids."""

    suffix: str
    label_map: Mapping[int, int]  # raw id -> train id


class IncompleteDatasetError(FileNotFoundError):
    """Files of a dataset are missing; the message names them.

    Attributes:
        samples: of the whole dataset, as if nothing were missing.
    """

    def __init__(self, message: str, samples: list[dict[str, Any]]) -> None:
        super().__init__(message)
        self.samples = samples


class FoundSplit(NamedTuple):
    """Folders of a split, and its files by NAME, relative to them."""

    image_dir: str
    label_dir: str | None
    list_path: str | None
    labels: dict[str, str]
    kind: LabelKind


@dataclasses.dataclass(frozen=True)
class SemSegFolder:
    """One split of a dataset: images NAME + one of ``image_suffixes`` and their label files."""

    name: str  # in the DatasetCatalog, for messages
    layouts: Sequence[Layout]  # the first that is there is taken
    label_kinds: Sequence[LabelKind]  # the first of which there are files is taken
    image_suffixes: tuple[str, ...] = (".jpg",)
    choose: Callable[[Sequence[str]], Sequence[str]] = list  # those of the NAMEs that are taken

    def load(self, root: str) -> list[dict[str, Any]]:
        """Return the split's samples: in the order of the list, or by name if it has none.

        Raises:
            FileNotFoundError: no layout is there.
            IncompleteDatasetError: an image or a label file has no partner.
        """
        found = self._find(root)
        self._publish(found)
        images = _files_by_name(found.image_dir, self.image_suffixes)
        if found.list_path is None:
            names = sorted(images.keys() | found.labels.keys())
        else:
            names = self._read_list(found.list_path)
        names = self.choose(names)
        suffix = self.image_suffixes[0]
        samples = self._samples(found, names, {n: images.get(n, n + suffix) for n in names})
        gaps = [describe_missing(found.image_dir, names, images, suffix)]
        if found.label_dir is not None:
            gaps.append(describe_missing(found.label_dir, names, found.labels, found.kind.suffix))
        if any(gaps):
            reason = ", and ".join(gap for gap in gaps if gap)
            raise IncompleteDatasetError(f"Dataset '{self.name}' must have {reason}.", samples)
        return samples

    def refresh(self, root: str) -> None:
        """Bring the label map in the metadata up to date with the files below ``root``, if any.

        Without it, a map asked for before the samples could be that of another kind of files.
        """
        if len(self.label_kinds) > 1 and self._find_layout(root) is not None:
            self._publish(self._find(root))

    def _find_layout(self, root: str) -> Layout | None:
        complete = (
            layout
            for layout in self.layouts
            if all(PathManager.exists(os.path.join(root, part)) for part in layout.parts)
        )
        return next(complete, None)

    def _find(self, root: str) -> FoundSplit:
        layout = self._find_layout(root)
        if layout is None:
            raise FileNotFoundError(self._explain_absence(root))
        image_dir = os.path.join(root, layout.top_dir, layout.image_dir)
        list_path = layout.list_file and os.path.join(root, layout.top_dir, layout.list_file)
        if layout.label_dir is None:
            return FoundSplit(image_dir, None, list_path, {}, self.label_kinds[0])
        label_dir = os.path.join(root, layout.top_dir, layout.label_dir)
        # All suffixes at once, so that "NAME_labelTrainIds.png" is not taken for a NAME of ".png".
        by_suffix = _files_by_suffix(label_dir, [kind.suffix for kind in self.label_kinds])
        present = [kind for kind in self.label_kinds if by_suffix[kind.suffix]]
        kind = present[0] if present else self.label_kinds[0]
        return FoundSplit(image_dir, label_dir, list_path, by_suffix[kind.suffix], kind)

    def _publish(self, found: FoundSplit) -> None:
        replace_metadata(
            self.name,
            image_root=found.image_dir,
            sem_seg_root=found.label_dir,
            label_map=dict(found.kind.label_map),
        )

    def _samples(
        self, found: FoundSplit, names: Sequence[str], images: Mapping[str, str]
    ) -> list[dict[str, Any]]:
        short = [os.path.basename(name) for name in names]
        image_ids = short if len(set(short)) == len(short) else names
        samples = []
        for name, image_id in zip(names, image_ids, strict=True):
            sample = {"file_name": os.path.join(found.image_dir, images[name])}
            if found.label_dir is not None:
                label = found.labels.get(name, name + found.kind.suffix)
                sample["sem_seg_file_name"] = os.path.join(found.label_dir, label)
            samples.append({**sample, "image_id": image_id})
        return samples

    def _explain_absence(self, root: str) -> str:
        missing: dict[str, None] = {}
        for layout in self.layouts:
            paths = [os.path.join(root, part) for part in layout.parts]
            missing[next(path for path in paths if not PathManager.exists(path))] = None
        absent = ", no ".join(f"'{path}'" for path in missing)
        tops = " or ".join(f"'{top}'" for top in dict.fromkeys(x.top_dir for x in self.layouts))
        value = os.environ.get("DETECTRON2_DATASETS")
        state = f"is '{value}'" if value else "is not set, which means 'datasets'"
        return (
            f"Dataset '{self.name}' must lie where it is looked for, but there is no {absent}. "
            f"Set the environment variable DETECTRON2_DATASETS (it {state}) to the folder that "
            f"holds {tops}; datasets/README.md shows the layout."
        )

    def _read_list(self, path: str) -> list[str]:
        with PathManager.open(path, "rb") as file:
            text = _decode(file.read(), path)
        return [line.strip() for line in text.splitlines() if line.strip()]


def describe_missing(
    folder: str, names: Sequence[str], present: Container[str], suffix: str = ""
) -> str | None:
    """Say which files a folder lacks, if it does."""
    missing = sorted(name + suffix for name in names if name not in present)
    if not missing:
        return None
    shown = ", ".join(missing[:_MAX_NAMES_SHOWN])
    more = ", ..." if len(missing) > _MAX_NAMES_SHOWN else ""
    return f"{len(names)} files in '{folder}', but {len(missing)} are missing: {shown}{more}"


def register_sem_seg(name: str, load: Callable[[], list[dict[str, Any]]], **metadata: Any) -> None:
    """Register a semantic segmentation dataset in Detectron2's catalogs; the last one counts.

    Args:
        name: in the catalogs.
        load: called whenever the dataset is asked for; returns its samples.
        metadata: at least ``stuff_classes``, ``stuff_colors`` and ``label_map``.

    Raises:
        ValueError: somebody else has registered another dataset by this name.
    """
    if name in DatasetCatalog.list():
        if not hasattr(MetadataCatalog.get(name), "label_map"):
            raise ValueError(
                f"`name` must not be that of a dataset of another library, but '{name}' is taken."
            )
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)
    DatasetCatalog.register(name, load)
    replace_metadata(name, evaluator_type="sem_seg", ignore_label=255, **metadata)


def register_split(
    split: SemSegFolder,
    classes: Sequence[tuple[str, Sequence[int]]],
    find_root: Callable[[], str] = datasets_root,
) -> None:
    """Register a split by its name.

    Args:
        split: what to register.
        classes: name and RGB colour of each class, by train id.
        find_root: called whenever the data is asked for.
    """
    register_sem_seg(
        split.name,
        functools.partial(_load, split, find_root),
        stuff_classes=[name for name, _ in classes],
        stuff_colors=[list(color) for _, color in classes],
        label_map=dict(split.label_kinds[0].label_map),
        refresh_label_map=functools.partial(_refresh, split, find_root),
    )


def _load(split: SemSegFolder, find_root: Callable[[], str]) -> list[dict[str, Any]]:
    return split.load(find_root())


def _refresh(split: SemSegFolder, find_root: Callable[[], str]) -> None:
    split.refresh(find_root())


def _files_by_name(folder: str, suffixes: Sequence[str]) -> dict[str, str]:
    """NAME -> file, for all files below ``folder`` with one of the suffixes.

    Raises:
        ValueError: two files have the same NAME.
    """
    named: dict[str, str] = {}
    for files in _files_by_suffix(folder, suffixes).values():
        for name, file in files.items():
            if name in named:
                raise ValueError(
                    f"Folder '{folder}' must hold one image of each name, "
                    f"but holds '{named[name]}' and '{file}'."
                )
            named[name] = file
    return named


def _files_by_suffix(folder: str, suffixes: Sequence[str]) -> dict[str, dict[str, str]]:
    """Suffix -> {NAME: file}; of several suffixes that fit, the longest counts."""
    longest_first = sorted(suffixes, key=len, reverse=True)
    found: dict[str, dict[str, str]] = {suffix: {} for suffix in suffixes}
    endings = tuple(suffix.lower() for suffix in suffixes)
    for file in _walk(folder, endings):
        for suffix in longest_first:
            if file.lower().endswith(suffix.lower()):
                name = file[: -len(suffix)]
                if name in found[suffix]:  # such as a.jpg and a.JPG
                    raise ValueError(
                        f"Folder '{folder}' must hold one file of each name, but holds "
                        f"'{found[suffix][name]}' and '{file}'."
                    )
                found[suffix][name] = file
                break
    return found


def _decode(content: bytes, path: str) -> str:
    """Text of a list, as editors of all systems save it.

    Raises:
        ValueError: it is neither UTF-8 nor marked as UTF-16; names the file.
    """
    try:
        return decode_text(content)
    except UnicodeDecodeError as error:
        raise ValueError(f"List file '{path}' must be UTF-8 text, but is not: {error}.") from None


def _walk(folder: str, suffixes: tuple[str, ...], below: str = "") -> list[str]:
    """Files in ``folder`` and folders in it, relative to it; see :func:`list_folder`.

    What ends with one of the suffixes (lower case) is taken for a file.
    """
    files = []
    for entry in list_folder(os.path.join(folder, below)):
        path = os.path.join(below, entry)
        # To ask of each of 100 000 files whether it is a folder would take seconds.
        is_wanted = entry.lower().endswith(suffixes)
        if not is_wanted and PathManager.isdir(os.path.join(folder, path)):
            files += _walk(folder, suffixes, path)
        else:
            files.append(path)
    return files


def replace_metadata(name: str, **values: Any) -> None:
    """Set a dataset's metadata to values that may be others than before.

    ``Metadata.set`` would refuse those.
    """
    metadata = MetadataCatalog.get(name)
    for key, value in values.items():
        if hasattr(metadata, key):
            delattr(metadata, key)
        setattr(metadata, key, value)
