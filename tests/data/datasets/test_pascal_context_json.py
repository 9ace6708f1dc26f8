import json
import os
import runpy
import sys

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image
from pycocotools import mask as mask_util

from offseg_d2.data.datasets import datasets_root
from offseg_d2.data.datasets.pascal_context_json import convert_annotations, draw_labels
from tests.common import ROOT
from tests.data.common import write_image

REAL_VOC = os.path.abspath(os.path.join(datasets_root(), "VOCdevkit/VOC2010"))
COW, GRASS = (98, 20), (187, 29)  # (original id, value)
SIZE = (6, 8)


def segment(category_id, mask, compressed=True):
    runs = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    if compressed:
        counts = runs["counts"].decode()
    else:
        flat = np.asarray(mask).ravel(order="F").astype(int)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [1 - flat[-1]]])))
        counts = np.diff(np.concatenate([[0], edges])).tolist()
    return {"category_id": category_id, "segmentation": {"size": list(SIZE), "counts": counts}}


def rows(start, stop):
    mask = np.zeros(SIZE, bool)
    mask[start:stop] = True
    return mask


@pytest.fixture
def voc(tmp_path, monkeypatch):
    """VOC2010 with three images, two of them annotated, and the annotation file's path."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    top = tmp_path / "VOCdevkit/VOC2010"
    content = {"images": [], "annos_segmentation": [], "categories": []}
    for number, phase in ((1, "train"), (2, "val"), (3, "train")):
        name = f"2008_00000{number}"
        write_image(top / "JPEGImages" / f"{name}.png", *SIZE)
        (top / "JPEGImages" / f"{name}.png").rename(top / "JPEGImages" / f"{name}.jpg")
        image = {"file_name": f"{name}.jpg", "image_id": number, "phase": phase}
        content["images"].append({**image, "height": SIZE[0], "width": SIZE[1]})
        if number < 3:
            one = segment(COW[0], rows(0, number))
            content["annos_segmentation"].append({**one, "image_id": number})
    (top / "trainval_merged.json").write_text(json.dumps(content))
    return top


def label(voc, number):
    return np.array(Image.open(voc / "SegmentationClassContext" / f"2008_00000{number}.png"))


@pytest.mark.parametrize("compressed", [True, False])
def test_segments_become_ranks_and_the_rest_background(compressed):
    other = segment(1, rows(5, 6), compressed)  # a category that is not among the 59
    labels = draw_labels(*SIZE, [segment(COW[0], rows(1, 3), compressed), other])
    assert labels.dtype == np.uint8
    assert (labels[1:3] == COW[1]).all() and labels.sum() == COW[1] * 2 * SIZE[1]


def test_smaller_segment_lies_on_top_whatever_the_order():
    small, large = segment(COW[0], rows(2, 4)), segment(GRASS[0], rows(0, 5))
    for segments in ([small, large], [large, small]):
        labels = draw_labels(*SIZE, segments)
        assert labels[:, 0].tolist() == [GRASS[1]] * 2 + [COW[1]] * 2 + [GRASS[1], 0]


def test_conversion_writes_palette_files_and_lists_that_the_dataset_reads(voc):
    done = convert_annotations(str(voc / "trainval_merged.json"), str(voc))
    assert (done.written, done.skipped, len(done.lists)) == (3, 0, 2)
    assert [(label(voc, n) == COW[1]).sum() for n in (1, 2, 3)] == [8, 16, 0]
    with Image.open(voc / "SegmentationClassContext/2008_000001.png") as image:
        assert image.mode == "P" and image.getpalette()[:3] == [0, 0, 0]
    samples = DatasetCatalog.get("pascal_context_59_train")
    assert [s["image_id"] for s in samples] == ["2008_000001", "2008_000003"]
    assert len(DatasetCatalog.get("pascal_context_60_val")) == 1


def test_interrupted_conversion_goes_on(voc):
    annotations = str(voc / "trainval_merged.json")
    convert_annotations(annotations, str(voc))
    first, second = (voc / f"SegmentationClassContext/2008_00000{n}.png" for n in (1, 2))
    second.unlink()
    before = first.stat().st_mtime_ns
    done = convert_annotations(annotations, str(voc))
    assert (done.written, done.skipped) == (1, 2)
    assert second.is_file() and first.stat().st_mtime_ns == before


def test_lists_that_are_there_are_not_overwritten(voc):
    lists = voc / "ImageSets/SegmentationContext"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("2008_000002\n")
    done = convert_annotations(str(voc / "trainval_merged.json"), str(voc))
    assert done.lists == [str(lists / "train.txt")]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "must be complete JSON"),
        ("[]", "must hold 'images' and 'annos_segmentation'"),
        ('{"images": []}', "must hold 'images' and 'annos_segmentation'"),
    ],
)
def test_annotations_of_another_form_are_refused(voc, content, match):
    (voc / "trainval_merged.json").write_text(content)
    with pytest.raises(ValueError, match=rf"trainval_merged\.json' {match}"):
        convert_annotations(str(voc / "trainval_merged.json"), str(voc))


def test_segment_of_another_size_or_form_is_refused():
    for runs in ({"size": [8, 6], "counts": "0"}, [[0, 0, 1, 1, 0, 1]]):
        with pytest.raises(ValueError, match=r"run lengths of 6 x 8 pixels"):
            draw_labels(*SIZE, [{"category_id": COW[0], "segmentation": runs}])


def test_command_converts_and_reports_a_mistake_in_one_line(voc, tmp_path, monkeypatch, capsys):
    main = runpy.run_path(str(ROOT / "datasets" / "prepare_pascal_context.py"))["main"]
    monkeypatch.setattr(sys, "argv", ["prepare"])  # finds VOC2010 below DETECTRON2_DATASETS
    main()
    assert capsys.readouterr().out.startswith("3 label files written, 0 were there already.\n")
    monkeypatch.setattr(sys, "argv", ["prepare", "--voc-dir", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as caught:
        main()
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert error.startswith("error: The folder VOC2010 must be") and error.count("\n") == 1


@pytest.mark.needs_data
@pytest.mark.skipif(
    not os.path.isfile(os.path.join(REAL_VOC, "trainval_merged.json")),
    reason="DETECTRON2_DATASETS/VOCdevkit/VOC2010/trainval_merged.json is absent",
)
def test_real_annotations_give_the_label_files_in_circulation():
    if os.path.getsize(os.path.join(REAL_VOC, "trainval_merged.json")) > 50 * 2**20:
        pytest.skip("the whole file takes minutes; a part of it is enough")
    with open(os.path.join(REAL_VOC, "trainval_merged.json")) as file:
        content = json.load(file)
    for image in content["images"]:
        own = [s for s in content["annos_segmentation"] if s["image_id"] == image["image_id"]]
        name = image["file_name"].replace(".jpg", ".png")
        with Image.open(os.path.join(REAL_VOC, "SegmentationClassContext", name)) as ready:
            expected = np.array(ready)
        assert np.array_equal(draw_labels(image["height"], image["width"], own), expected)
