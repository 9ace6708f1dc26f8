"""The benchmarks as they are downloaded, and as Detectron2 and mmsegmentation lay them out."""

import os
import shutil
from itertools import islice

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from offseg_d2.config import load_config
from offseg_d2.data import (
    build_test_loader,
    build_train_loader,
    label_map_of,
    read_image,
    read_label_map,
)
from offseg_d2.data.datasets import (
    IncompleteDatasetError,
    datasets_root,
    register_ade20k,
    register_camvid,
    register_cityscapes,
    register_coco_stuff,
    register_pascal_context,
    register_sem_seg,
)
from tests.common import ROOT
from tests.data.common import write_camvid
from tests.data.datasets import common

REAL_ROOT = os.path.abspath(datasets_root())
NAMES = {  # name without split -> (classes, splits)
    "ade20k_150": (150, ("train", "val")),
    "cityscapes_19": (19, ("train", "val", "test")),
    "coco_stuff_171": (171, ("train", "val")),
    "pascal_context_59": (59, ("train", "val")),
    "pascal_context_60": (60, ("train", "val")),
    "camvid": (11, ("train", "val", "test")),
}
NUMBERS = {f"{name}_{s}": number for name, (number, splits) in NAMES.items() for s in splits}
REGISTERED = sorted(NUMBERS)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def labels_of(dataset_name):
    """Train ids of the first label file, each once."""
    metadata = MetadataCatalog.get(dataset_name)
    sample = DatasetCatalog.get(dataset_name)[0]
    return np.unique(read_label_map(sample["sem_seg_file_name"], label_map_of(metadata))).tolist()


# ------------------------------------------------------------------------- facts of the datasets


@pytest.mark.parametrize(
    ("name", "number"), [(n, NAMES[n.rsplit("_", 1)[0]][0]) for n in REGISTERED]
)
def test_every_class_has_name_colour_and_raw_ids(name, number, root):
    metadata = MetadataCatalog.get(name)
    assert len(metadata.stuff_classes) == len(set(metadata.stuff_classes)) == number
    colors = np.array(metadata.stuff_colors)
    assert colors.shape == (number, 3) and colors.min() >= 0 and colors.max() <= 255
    assert len(np.unique(colors, axis=0)) == number
    assert set(metadata.label_map.values()) == {*range(number), 255}
    assert metadata.ignore_label == 255 and metadata.evaluator_type == "sem_seg"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ade20k_150_val", {0: "wall", 7: "bed ", 8: "windowpane", 149: "flag"}),
        ("cityscapes_19_val", {0: "road", 6: "traffic light", 18: "bicycle"}),
        ("coco_stuff_171_val", {0: "person", 79: "toothbrush", 80: "banner", 170: "wood"}),
        ("pascal_context_59_val", {0: "aeroplane", 58: "wood"}),
        ("pascal_context_60_val", {0: "background", 1: "aeroplane", 59: "wood"}),
        ("camvid_val", {0: "sky", 3: "road", 10: "bicyclist"}),
    ],
)
def test_class_names_stand_at_their_train_ids(name, expected):
    classes = MetadataCatalog.get(name).stuff_classes
    assert {train_id: classes[train_id] for train_id in expected} == expected


def test_cityscapes_ids_are_mapped_as_its_table_says():
    label_map = MetadataCatalog.get("cityscapes_19_val").label_map
    classes = {raw_id: train_id for raw_id, train_id in label_map.items() if train_id != 255}
    assert classes == {raw: i for i, raw in enumerate(common.CITYSCAPES_IDS_IN_ORDER)}
    assert {*range(34), 255} == set(label_map)


def test_coco_train_id_is_the_raw_id_less_the_unused_ones_below_it():
    label_map = MetadataCatalog.get("coco_stuff_171_val").label_map
    unused = {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}
    assert set(label_map) == {*range(182), 255} - unused
    for raw_id in set(label_map) - {255}:
        assert label_map[raw_id] == raw_id - sum(u < raw_id for u in unused)
    assert all(label_map[raw_id] == raw_id - 11 for raw_id in range(91, 182))


def test_coco_names_follow_the_category_ids_of_the_things():
    classes = MetadataCatalog.get("coco_stuff_171_val").stuff_classes
    things = MetadataCatalog.get("coco_2017_val")
    label_map = MetadataCatalog.get("coco_stuff_171_val").label_map
    for category_id, index in things.thing_dataset_id_to_contiguous_id.items():
        assert classes[label_map[category_id - 1]] == things.thing_classes[index]


