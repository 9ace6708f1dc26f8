"""Pictures of datasets: ground truth over images, and the batches that training sees.

Pictures are (H, W, 3) uint8 RGB.
"""

import difflib
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import Metadata
from tqdm import tqdm

from offseg_d2.data import (
    IGNORE_LABEL,
    DataFileError,
    ImageSettings,
    SemSegDatasetMapper,
    adapt_to_folders,
    build_train_loader,
    label_lut_of,
)
from offseg_d2.data.image_settings import DEFAULT_SETTINGS
from offseg_d2.utils.io import file_stem, write_picture
from offseg_d2.visualization.overlay import enlarge, legend, overlay, side_by_side

Sample = dict[str, Any]

# Long side of a picture in pixels: small images are enlarged, large ones reduced.
_PICTURE_SIDES, _CELL_SIDES = (480, 960), (320, 400)
_SHEET_ASPECT = 1.8  # width / height aimed at
_BACKGROUND, _PADDING, _GAP = 255, 225, 16


def image_name(sample: Sample) -> str:
    """Name of a sample's image: its id, else its file name without folder and suffix."""
    stem = os.path.splitext(os.path.basename(sample["file_name"]))[0]
    return str(sample.get("image_id", stem))


def choose_samples(
    samples: Sequence[Sample], names: Sequence[str] = (), number: int = 4, seed: int = 0
) -> list[Sample]:
    """Choose samples by name, or at random but in their own order.

    Args:
        samples: of a dataset.
        names: ids or file names, with or without suffix; if empty, chance decides.
        number: of samples for chance to choose, at most.
        seed: of chance; the same one chooses the same samples.

    Raises:
        ValueError: a name is that of no sample, or a number is out of range.
    """
    if number < 1 or seed < 0:
        raise ValueError(
            f"`--number` must be at least 1 and `--seed` not negative, but are {number} and {seed}."
        )
    if not names:
        # RandomState: NumPy promises that its numbers never change.
        chosen = np.random.RandomState(seed % 2**32).permutation(len(samples))[:number]
        return [samples[index] for index in sorted(chosen)]
    by_name: dict[str, Sample] = {}
    for sample in samples:
        base = os.path.basename(sample["file_name"])
        for name in (image_name(sample), base, os.path.splitext(base)[0]):
            by_name.setdefault(name, sample)
    for name in names:
        if name not in by_name:
            nearest = difflib.get_close_matches(name, by_name, n=3)
            hint = f" Did you mean {', '.join(nearest)}?" if nearest else ""
            raise ValueError(
                f"`--images` must name images of the dataset, but '{name}' is none.{hint}"
            )
    return [by_name[name] for name in names]


class GroundTruthArtist:
    """Draws images beside their ground truth.

    Args:
        metadata: of the dataset.
        opacity: of the colours, 0..1.
        settings: how the values of image files become colours.
    """

    def __init__(
        self,
        metadata: Metadata,
        opacity: float = 0.5,
        settings: ImageSettings = DEFAULT_SETTINGS,
    ) -> None:
        self.metadata, self.opacity = metadata, opacity
        lut = label_lut_of(metadata)
        self.read = SemSegDatasetMapper(
            is_train=True, augmentations=[], label_lut=lut, settings=settings
        )

    def draw(self, sample: Sample) -> np.ndarray:
        """Draw a sample: image and overlay side by side, a legend of its classes below.

        Raises:
            DataFileError: image or label map cannot be used; names the file.
        """
        read = self.read(sample)
        image, labels = to_picture(read), read["sem_seg"].numpy()
        scale = _fitting_scale(image.shape[:2], _PICTURE_SIDES)
        drawn = overlay(
            image, labels, self.metadata, opacity=self.opacity, scale=scale, ignored=True
        )
        counted = labels[labels != IGNORE_LABEL]
        classes = len(np.unique(counted))
        ignored = 1 - counted.size / labels.size
        truth = f"{classes} class{'' if classes == 1 else 'es'}, {ignored:.1%} ignored"
        captions = (f"{image_name(sample)}, {image.shape[1]}x{image.shape[0]}", truth)
        row = side_by_side([enlarge(image, scale), drawn], captions)
        return np.concatenate([row, legend(self.metadata, row.shape[1], labels, ignored=True)])


def draw_ground_truth(
    samples: Sequence[Sample],
    metadata: Metadata,
    prefix: str,
    opacity: float = 0.5,
    settings: ImageSettings = DEFAULT_SETTINGS,
) -> tuple[list[str], list[str]]:
    """Write a picture of each sample, with a progress bar; goes on past unusable files.

    Args:
        samples: of a dataset.
        metadata: of the dataset.
        prefix: that the pictures' file names begin with, folder included.
        opacity: of the colours, 0..1.
        settings: how the values of image files become colours.

    Returns:
        the written files, and a sentence for each sample that could not be drawn.
    """
    artist = GroundTruthArtist(metadata, opacity, settings)
    written, failures = [], []
    for sample in tqdm(samples, unit="image", disable=None):
        try:
            picture = artist.draw(sample)
        except DataFileError as error:
            failures.append(str(error))
            continue
        written.append(f"{prefix}_{file_stem(image_name(sample))}.png")
        write_picture(written[-1], picture)
    return written, failures


