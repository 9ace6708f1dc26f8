"""Datasets that are folders of images and label files, paired by name."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

_MAX_NAMES_SHOWN = 5


def datasets_root() -> str:
    """Return the folder that holds the datasets: ``DETECTRON2_DATASETS``, else "datasets"."""
    return os.path.expanduser(os.environ.get("DETECTRON2_DATASETS") or "datasets")


@dataclasses.dataclass(frozen=True)
class SemSegFolder:
    """One split of a dataset: ``image_dir/NAME + image_suffix`` and its label file.

    Paths are relative to the root that :meth:`load` is given.
    """

    name: str  # in the DatasetCatalog, for messages
    top_dir: str  # the dataset's own folder, which must exist
    image_dir: str
    label_dir: str
    list_file: str  # one NAME a line
    image_suffix: str = ".jpg"
    label_suffix: str = ".png"

    def load(self, root: str) -> list[dict[str, Any]]:
        """Return the split's records, in the order of the list.

        Raises:
            FileNotFoundError: a folder, the list or a listed file is missing; names it.
        """
        top = os.path.join(root, self.top_dir)
        if not PathManager.isdir(top):
            raise FileNotFoundError(self._explain_absence(top))
        names = self._read_list(os.path.join(root, self.list_file))
        image_dir = os.path.join(root, self.image_dir)
        label_dir = os.path.join(root, self.label_dir)
        self._require(image_dir, [name + self.image_suffix for name in names])
        self._require(label_dir, [name + self.label_suffix for name in names])
        # Known only now: the root is an environment variable, read when the data is asked for.
        _set_anew(self.name, image_root=image_dir, sem_seg_root=label_dir)
        return [
            {
                "file_name": os.path.join(image_dir, name + self.image_suffix),
                "sem_seg_file_name": os.path.join(label_dir, name + self.label_suffix),
                "image_id": name,
            }
            for name in names
        ]

    def _explain_absence(self, top: str) -> str:
        value = os.environ.get("DETECTRON2_DATASETS")
        state = f"is '{value}'" if value else "is not set, which means 'datasets'"
        return (
            f"Dataset '{self.name}' must lie in '{top}', but there is no such folder. Set the "
            f"environment variable DETECTRON2_DATASETS (it {state}) to the folder that holds "
            f"'{self.top_dir}'; datasets/README.md shows the layout."
        )

    def _read_list(self, path: str) -> list[str]:
        if not PathManager.isfile(path):
            raise FileNotFoundError(
                f"Dataset '{self.name}' must have its list of images in '{path}', "
                f"but there is no such file."
            )
        with PathManager.open(path) as file:
            return [line.strip() for line in file if line.strip()]

    def _require(self, folder: str, file_names: list[str]) -> None:
        present = set(PathManager.ls(folder)) if PathManager.isdir(folder) else set()
        missing = [name for name in file_names if name not in present]
        if missing:
            shown = ", ".join(missing[:_MAX_NAMES_SHOWN])
            more = ", ..." if len(missing) > _MAX_NAMES_SHOWN else ""
            raise FileNotFoundError(
                f"Dataset '{self.name}' must have {len(file_names)} files in '{folder}', "
                f"but {len(missing)} are missing: {shown}{more}."
            )


def register_sem_seg(name: str, load: Callable[[], list[dict[str, Any]]], **metadata: Any) -> None:
    """Register a semantic segmentation dataset in Detectron2's catalogs; twice does no harm.

    Args:
        name: in the catalogs.
        load: called whenever the dataset is asked for; returns its records.
        metadata: at least ``stuff_classes``, ``stuff_colors`` and ``label_map``.
    """
    if name not in DatasetCatalog.list():
        DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(evaluator_type="sem_seg", ignore_label=255, **metadata)


def _set_anew(name: str, **values: Any) -> None:
    """Set metadata that may have another value by now, which ``Metadata.set`` would refuse."""
    metadata = MetadataCatalog.get(name)
    for key, value in values.items():
        if hasattr(metadata, key):
            delattr(metadata, key)
        setattr(metadata, key, value)
