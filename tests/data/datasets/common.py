"""Tiny copies of the benchmarks, in each layout that is in use."""

from pathlib import Path

import numpy as np

from tests.data.common import write_image, write_label

SIZE = (12, 16)  # height, width; those of the benchmarks do not matter unless a test says so

CITYSCAPES_IDS_IN_ORDER = (7, 8, 11, 12, 13, 17, 19, *range(20, 29), 31, 32, 33)
PAIRS = {  # benchmark -> names of two images of a split
    "ade20k": {"train": "ADE_train_0000000{}", "val": "ADE_val_0000000{}"},
    "cityscapes": {"train": "aachen_00000{}_000019", "val": "lindau_00000{}_000019"},
    "coco_stuff": {"train": "00000000000{}", "val": "00000000013{}"},
    "pascal_context": {"train": "2008_00000{}", "val": "2009_00000{}"},
}


def names_of(benchmark: str, split: str) -> list[str]:
    return [PAIRS[benchmark][split].format(number) for number in (1, 2)]


def write_pair(
    image: Path,
    label: Path | None,
    ids: tuple[int, ...],
    size: tuple[int, int] = SIZE,
    seed: int = 0,
) -> None:
    """Write an image (lossless, whatever its name says) and a palette label file with ``ids``."""
    write_image(image.with_suffix(".png"), *size, seed=seed)
    image.with_suffix(".png").rename(image)
    if label is not None:
        labels = np.resize(np.array(ids), size)
        write_label(label, labels)


def write_ade20k(root: Path, layout: str = "ADEChallengeData2016") -> None:
    for split, folder in (("train", "training"), ("val", "validation")):
        for name in names_of("ade20k", split):
            image = root / layout / "images" / folder / f"{name}.jpg"
            label = root / layout / "annotations" / folder / f"{name}.png"
            write_pair(image, label, tuple(range(151)))


def write_cityscapes(
    root: Path,
    kinds: tuple[str, ...] = ("labelIds",),
    size: tuple[int, int] = SIZE,
    splits: tuple[str, ...] = ("train", "val"),
) -> None:
    """The downloads leftImg8bit and gtFine, with the files that lie beside the label ids there."""
    for split in splits:
        for name in names_of("cityscapes", split):
            city = name.split("_")[0]
            image = root / "cityscapes/leftImg8bit" / split / city / f"{name}_leftImg8bit.png"
            label_dir = root / "cityscapes/gtFine" / split / city
            write_pair(image, None, (), size)
            for kind in kinds:
                ids = range(34) if kind == "labelIds" else (*range(19), 255)
                labels = np.resize(np.array(ids), size)
                write_label(label_dir / f"{name}_gtFine_{kind}.png", labels)
            for kind in ("color", "instanceIds"):
                write_image(label_dir / f"{name}_gtFine_{kind}.png", *SIZE)
            (label_dir / f"{name}_gtFine_polygons.json").write_text("{}")


def write_cityscapes_test(root: Path) -> None:
    """The test split; its label files hold ids 0..3 only, none of which is a class."""
    image = root / "cityscapes/leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png"
    label = root / "cityscapes/gtFine/test/berlin/berlin_000000_000019_gtFine_labelIds.png"
    write_pair(image, label, (0, 1, 2, 3))


def write_coco_stuff(
    root: Path,
    images: str = "coco_stuff164k/images",
    labels: str = "coco_stuff164k/annotations",
    suffixes: tuple[str, ...] = (".png",),
) -> None:
    for split in ("train", "val"):
        for name in names_of("coco_stuff", split):
            write_pair(root / images / f"{split}2017" / f"{name}.jpg", None, ())
            for suffix in suffixes:
                ids = (0, 10, 12, 181, 255) if suffix == ".png" else (0, 10, 11, 170, 255)
                label = root / labels / f"{split}2017" / f"{name}{suffix}"
                write_label(label, np.resize(np.array(ids), SIZE))


def write_pascal_context(root: Path, layout: str = "VOCdevkit/VOC2010") -> None:
    top = root / layout
    for split in ("train", "val"):
        for name in names_of("pascal_context", split):
            label = top / "SegmentationClassContext" / f"{name}.png"
            write_pair(top / "JPEGImages" / f"{name}.jpg", label, tuple(range(60)))
        lists = top / "ImageSets/SegmentationContext"
        lists.mkdir(parents=True, exist_ok=True)
        lines = "".join(f"{name}\n" for name in names_of("pascal_context", split))
        (lists / f"{split}.txt").write_text(lines)
    # Most images of VOC 2010 are not annotated.
    write_pair(top / "JPEGImages" / "2007_000027.jpg", None, ())


def write_own(
    root: Path,
    classes: str | None = "background\ncat\ndog\n",
    ids: tuple[int, ...] = (0, 1, 2, 255),
    splits: tuple[str, ...] = ("train", "val"),
) -> Path:
    """A user's folder of images and label files."""
    for split in splits:
        for index, suffix in enumerate((".jpg", ".png", ".JPEG")):
            image = root / "images" / split / f"{split}_{index}{suffix}"
            label = root / "annotations" / split / f"{split}_{index}.png"
            write_pair(image, label, ids, seed=index)
    if classes is not None:
        (root / "classes.txt").write_text(classes)
    return root