def training_batches(
    cfg: CfgNode, dataset_name: str, seed: int | None = None, start_iter: int = 0
) -> Iterator[list[Sample]]:
    """Yield the batches of a training on the dataset, from the loader that training uses.

    Args:
        cfg: whole config, not changed.
        dataset_name: takes the place of ``DATASETS.TRAIN``.
        seed: takes the place of ``SEED``; None keeps it, or takes 0 where it says "any".
        start_iter: iteration that the first batch belongs to.

    Raises:
        ValueError, FileNotFoundError: config or dataset cannot be used.
    """
    if start_iter < 0 or (seed is not None and seed < 0):
        raise ValueError(
            f"`--iteration` and `--seed` must not be negative, but are {start_iter} and {seed}."
        )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (dataset_name,), ()
    cfg.SEED = max(cfg.SEED, 0) if seed is None else seed
    cfg.MODEL.DEVICE = "cpu"
    cfg.DATALOADER.NUM_WORKERS = 0  # samples do not depend on it, and few are wanted
    adapt_to_folders(cfg)
    yield from build_train_loader(cfg, start_iter)


def draw_batch(
    batch: Sequence[Sample], metadata: Metadata, image_format: str = "RGB", opacity: float = 0.5
) -> np.ndarray:
    """Draw a batch as a contact sheet: each crop beside its overlay, a legend below.

    Args:
        batch: what the training loader yields: "image" (3, h, w) uint8 and "sem_seg" (h, w).
        metadata: of the dataset.
        image_format: "RGB" or "BGR" of the images.
        opacity: of the colours, 0..1.
    """
    sizes = np.array([sample["sem_seg"].shape for sample in batch])
    height, width = (int(side) for side in sizes.max(axis=0))
    scale = _fitting_scale((height, width), _CELL_SIDES)
    cells = []
    for sample in batch:
        image, labels = to_picture(sample, image_format), sample["sem_seg"].numpy()
        crop = f"{image.shape[1]}x{image.shape[0]} of {sample['width']}x{sample['height']}"
        # Smaller ones are padded at these sides, as the model pads them.
        padding = ((0, height - image.shape[0]), (0, width - image.shape[1]))
        image = np.pad(image, (*padding, (0, 0)), constant_values=_PADDING)
        labels = np.pad(labels, padding, constant_values=IGNORE_LABEL)
        drawn = overlay(
            image, labels, metadata, opacity=opacity, names=False, scale=scale, ignored=True
        )
        inside = [round(side * scale) for side in sample["sem_seg"].shape]
        drawn[inside[0] :] = drawn[:, inside[1] :] = _PADDING  # which is no part of the crop
        captions = (image_name(sample), crop)
        cells.append(side_by_side([enlarge(image, scale), drawn], captions))
    sheet = _arrange(cells)
    present = np.unique(np.concatenate([np.unique(sample["sem_seg"]) for sample in batch]))
    return np.concatenate([sheet, legend(metadata, sheet.shape[1], present[None], ignored=True)])


def to_picture(sample: Sample, image_format: str = "RGB") -> np.ndarray:
    """Turn a sample's "image", (3, h, w) uint8 in ``image_format``, into an RGB picture."""
    planes = sample["image"].numpy()[:: 1 if image_format == "RGB" else -1]
    return np.ascontiguousarray(planes.transpose(1, 2, 0))


def _fitting_scale(size: tuple[int, int], sides: tuple[int, int]) -> float:
    """Factor that brings the long side of (height, width) between the two ``sides``."""
    return float(np.clip(max(size), *sides)) / max(size)


def _arrange(cells: Sequence[np.ndarray]) -> np.ndarray:
    """Put pictures of one size into a grid."""
    height, width = (side + _GAP for side in cells[0].shape[:2])
    exact = math.sqrt(_SHEET_ASPECT * len(cells) * height / width)
    choices = range(max(math.floor(exact) - 1, 1), math.ceil(exact) + 2)
    # As few empty places as possible.
    columns = min(choices, key=lambda number: (-len(cells) % number, abs(number - exact)))
    rows = math.ceil(len(cells) / columns)
    shape = (rows * height + _GAP, columns * width + _GAP, 3)
    sheet = np.full(shape, _BACKGROUND, dtype=np.uint8)
    for index, cell in enumerate(cells):
        top, left = (index // columns) * height + _GAP, (index % columns) * width + _GAP
        sheet[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    return sheet