def test_pascal_values_are_ranks_of_ascending_ids_and_alphabetical_names():
    from offseg_d2.data.datasets.pascal_context import CATEGORIES

    ids, names = zip(*CATEGORIES, strict=True)
    assert len(ids) == 60 and list(ids) == sorted(set(ids)) and ids[-1] == 458
    assert list(names[1:]) == sorted(names[1:])
    assert MetadataCatalog.get("pascal_context_60_val").stuff_classes == list(names)


# ------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("layout", ["ADEChallengeData2016", "ade/ADEChallengeData2016"])
def test_ade20k_is_found_and_zero_is_ignored(root, layout):
    common.write_ade20k(root, layout)
    samples = DatasetCatalog.get("ade20k_150_train")
    top = root / layout
    assert samples[0] == {
        "file_name": str(top / "images/training/ADE_train_00000001.jpg"),
        "sem_seg_file_name": str(top / "annotations/training/ADE_train_00000001.png"),
        "image_id": "ADE_train_00000001",
    }
    assert [r["image_id"] for r in samples] == common.names_of("ade20k", "train")
    assert labels_of("ade20k_150_val") == [*range(150), 255]


@pytest.mark.parametrize(
    ("kinds", "train_id_of_7", "suffix"),
    [
        (("labelIds",), 0, "labelIds.png"),
        (("labelTrainIds",), 7, "TrainIds.png"),
        (("labelIds", "labelTrainIds"), 0, "labelIds.png"),
    ],
)
def test_cityscapes_label_ids_win_over_train_ids(root, kinds, train_id_of_7, suffix):
    common.write_cityscapes(root, kinds=kinds)
    # Asked before the samples: with the map of the other kind all would be shifted unnoticed.
    assert label_map_of(MetadataCatalog.get("cityscapes_19_val"))[7] == train_id_of_7
    samples = DatasetCatalog.get("cityscapes_19_val")
    assert [sample["image_id"] for sample in samples] == common.names_of("cityscapes", "val")
    folder = root / "cityscapes/gtFine/val/lindau"
    assert samples[0]["sem_seg_file_name"].startswith(str(folder / "lindau_000001_000019_gtFine_"))
    assert samples[0]["sem_seg_file_name"].endswith(suffix)
    assert labels_of("cityscapes_19_train") == [*range(19), 255]


def test_label_map_and_folders_follow_the_root(root, tmp_path, monkeypatch):
    common.write_cityscapes(root, kinds=("labelTrainIds",))
    common.write_cityscapes(tmp_path / "other")
    metadata = MetadataCatalog.get("cityscapes_19_train")
    for top, train_id in ((root, 7), (tmp_path / "other", 0), (root, 7)):
        monkeypatch.setenv("DETECTRON2_DATASETS", str(top))
        DatasetCatalog.get("cityscapes_19_train")
        assert metadata.label_map[7] == label_map_of(metadata)[7] == train_id
        assert metadata.image_root == str(top / "cityscapes/leftImg8bit/train")
        assert metadata.sem_seg_root == str(top / "cityscapes/gtFine/train")


def test_cityscapes_test_split_names_no_labels(root):
    common.write_cityscapes_test(root)
    (sample,) = DatasetCatalog.get("cityscapes_19_test")
    assert sample["image_id"] == "berlin_000000_000019"
    assert "sem_seg_file_name" not in sample
    shutil.rmtree(root / "cityscapes/gtFine")
    assert DatasetCatalog.get("cityscapes_19_test") == [sample]
    cfg = config("cityscapes", "DATASETS.TEST", "('cityscapes_19_test',)")
    ((sample,),) = build_test_loader(cfg, "cityscapes_19_test")
    assert (sample["height"], sample["width"]) == common.SIZE


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("coco_stuff164k/images", "coco_stuff164k/annotations"),
        ("coco", "coco/stuffthingmaps"),
        ("coco", "coco/stuffthingmaps_trainval2017"),
        ("coco", "coco/annotations"),
        ("coco/images", "coco/stuffthingmaps"),
    ],
)
def test_coco_stuff_is_found_as_downloaded(root, images, labels):
    common.write_coco_stuff(root, images, labels)
    samples = DatasetCatalog.get("coco_stuff_171_train")
    assert samples[1] == {
        "file_name": str(root / images / "train2017/000000000002.jpg"),
        "sem_seg_file_name": str(root / labels / "train2017/000000000002.png"),
        "image_id": "000000000002",
    }
    assert labels_of("coco_stuff_171_val") == [0, 10, 11, 170, 255]


