"""Layouts of users' folders: COCO JSON files, folders without splits, and what is suggested."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from offseg_d2.data import DataFileError, ensure_registered, label_lut_of, read_label_map
from offseg_d2.data.datasets.own_layout import split_by_name
from tests.data.common import write_image, write_label
from tests.data.datasets import common

HEIGHT, WIDTH = 6, 8
CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat", "supercategory": "animal"}]


def box(x0, y0, x1, y1):
    """Polygon whose corners lie between pixels: it covers the columns x0..x1-1."""
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def rle(mask):
    """Run lengths, column by column, beginning with zeros."""
    flat = np.concatenate([[0], np.array(mask).T.ravel(), [2]])
    ends = np.flatnonzero(np.diff(flat.astype(int)))
    counts = np.diff([0, *ends]).tolist()
    return {"size": [HEIGHT, WIDTH], "counts": counts}


def annotation(category, segmentation, image=0, **extra):
    return {"category_id": category, "image_id": image, "segmentation": segmentation, **extra}


def write_coco(path: Path, images: Path, annotations, names=("a.png",), categories=CATEGORIES):
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = []
    for index, name in enumerate(names):
        write_image(images / name, HEIGHT, WIDTH, seed=index)
        entries.append({"id": index, "file_name": name, "height": HEIGHT, "width": WIDTH})
    content = {"images": entries, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))


def labels_of(name):
    ensure_registered([name])
    lut = None
    maps = []
    for sample in DatasetCatalog.get(name):
        lut = lut or label_lut_of(MetadataCatalog.get(name))
        maps.append(read_label_map(sample["sem_seg_file_name"], lut))
    return maps


# ---------------------------------------------------------------------- COCO


def write_roboflow(root, annotations, split="train", **more):
    write_coco(root / split / "_annotations.coco.json", root / split, annotations, **more)
    return f"folder:{root}:{split}"


def test_polygons_and_run_lengths_are_drawn_small_ones_on_top(tmp_path):
    mask = np.zeros((HEIGHT, WIDTH), dtype=int)
    mask[5, 6:] = 1
    annotations = [
        annotation(3, box(2, 1, 4, 3)),  # lies on the larger dog although it comes first
        annotation(7, box(1, 0, 7, 4)),
        annotation(7, rle(mask), iscrowd=1),
        annotation(3, rle(mask)),  # of the same size: the later one is on top
    ]
    (labels,) = labels_of(write_roboflow(tmp_path, annotations))
    expected = np.zeros((HEIGHT, WIDTH), dtype=int)
    expected[0:4, 1:7] = 2
    expected[1:3, 2:4] = 1
    expected[5, 6:] = 1
    np.testing.assert_array_equal(labels, expected)
    assert MetadataCatalog.get(f"folder:{tmp_path}:train").stuff_classes == [
        "background",
        "cat",
        "dog",
    ]


def test_compressed_run_lengths_and_several_polygons(tmp_path):
    from pycocotools import mask as coco_mask

    pixels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    pixels[2:4, 0:3] = 1
    compressed = coco_mask.encode(pixels)
    compressed["counts"] = compressed["counts"].decode()
    two = box(5, 0, 6, 1) + box(7, 5, 8, 6) + [[1, 1, 2, 2]]  # the last one is a line
    annotations = [annotation(3, compressed), annotation(7, two)]
    (labels,) = labels_of(write_roboflow(tmp_path, annotations))
    expected = pixels.astype(int)
    expected[0, 5] = expected[5, 7] = 2
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize(
    ("classes", "uncovered", "cat"),
    [("dog\ncat\n", 255, 1), ("dog\nBackground\ncat\n", 1, 2), (None, 0, 1)],
)
def test_file_of_classes_decides_about_uncovered_pixels(tmp_path, classes, uncovered, cat):
    if classes:
        (tmp_path / "classes.txt").write_text(classes)
    name = write_roboflow(tmp_path, [annotation(3, box(0, 0, WIDTH, 1))])
    (labels,) = labels_of(name)
    assert (labels[0] == cat).all() and (labels[1:] == uncovered).all()


def test_category_that_groups_others_is_no_class(tmp_path):
    categories = [
        {"id": 0, "name": "pets", "supercategory": "none"},
        {"id": 1, "name": "background", "supercategory": "pets"},
        {"id": 2, "name": "cat", "supercategory": "pets"},
    ]
    name = write_roboflow(
        tmp_path, [annotation(2, box(0, 0, 8, 1))], categories=categories, split="valid"
    )
    (labels,) = labels_of(name)
    assert MetadataCatalog.get(name).stuff_classes == ["background", "cat"]
    assert (labels[0] == 1).all() and (labels[1:] == 0).all()


@pytest.mark.parametrize("images", ["images/train", "train", "images", "."])
@pytest.mark.parametrize("file", ["instances_train.json", "train.json"])
def test_files_in_annotations_name_the_splits(tmp_path, images, file):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/README.txt").write_text("Exported by hand.")
    (tmp_path / "annotations/captions.txt.json").write_text("{}")
    if not file.startswith("instances"):
        (tmp_path / "annotations/captions.txt.json").unlink()
    write_coco(tmp_path / "annotations" / file, tmp_path / images, [annotation(3, box(0, 0, 8, 6))])
    (labels,) = labels_of(f"folder:{tmp_path}:train")
    assert (labels == 1).all()
    with pytest.raises(FileNotFoundError, match=r"splits there: train\."):
        ensure_registered([f"folder:{tmp_path}:test"])


@pytest.mark.parametrize("file", ["annotations/instances_default.json", "_annotations.coco.json"])
def test_single_file_is_split_by_the_names_of_the_images(tmp_path, file, caplog):
    names = [f"{i}.png" for i in range(10)]
    write_coco(tmp_path / file, tmp_path / "images", [annotation(3, box(0, 0, 8, 6))], names)
    found = {}
    with caplog.at_level(logging.INFO, logger="offseg_d2.data.datasets"):
        for split in ("train", "val"):
            ensure_registered([f"folder:{tmp_path}:{split}"])
            samples = DatasetCatalog.get(f"folder:{tmp_path}:{split}")
            found[split] = {Path(sample["file_name"]).name for sample in samples}
    assert len(found["val"]) == 2 and found["train"] | found["val"] == set(names)
    assert not found["train"] & found["val"]
    assert "8 of 10 images" in caplog.text and "are 'train'" in caplog.text


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: c.pop("categories"), r"must be a COCO JSON file with .*KeyError: 'categories'"),
        (lambda c: c.update(images={}), r"must give its annotations a category and an image"),
        (lambda c: c.update(categories=[]), r"must have 1 to 254 categories, but has 0"),
        (lambda c: c["annotations"][0].update(category_id=9), r"annotation None has category 9"),
        (lambda c: c["annotations"][0].update(segmentation=[]), r"but has none \(only boxes\?\)"),
        (lambda c: c["images"][0].update(height="6"), r"but gives 0, '6' and 8"),
        (lambda c: c["images"][0].update(height=1 << 29), r"integers as id, height and width"),
    ],
)
def test_unusable_file_is_named_in_one_sentence(tmp_path, change, match):
    name = write_roboflow(tmp_path, [annotation(3, box(0, 0, 8, 6))])
    path = tmp_path / "train/_annotations.coco.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(DataFileError, match=match) as caught:
        ensure_registered([name])
    assert str(caught.value).startswith(f"'{path}' must ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [HEIGHT, WIDTH], "counts": [5, 10**9]},
        {"size": [HEIGHT, WIDTH], "counts": [100, -52]},
        {"size": [WIDTH, HEIGHT], "counts": [48]},
        {"counts": [48]},
        {"size": [HEIGHT, WIDTH], "counts": "zzzzzzzzz"},
        [["a"] * 6],
        "polygon",
    ],
)
def test_impossible_annotation_is_refused_naming_file_and_image(tmp_path, segmentation):
    name = write_roboflow(tmp_path, [annotation(3, segmentation)])
    with pytest.raises(DataFileError, match=r"coco\.json#0' must hold polygons or run lengths"):
        labels_of(name)


def test_class_file_without_a_category_is_refused(tmp_path):
    (tmp_path / "classes.txt").write_text("cat\n")
    name = write_roboflow(tmp_path, [annotation(3, box(0, 0, 8, 6))])
    with pytest.raises(ValueError, match=r"classes\.txt' must list all .*lacks \['dog'\]"):
        ensure_registered([name])


def test_images_of_inner_folders_keep_their_names(tmp_path):
    name = write_roboflow(tmp_path, [annotation(3, box(0, 0, 8, 6))], names=("a/1.png", "b/1.png"))
    ensure_registered([name])
    assert [s["image_id"] for s in DatasetCatalog.get(name)] == ["a/1", "b/1"]
    assert MetadataCatalog.get(name).image_root == str(tmp_path / "train")


def test_missing_image_is_named(tmp_path):
    name = write_roboflow(tmp_path, [annotation(3, box(0, 0, 8, 6))], names=("a.png", "b.png"))
    (tmp_path / "train/b.png").unlink()
    ensure_registered([name])
    with pytest.raises(FileNotFoundError, match=r"1 are missing: .*train/b\.png\."):
        DatasetCatalog.get(name)


# ---------------------------------------------------------------------- without splits


def test_folder_without_splits_is_divided(tmp_path):
    (tmp_path / "classes.txt").write_text("a\nb\n")
    for i in range(6):
        write_image(tmp_path / f"images/{i}.png", HEIGHT, WIDTH, seed=i)
        write_label(tmp_path / f"annotations/{i}.png", np.full((HEIGHT, WIDTH), i % 2))
    ids = {}
    for split in ("train", "val"):
        ensure_registered([f"folder:{tmp_path}:{split}"])
        ids[split] = [s["image_id"] for s in DatasetCatalog.get(f"folder:{tmp_path}:{split}")]
    assert len(ids["val"]) == 1 and sorted(ids["train"] + ids["val"]) == list("012345")
    assert len(labels_of(f"folder:{tmp_path}:train")) == 5


def test_division_is_logged_once(tmp_path, caplog):
    (tmp_path / "classes.txt").write_text("a\n")
    for i in range(7):
        write_image(tmp_path / f"images/{i}.png", HEIGHT, WIDTH, seed=i)
        write_label(tmp_path / f"annotations/{i}.png", np.zeros((HEIGHT, WIDTH)))
    name = f"folder:{tmp_path}:train"
    ensure_registered([name])
    with caplog.at_level("INFO", logger="offseg_d2"):
        assert DatasetCatalog.get(name) == DatasetCatalog.get(name)
    assert caplog.text.count(f"'{tmp_path}' has no folders of splits") == 1
    assert "6 of 7 images, chosen by the hashes of their names, are 'train'" in caplog.text


def test_division_depends_on_names_alone():
    names = [f"image_{i}" for i in range(100)]
    validation = split_by_name("pets", "val", names)
    assert len(validation) == 20
    assert set(split_by_name("pets", "val", names[::-1])) == set(validation)
    assert not set(split_by_name("pets", "train", names)) & set(validation)
    more = split_by_name("pets", "val", [*names, "another"])
    assert len(set(more) & set(validation)) >= 19
    assert split_by_name("pets", "val", ["alone"]) == ["alone"]


def test_coloured_masks_without_splits(tmp_path):
    palette = [[0, 0, 0], [200, 10, 10]]
    classes = {"classes": ["a", "b"], "palette": palette}
    (tmp_path / "classes.json").write_text(json.dumps(classes))
    colors = np.array(palette, dtype=np.uint8)[np.eye(HEIGHT, WIDTH, dtype=int)]
    import cv2

    for i in range(5):
        write_image(tmp_path / f"images/{i}.png", HEIGHT, WIDTH, seed=i)
        (tmp_path / "annotations").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / f"annotations/{i}.png"), colors[..., ::-1])
    (labels,) = labels_of(f"folder:{tmp_path}:val")
    np.testing.assert_array_equal(labels, np.eye(HEIGHT, WIDTH))


# ---------------------------------------------------------------------- suggestions


def rename(old, new):
    return lambda root: (root / old).rename(root / new)


@pytest.mark.parametrize(
    ("spoil", "split", "match"),
    [
        (rename(".", "../pest"), "train", r"pets' must exist.*Did you mean '.*pest'\?"),
        (rename("images/val", "images/valid"), "val", r"Did you mean 'folder:.*pets:valid'\?"),
        (lambda root: None, "trian", r"Did you mean 'folder:.*pets:train'\?"),
        (rename("images", "imgs"), "train", r"pets' holds annotations, classes\.txt, imgs; splits"),
    ],
)
def test_what_was_meant_is_suggested(tmp_path, spoil, split, match):
    root = common.write_own(tmp_path / "pets")
    spoil(root)
    with pytest.raises(FileNotFoundError, match=match):
        ensure_registered([f"folder:{root}:{split}"])


def test_flat_folder_is_told_where_its_files_belong(tmp_path):
    write_image(tmp_path / "a.jpg", HEIGHT, WIDTH)
    with pytest.raises(FileNotFoundError, match=r"holds 1 image files itself: move the images to"):
        ensure_registered([f"folder:{tmp_path}:train"])


def test_folder_of_labels_by_another_name_is_suggested(tmp_path, caplog):
    root = common.write_own(tmp_path / "pets")
    (root / "annotations").rename(root / "masks")
    with caplog.at_level(logging.INFO, logger="offseg_d2.data.datasets"):
        ensure_registered([f"folder:{root}:train"])
    assert "pets/masks' to 'annotations' if it holds the labels" in caplog.text
