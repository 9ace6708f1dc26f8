"""The check of whole datasets: files read in parallel, faults collected, classes counted."""

import collections
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.data import Metadata, MetadataCatalog
from tqdm import tqdm

from ..image_settings import DEFAULT_SETTINGS, ImageSettings
from ..label_map import IGNORE_LABEL, classes_of, describe_label_map, label_lut_of, label_map_of
from .faults import FAULTS, WARNINGS, Fault
from .listing import Sample, find_duplicates, find_unused, list_samples
from .pair import PairResult, check_pair
from .workers import WorkerDeath, run_in_workers

_MAX_NAMES_SHOWN = 12
_NO_COLOR = (128, 128, 128)


@dataclass(frozen=True)
class ClassStatistics:
    """Frequencies of the classes in the usable label maps; K classes."""

    names: list[str]
    colors: list[tuple[int, int, int]]  # RGB; grey where the metadata has none
    pixels: np.ndarray  # (K,) int64
    images: np.ndarray  # (K,) int64: label maps that hold the class
    ignored_pixels: int
    num_labels: int  # usable label maps

    @property
    def shares(self) -> np.ndarray:
        """(K,) share of each class in all pixels that are not ignored; 0 if there are none."""
        return self.pixels / max(self.pixels.sum(), 1)

    @property
    def absent(self) -> list[str]:
        """Names of the classes that never occur."""
        return [name for name, count in zip(self.names, self.pixels, strict=True) if not count]


@dataclass(frozen=True)
class DatasetReport:
    """Findings about one dataset."""

    name: str
    label_map: str  # in one line
    num_samples: int
    num_images: int  # that are there
    num_labels: int  # that are there
    num_usable: int  # samples without any fault
    sizes: dict[tuple[int, int], int]  # (height, width) -> images
    classes: ClassStatistics
    faults: tuple[Fault, ...]
    warnings: tuple[Fault, ...]

    @property
    def is_clean(self) -> bool:
        """True if nothing is wrong; warnings do not count."""
        return not self.faults


def check_datasets(
    names: Sequence[str], workers: int = 0, settings: ImageSettings = DEFAULT_SETTINGS
) -> list[DatasetReport]:
    """Check registered datasets, with a progress bar for each.

    Args:
        names: in Detectron2's catalogs. All of them are listed before the first file is read.
        workers: number of processes; 0 reads in this one.
        settings: how the values of image files become colours.

    Returns:
        a report for each. Images with the same content are looked for across all of them.

    Raises:
        ValueError: a name or a number cannot be used.
        FileNotFoundError: a dataset is not where it was looked for.
        WorkersError: processes keep dying.
    """
    if workers < 0:
        raise ValueError(f"`--workers` must not be negative, but is {workers}.")
    if len(set(names)) < len(names):
        raise ValueError(f"Datasets must be named once each, but are {', '.join(names)}.")
    listed = {name: list_samples(name) for name in names}
    contents: dict[bytes, str] = {}
    return [_check(name, samples, workers, settings, contents) for name, samples in listed.items()]


def _check(
    name: str,
    samples: list[Sample],
    workers: int,
    settings: ImageSettings,
    contents: dict[bytes, str],
) -> DatasetReport:
    """Check one dataset; ``contents`` (digest -> image file) is shared by all, and added to."""
    metadata = MetadataCatalog.get(name)
    unused = find_unused(samples, is_part=metadata.get("has_part_of_files", False))
    found = [*_check_definition(metadata), *find_duplicates(name, samples), *unused]
    results = _check_files(metadata, samples, workers, settings)
    for sample, result in zip(samples, results, strict=True):
        found += result.faults
        found += _find_same_content(sample["file_name"], result.digest, contents)
    found += _check_ranges(name, results, settings)
    classes = _count_classes(metadata, results)
    if classes.num_labels and classes.absent:
        shown = ", ".join(classes.absent[:_MAX_NAMES_SHOWN])
        more = ", ..." if len(classes.absent) > _MAX_NAMES_SHOWN else ""
        text = f"has no pixel of {len(classes.absent)} classes: {shown}{more}"
        found.append(Fault("absent_class", name, text))
    return DatasetReport(
        name=name,
        label_map=describe_label_map(metadata),
        num_samples=len(samples),
        num_images=sum(result.image_found for result in results),
        num_labels=sum(result.label_found for result in results),
        num_usable=sum(not any(f.kind in FAULTS for f in r.faults) for r in results),
        sizes=dict(collections.Counter(r.size for r in results if r.size).most_common()),
        classes=classes,
        faults=_select(found, FAULTS),
        warnings=_select(found, WARNINGS),
    )


