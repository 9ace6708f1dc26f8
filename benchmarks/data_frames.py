"""Frames for ``benchmarks/data.py``: enlarged ones of CamVid, or drawn where that is missing."""

import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import DatasetCatalog
from PIL import Image

NUM_CLASSES, IGNORED_CLASS = 11, 255
NOISE = 2.0  # grey levels: a 2048x1024 PNG then has the 2.2 MB of Cityscapes' own


def camvid_is_there() -> bool:
    """Return True if DETECTRON2_DATASETS holds CamVid."""
    root = os.environ.get("DETECTRON2_DATASETS", "datasets")
    return (Path(root).expanduser() / "camvid" / "train.txt").is_file()


def write_dataset(root: Path, size: tuple[int, int], suffix: str, count: int = 6) -> str:
    """Write a dataset of large frames; return its name for ``DATASETS.TRAIN``.

    Args:
        root: new folder.
        size: height and width in pixels.
        suffix: ".png", or ".jpg" of quality 95.
        count: number of frames.
    """
    for folder in ("images/train", "annotations/train"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("".join(f"class {k}\n" for k in range(NUM_CLASSES)))
    rng = np.random.default_rng(0)
    for number, (image, labels) in zip(range(count), _small_frames(), strict=False):
        image, labels = _cut(image, size), _cut(labels, size)
        large = cv2.resize(image, size[::-1], interpolation=cv2.INTER_CUBIC).astype(np.float32)
        large += rng.normal(scale=NOISE, size=(*size, 1))
        path = root / f"images/train/{number}{suffix}"
        cv2.imwrite(str(path), np.clip(large + 0.5, 0, 255).astype(np.uint8))
        smooth = [cv2.resize(np.float32(labels == k), size[::-1]) for k in range(NUM_CLASSES)]
        ids = np.argmax(smooth, axis=0).astype(np.uint8)
        ids[np.max(smooth, axis=0) < 0.5] = IGNORED_CLASS
        Image.fromarray(ids).save(root / f"annotations/train/{number}.png")
    return f"folder:{root}:train"


def _small_frames() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(H, W, 3) uint8 BGR and (H, W) ids, of which those from 11 on are ignored."""
    if camvid_is_there():
        samples = DatasetCatalog.get("camvid_train")
        for sample in samples[:: len(samples) // 6]:
            labels = np.array(Image.open(sample["sem_seg_file_name"]))
            yield cv2.imread(sample["file_name"]), labels
        return
    rng = np.random.default_rng(1)
    while True:
        scores = [cv2.resize(rng.normal(size=(5, 7)), (480, 360)) for _ in range(NUM_CLASSES)]
        labels = np.argmax(scores, axis=0)
        colours = rng.integers(20, 235, (NUM_CLASSES, 3))
        texture = cv2.resize(rng.normal(scale=15, size=(180, 240)), (480, 360))[..., None]
        yield np.clip(colours[labels] + texture, 0, 255).astype(np.uint8), labels


def _cut(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle part with the ratio of sides of ``size``."""
    height, width = array.shape[:2]
    new_height = min(height, width * size[0] // size[1])
    new_width = min(width, height * size[1] // size[0])
    top, left = (height - new_height) // 2, (width - new_width) // 2
    return array[top : top + new_height, left : left + new_width]
