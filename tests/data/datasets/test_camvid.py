import importlib
import os
from collections import Counter

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from offseg_d2.data import read_image, read_label_map
from offseg_d2.data.datasets import camvid as camvid_module
from offseg_d2.data.datasets import datasets_root, register_camvid
from tests.data.common import write_camvid

REAL_ROOT = os.path.abspath(datasets_root())


@pytest.fixture
def root(tmp_path, monkeypatch):
    write_camvid(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def test_splits_pair_images_and_labels_in_the_order_of_the_list(root):
    (root / "camvid" / "test.txt").write_text("test_2\n\ntest_0\n")
    records = DatasetCatalog.get("camvid_test")
    assert records == [
        {
            "file_name": str(root / "camvid" / "images" / "test" / f"{name}.jpg"),
            "sem_seg_file_name": str(root / "camvid" / "annotations" / "test" / f"{name}.png"),
            "image_id": name,
        }
        for name in ("test_2", "test_0")
    ]
    assert len(DatasetCatalog.get("camvid_train")) == 5
    assert len(DatasetCatalog.get("camvid_val")) == 2


def test_root_is_read_when_the_data_is_asked_for(root, tmp_path, monkeypatch):
    DatasetCatalog.get("camvid_val")
    write_camvid(tmp_path / "other", counts=(1, 1, 1))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "other"))
    (record,) = DatasetCatalog.get("camvid_val")
    folder = str(tmp_path / "other" / "camvid")
    assert record["file_name"].startswith(folder)
    metadata = MetadataCatalog.get("camvid_val")
    assert metadata.image_root == os.path.join(folder, "images/val")
    assert metadata.sem_seg_root == os.path.join(folder, "annotations/val")


def test_metadata_names_and_colours_eleven_classes_and_ignores_void():
    metadata = MetadataCatalog.get("camvid_train")
    assert len(metadata.stuff_classes) == len(metadata.stuff_colors) == 11
    assert metadata.stuff_classes[3] == "road" and metadata.stuff_colors[3] == [128, 64, 128]
    assert metadata.ignore_label == 255 and metadata.evaluator_type == "sem_seg"
    assert metadata.label_map == {**{i: i for i in range(11)}, 11: 255}


def test_registering_twice_does_no_harm(root):
    register_camvid()
    importlib.reload(camvid_module).register_camvid()
    assert len(DatasetCatalog.get("camvid_train")) == 5


def test_absent_folder_is_explained(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError) as caught:
        DatasetCatalog.get("camvid_train")
    message = str(caught.value)
    assert f"'{tmp_path}/nowhere/camvid'" in message
    assert f"DETECTRON2_DATASETS (it is '{tmp_path}/nowhere')" in message
    assert "datasets/README.md" in message
    monkeypatch.delenv("DETECTRON2_DATASETS")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"'datasets/camvid'.*is not set"):
        DatasetCatalog.get("camvid_train")


@pytest.mark.parametrize("kind", ["images", "annotations"])
def test_missing_file_is_named(root, kind):
    suffix = "jpg" if kind == "images" else "png"
    (root / "camvid" / kind / "train" / f"train_3.{suffix}").unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"{kind}/train'.*1 are missing: train_3\.{suffix}"
    ):
        DatasetCatalog.get("camvid_train")


def test_missing_list_and_folder_are_named(root):
    (root / "camvid" / "val.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"val\.txt"):
        DatasetCatalog.get("camvid_val")
    (root / "camvid" / "annotations" / "train").rename(root / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"there is no '.*camvid/annotations/train'\."):
        DatasetCatalog.get("camvid_train")


@pytest.mark.needs_data
@pytest.mark.skipif(
    not os.path.isdir(os.path.join(REAL_ROOT, "camvid")),
    reason="DETECTRON2_DATASETS/camvid is absent (see datasets/README.md)",
)
def test_real_camvid_has_its_known_sizes_and_only_mapped_labels(monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", REAL_ROOT)
    counts = {s: len(DatasetCatalog.get(f"camvid_{s}")) for s in ("train", "val", "test")}
    assert counts == {"train": 367, "val": 101, "test": 233}
    label_map = MetadataCatalog.get("camvid_test").label_map
    pixels = Counter()
    for record in DatasetCatalog.get("camvid_test")[::20]:
        label = read_label_map(record["sem_seg_file_name"], label_map)
        assert read_image(record["file_name"]).shape == (360, 480, 3)
        assert label.shape == (360, 480)
        pixels.update(dict(zip(*np.unique(label, return_counts=True), strict=True)))
    assert set(pixels) == {*range(11), 255}
    # Roads and buildings are what a driving car sees most of.
    assert {c for c, _ in pixels.most_common(2)} <= {1, 3}