def _check_definition(metadata: Metadata) -> Iterator[Fault]:
    """Check names, colours and label map against each other."""
    names, colors = classes_of(metadata), getattr(metadata, "stuff_colors", None)
    if colors is not None and len(colors) != len(names):
        text = f"has {len(names)} classes, but {len(colors)} colours"
        yield Fault("definition", metadata.name, text)
    for name, count in collections.Counter(names).items():
        if count > 1:
            yield Fault("definition", metadata.name, f"has {count} classes of the name '{name}'")
    label_map = label_map_of(metadata)
    for raw_id, train_id in label_map.items():
        if train_id >= len(names) and train_id != IGNORE_LABEL:
            text = f"maps id {raw_id} to {train_id}, but has {len(names)} classes"
            yield Fault("definition", metadata.name, text)
    for train_id in sorted(set(range(len(names))) - set(label_map.values())):
        text = f"maps no id to class {train_id} ('{names[train_id]}')"
        yield Fault("definition", metadata.name, text)


def _check_files(
    metadata: Metadata, samples: list[Sample], workers: int, settings: ImageSettings
) -> list[PairResult]:
    """Check all pairs; the results come in the order of the samples."""
    function = functools.partial(check_pair, lut=label_lut_of(metadata), settings=settings)
    # Of each sample what the check reads: the rest need not pass through the pipes.
    keys = ("file_name", "sem_seg_file_name", "height", "width")
    tasks = [{key: sample[key] for key in keys if key in sample} for sample in samples]
    done = run_in_workers(function, tasks, workers)
    shown = tqdm(done, metadata.name, len(tasks), unit="pair", disable=None)
    return [_replace_death(task, result) for task, result in zip(tasks, shown, strict=True)]


def _replace_death(task: Sample, result: PairResult | WorkerDeath) -> PairResult:
    if isinstance(result, PairResult):
        return result
    label = task.get("sem_seg_file_name")
    text = f"or its label map '{label}' " if label else ""
    text += f"ended two processes that read it: {result.reason}"
    fault = Fault("crash", task["file_name"], text)
    return PairResult((fault,), image_found=True, label_found=label is not None)


def _check_ranges(
    name: str, results: Sequence[PairResult], settings: ImageSettings
) -> Iterator[Fault]:
    """Compare the 16-bit values of all images with the settings."""
    ranges = [result.value_range for result in results if result.value_range]
    if ranges:
        low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
        if text := settings.range_warning("It", low, high):
            yield Fault("value_range", name, text.removeprefix("It ").rstrip("."))


def _find_same_content(
    path: str, digest: bytes | None, contents: dict[bytes, str]
) -> Iterator[Fault]:
    if digest is None:
        return
    other = contents.setdefault(digest, path)
    if other != path:
        yield Fault("same_content", path, f"has the same content as '{other}'")


def _count_classes(metadata: Metadata, results: Sequence[PairResult]) -> ClassStatistics:
    names = classes_of(metadata)
    colors = [tuple(color) for color in getattr(metadata, "stuff_colors", [])][: len(names)]
    colors += [_NO_COLOR] * (len(names) - len(colors))
    lut = label_lut_of(metadata)
    pixels, images = np.zeros(256, dtype=np.int64), np.zeros(256, dtype=np.int64)
    counted = [result.id_counts for result in results if result.id_counts is not None]
    for id_counts in counted:
        known = {raw_id: count for raw_id, count in id_counts.items() if lut.valid[raw_id]}
        for raw_id, count in known.items():
            pixels[lut.values[raw_id]] += count
        images[list({int(lut.values[raw_id]) for raw_id in known})] += 1
    return ClassStatistics(
        names=names,
        colors=colors,
        pixels=pixels[: len(names)],
        images=images[: len(names)],
        ignored_pixels=int(pixels[IGNORE_LABEL]),
        num_labels=len(counted),
    )


def _select(found: list[Fault], kinds: dict[str, str]) -> tuple[Fault, ...]:
    """Those of the given kinds, grouped in their order."""
    return tuple(fault for kind in kinds for fault in found if fault.kind == kind)