@pytest.mark.parametrize("suffixes", [("_labelTrainIds.png",), (".png", "_labelTrainIds.png")])
def test_coco_stuff_reads_train_ids_and_does_not_take_them_for_pixel_maps(root, suffixes):
    common.write_coco_stuff(root, suffixes=suffixes)
    samples = DatasetCatalog.get("coco_stuff_171_val")
    assert [r["image_id"] for r in samples] == common.names_of("coco_stuff", "val")
    assert all(
        r["sem_seg_file_name"].endswith(f"13{i}{suffixes[0]}") for i, r in enumerate(samples, 1)
    )
    assert labels_of("coco_stuff_171_val") == [0, 10, 11, 170, 255]


@pytest.mark.parametrize("layout", ["VOCdevkit/VOC2010", "VOC2010"])
def test_pascal_context_takes_the_listed_images_with_and_without_background(root, layout):
    common.write_pascal_context(root, layout)
    for number in (59, 60):
        samples = DatasetCatalog.get(f"pascal_context_{number}_train")
        assert [r["image_id"] for r in samples] == common.names_of("pascal_context", "train")
    assert labels_of("pascal_context_59_val") == [*range(59), 255]
    assert labels_of("pascal_context_60_val") == [*range(60)]


def test_camvid_takes_the_images_in_the_order_of_the_list(root):
    write_camvid(root)
    (root / "camvid" / "test.txt").write_text("test_2\n\ntest_0\n")
    assert DatasetCatalog.get("camvid_test") == [
        {
            "file_name": str(root / "camvid" / "images" / "test" / f"{name}.jpg"),
            "sem_seg_file_name": str(root / "camvid" / "annotations" / "test" / f"{name}.png"),
            "image_id": name,
        }
        for name in ("test_2", "test_0")
    ]
    assert len(DatasetCatalog.get("camvid_train")) == 5
    assert labels_of("camvid_train") == [*range(11), 255]


def test_first_complete_layout_is_taken(root):
    (root / "ADEChallengeData2016/annotations_detectron2/training").mkdir(parents=True)
    common.write_ade20k(root, "ade/ADEChallengeData2016")
    assert "/ade/" in DatasetCatalog.get("ade20k_150_train")[0]["file_name"]


# -------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("name", "folders"),
    [
        ("ade20k_150_val", ["ADEChallengeData2016", "ade/ADEChallengeData2016"]),
        ("cityscapes_19_train", ["cityscapes"]),
        ("coco_stuff_171_train", ["coco_stuff164k", "coco"]),
        ("pascal_context_59_val", ["VOCdevkit/VOC2010", "VOC2010"]),
        ("camvid_train", ["camvid"]),
    ],
)
def test_absent_dataset_lists_the_folders_that_were_searched(root, name, folders, monkeypatch):
    with pytest.raises(FileNotFoundError) as caught:
        DatasetCatalog.get(name)
    message = str(caught.value)
    assert message.count("\n") == 0 and "datasets/README.md" in message
    assert ", no ".join(f"'{root / folder}'" for folder in folders) in message
    assert f"DETECTRON2_DATASETS (it is '{root}')" in message
    monkeypatch.delenv("DETECTRON2_DATASETS")
    monkeypatch.chdir(root)
    with pytest.raises(FileNotFoundError, match=rf"'datasets/{folders[0]}'.*is not set"):
        DatasetCatalog.get(name)


def test_what_is_missing_of_a_layout_is_named(root):
    common.write_pascal_context(root)
    (root / "VOCdevkit/VOC2010/ImageSets/SegmentationContext/val.txt").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no '.*VOC2010/ImageSets/.*/val\.txt', no '.*VOC2"
    ):
        DatasetCatalog.get("pascal_context_59_val")
    write_camvid(root)
    (root / "camvid" / "annotations" / "train").rename(root / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"there is no '.*camvid/annotations/train'\."):
        DatasetCatalog.get("camvid_train")


@pytest.mark.parametrize("file", ["images/train/train_3.jpg", "annotations/train/train_3.png"])
def test_missing_file_of_a_list_is_named(root, file):
    write_camvid(root)
    (root / "camvid" / file).unlink()
    folder, name = os.path.split(file)
    with pytest.raises(FileNotFoundError, match=rf"{folder}'.*1 are missing: {name}"):
        DatasetCatalog.get("camvid_train")


def test_image_without_label_and_label_without_image_are_named_together(root):
    common.write_cityscapes(root)
    city = "cityscapes/{}/train/aachen/aachen_00000{}_000019_{}.png"
    (root / city.format("leftImg8bit", 1, "leftImg8bit")).unlink()
    (root / city.format("gtFine", 2, "gtFine_labelIds")).unlink()
    with pytest.raises(IncompleteDatasetError) as caught:
        DatasetCatalog.get("cityscapes_19_train")
    message = str(caught.value)
    assert "1 are missing: aachen/aachen_000001_000019_leftImg8bit.png, and 2 files in" in message
    assert message.endswith("1 are missing: aachen/aachen_000002_000019_gtFine_labelIds.png.")
    # What should be there, for tools that check each file.
    assert [r["image_id"] for r in caught.value.samples] == common.names_of("cityscapes", "train")


