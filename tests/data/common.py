"""Small files and configs for the tests of the data package."""

from pathlib import Path

import cv2
import numpy as np
from detectron2.config import CfgNode, get_cfg
from PIL import Image

from offseg_d2.config import add_offseg_config

SPLITS = ("train", "val", "test")


def write_image(path: Path, height: int = 6, width: int = 8, seed: int = 0) -> np.ndarray:
    """Write a random lossless image; return its (H, W, 3) uint8 BGR pixels."""
    pixels = np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
    return pixels


def write_label(path: Path, labels: np.ndarray, palette: bool = True) -> None:
    """Write (H, W) labels as an 8-bit PNG, by default with a palette unlike the values."""
    image = Image.fromarray(labels.astype(np.uint8))
    if palette:
        image = image.convert("P")
        image.putpalette([255 - i // 3 for i in range(768)])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def write_camvid(root: Path, counts: tuple[int, int, int] = (5, 2, 3)) -> None:
    """Write a tiny CamVid: 40x30 frames with labels 0..11, lossless behind the .jpg names."""
    rng = np.random.RandomState(7)
    for split, count in zip(SPLITS, counts, strict=True):
        names = [f"{split}_{i}" for i in range(count)]
        for name in names:
            image = root / "camvid" / "images" / split / f"{name}.png"
            write_image(image, 30, 40, seed=rng.randint(1000))
            image.rename(image.with_suffix(".jpg"))
            label = rng.randint(0, 12, (30, 40))
            write_label(root / "camvid" / "annotations" / split / f"{name}.png", label)
        (root / "camvid" / f"{split}.txt").write_text("".join(f"{n}\n" for n in names))


def camvid_cfg(workers: int = 0, batch: int = 4, seed: int = 3) -> CfgNode:
    """Config of the tiny CamVid."""
    cfg = get_cfg()
    add_offseg_config(cfg)
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.RESIZE.SCALE = [40, 30]
    cfg.INPUT.RESIZE.SCALE_TEST = [40, 30]
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute"
    cfg.INPUT.CROP.SIZE = [20, 24]
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 11
    cfg.DATASETS.TRAIN = ("camvid_train",)
    cfg.DATASETS.TEST = ("camvid_test",)
    cfg.SOLVER.IMS_PER_BATCH = batch
    cfg.DATALOADER.NUM_WORKERS = workers
    cfg.SEED = seed
    return cfg