def test_name_of_another_library_is_not_taken_over():
    with pytest.raises(ValueError, match="'coco_2017_val' is taken"):
        register_sem_seg("coco_2017_val", list, stuff_classes=["a"], label_map={0: 0})
    assert not hasattr(MetadataCatalog.get("coco_2017_val"), "label_map")


def test_registering_again_does_no_harm(root):
    common.write_ade20k(root)
    for register in (register_ade20k, register_camvid, register_cityscapes, register_coco_stuff):
        register()
    register_pascal_context()
    assert set(REGISTERED) <= set(DatasetCatalog.list())
    assert len(DatasetCatalog.get("ade20k_150_val")) == 2


# ------------------------------------------------------------------------------------- loading


def config(benchmark, *opts):
    base = ROOT / "configs" / "base"
    cfg = load_config(str(base / "datasets" / f"{benchmark}.yaml"), ["MODEL.DEVICE", "cpu"])
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE = True, "absolute"  # as in base/runtime.yaml
    cfg.merge_from_list(["SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0, "SEED", 1, *opts])
    return cfg


@pytest.mark.parametrize(
    ("benchmark", "write"),
    [
        ("ade20k", common.write_ade20k),
        ("coco_stuff", common.write_coco_stuff),
        ("pascal_context", common.write_pascal_context),
        ("cityscapes", lambda root: common.write_cityscapes(root, size=(1024, 2048))),
    ],
)
def test_config_loads_two_training_batches_and_the_test_set(root, benchmark, write):
    write(root)
    cfg = config(benchmark)
    height, width = cfg.INPUT.CROP.SIZE
    number = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    batches = list(islice(build_train_loader(cfg), 2))
    assert [len(batch) for batch in batches] == [2, 2]
    for sample in (sample for batch in batches for sample in batch):
        assert sample["image"].shape[1:] == sample["sem_seg"].shape
        assert sample["sem_seg"].shape[0] <= height and sample["sem_seg"].shape[1] <= width
        values = set(sample["sem_seg"].unique().tolist())
        assert values <= {*range(number), 255} and len(values - {255}) > 1
    tested = list(build_test_loader(cfg, cfg.DATASETS.TEST[0]))
    assert len(tested) == 2
    if benchmark == "cityscapes":
        assert tested[0][0]["image"].shape == (3, 1024, 2048)


# ------------------------------------------------------------------------------------ real files


@pytest.mark.needs_data
@pytest.mark.parametrize(
    ("name", "image_id", "shown"),
    [
        ("ade20k_150_val", "ADE_val_00000001", {"sky", "building", "grass", "tree", "road"}),
        ("coco_stuff_171_train", "000000138805", {"sky-other", "sea", "sand", "horse", "person"}),
        ("coco_stuff_171_val", "000000001268", {"bridge", "river", "person", "handbag", "tree"}),
        ("pascal_context_59_train", "2008_000073", {"cow", "grass", "wall"}),
        ("pascal_context_60_val", "2008_000815", {"background", "person", "dog", "building"}),
    ],
)
def test_real_label_file_says_what_its_image_shows(monkeypatch, name, image_id, shown):
    monkeypatch.setenv("DETECTRON2_DATASETS", REAL_ROOT)
    try:
        samples = {sample["image_id"]: sample for sample in DatasetCatalog.get(name)}
    except FileNotFoundError as error:
        pytest.skip(str(error))
    metadata = MetadataCatalog.get(name)
    label = read_label_map(samples[image_id]["sem_seg_file_name"], label_map_of(metadata))
    assert read_image(samples[image_id]["file_name"]).shape[:2] == label.shape
    assert shown <= {metadata.stuff_classes[i] for i in np.unique(label) if i != 255}


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
    pixels = np.zeros(256, int)
    for sample in DatasetCatalog.get("camvid_test")[::20]:
        label = read_label_map(sample["sem_seg_file_name"], label_map)
        assert read_image(sample["file_name"]).shape == (360, 480, 3)
        assert label.shape == (360, 480)
        pixels += np.bincount(label.ravel(), minlength=256)
    assert np.flatnonzero(pixels).tolist() == [*range(11), 255]
    # Roads and buildings are what a driving car sees most of.
    assert {1, 3} >= {*np.argsort(pixels)[-2:].tolist()}
