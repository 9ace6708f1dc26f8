import json
import logging
from itertools import islice

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from offseg_d2.config import load_config
from offseg_d2.data import (
    DataFileError,
    adapt_to_folders,
    build_test_loader,
    build_train_loader,
    ensure_registered,
    register_folder,
)
from offseg_d2.data.datasets import read_class_file
from offseg_d2.data.datasets.colors import distinct_colors
from tests.common import ROOT
from tests.data.common import write_label
from tests.data.datasets import common


@pytest.fixture
def root(tmp_path, monkeypatch):
    # The folder is named by its own path: DETECTRON2_DATASETS has no say in it.
    monkeypatch.setenv("DETECTRON2_DATASETS", "/nowhere")
    return common.write_own(tmp_path / "pets")


def config(root, *opts, benchmark="camvid"):
    """Config of another dataset that is to train on the folder."""
    file = ROOT / "configs" / "base" / "datasets" / f"{benchmark}.yaml"
    cfg = load_config(str(file), ["DATASETS.TRAIN", f"('folder:{root}:train',)"])
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE = True, "absolute"
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", 2, "SEED", 1, *opts])
    return cfg


# --------------------------------------------------------------------------------- in one step


@pytest.mark.parametrize("workers", [0, 2])
def test_folder_is_trained_on_and_tested_without_registration(root, workers):
    cfg = config(root, "DATALOADER.NUM_WORKERS", workers)
    adapt_to_folders(cfg)
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 3
    assert (f"folder:{root}:val",) == cfg.DATASETS.TEST
    assert f"folder:{root}:val" in DatasetCatalog.list()
    for batch in islice(build_train_loader(cfg), 2):
        assert {v for s in batch for v in s["sem_seg"].unique().tolist()} == {0, 1, 2, 255}
    tested = [batch[0]["image_id"] for batch in build_test_loader(cfg, cfg.DATASETS.TEST[0])]
    assert tested == ["val_0", "val_1", "val_2"]
    assert MetadataCatalog.get(cfg.DATASETS.TEST[0]).stuff_classes == ["background", "cat", "dog"]


def test_evaluation_follows_the_test_folder_and_leaves_training_alone(root):
    cfg = config("/gone", "DATASETS.TEST", f"('folder:{root}:val',)")
    cfg.freeze()
    adapt_to_folders(cfg, eval_only=True)
    assert cfg.is_frozen() and cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 3
    assert cfg.DATASETS.TRAIN == ("folder:/gone:train",)


def test_config_without_folders_is_left_alone():
    cfg = load_config(str(ROOT / "configs/base/datasets/ade20k.yaml"))
    before = cfg.dump()
    adapt_to_folders(cfg)
    adapt_to_folders(cfg, eval_only=True)
    assert cfg.dump() == before


@pytest.mark.parametrize(("stated", "number"), [(54, 11), (12, 12)])
def test_number_of_classes_follows_any_dataset_unless_it_is_stated(stated, number, caplog):
    cfg = load_config("", ["DATASETS.TRAIN", ("camvid_train",)])
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = stated
    with caplog.at_level(logging.INFO, logger="offseg_d2.data.datasets"):
        adapt_to_folders(cfg)
    assert number == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    assert ("NUM_CLASSES` is 11" in caplog.text) == (stated == 54)
    assert cfg.DATASETS.TEST == ()


def test_changes_of_the_config_are_logged(root, caplog):
    with caplog.at_level(logging.INFO, logger="offseg_d2.data.datasets"):
        adapt_to_folders(config(root))
    assert "NUM_CLASSES` is 3" in caplog.text and "says 11" in caplog.text
    assert f"`DATASETS.TEST` is ('folder:{root}:val',) instead of ('camvid_test',)" in caplog.text


@pytest.mark.parametrize(
    ("splits", "test_sets", "expected"),
    [
        (("train",), ("camvid_test",), ()),  # the folder has no val
        (("train", "val"), ("camvid_tset",), ("camvid_tset",)),  # for the error that names it
        (("train", "val"), (), ("folder:{}:val",)),
        (("train", "valid"), ("camvid_test",), ("folder:{}:valid",)),
    ],
)
def test_test_sets_of_a_folder(tmp_path, splits, test_sets, expected):
    root = common.write_own(tmp_path / "pets", splits=splits)
    cfg = config(root, "DATASETS.TEST", test_sets)
    adapt_to_folders(cfg)
    assert tuple(name.format(root) for name in expected) == cfg.DATASETS.TEST


def test_test_folder_with_other_classes_is_refused_by_its_loader(root, tmp_path):
    other = common.write_own(tmp_path / "other", classes="a\nb\n", ids=(0, 1))
    cfg = config(root, "DATASETS.TEST", f"('folder:{other}:val',)")
    adapt_to_folders(cfg)
    with pytest.raises(ValueError, match=r"NUM_CLASSES` must be 2 for dataset 'folder:.*but is 3"):
        build_test_loader(cfg, cfg.DATASETS.TEST[0])


def test_registered_folder_has_a_name_for_each_split(root):
    names = register_folder("pets", str(root), classes=["nothing", "tabby", "poodle"])
    try:
        assert names == ["pets_train", "pets_val"]
        samples = DatasetCatalog.get("pets_val")
        assert [s["file_name"] for s in samples] == [
            str(root / "images/val" / name) for name in ("val_0.jpg", "val_1.png", "val_2.JPEG")
        ]
        assert MetadataCatalog.get("pets_val").stuff_classes == ["nothing", "tabby", "poodle"]
        assert register_folder("pets", str(root)) == names  # the same folder again
        assert MetadataCatalog.get("pets_val").stuff_classes == ["background", "cat", "dog"]
    finally:
        for name in names:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_a_folder_is_registered_again_after_it_was_divided_and_after_it_was_joined(root):
    def move(there: bool) -> None:
        for kind in ("images", "annotations"):
            for split in ("train", "val"):
                inner = root / kind / split
                inner.mkdir(exist_ok=True)
                for path in list((root / kind if there else inner).glob(f"{split}_*")):
                    path.rename((inner if there else root / kind) / path.name)
                if not there:
                    inner.rmdir()

    try:
        for there, number in ((True, 3), (False, 5), (True, 3)):
            move(there)
            names = register_folder("pets", str(root))
            assert len(DatasetCatalog.get("pets_train")) == number  # of 6, a fifth for validation
    finally:
        for name in names:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_registered_folder_does_not_take_the_name_of_another_dataset(root):
    with pytest.raises(ValueError, match="'camvid_train' is taken"):
        register_folder("camvid", str(root))


@pytest.mark.parametrize("inner", ["monday", "2024.05.01"])
def test_files_in_inner_folders_and_hidden_ones(root, inner):
    for kind, suffix in (("images", ".JPEG"), ("annotations", ".png")):
        (root / kind / "train" / inner).mkdir()
        (root / kind / "train" / f"train_2{suffix}").rename(
            root / kind / "train" / inner / f"train_2{suffix}"
        )
        (root / kind / "train" / f"._train_2{suffix}").write_bytes(b"")
    ensure_registered([f"folder:{root}:train"])
    samples = DatasetCatalog.get(f"folder:{root}:train")
    ids = [sample["image_id"] for sample in samples]
    assert sorted(ids) == ["train_0", "train_1", "train_2"]
    (sample,) = (sample for sample in samples if sample["image_id"] == "train_2")
    assert sample["file_name"].endswith(f"images/train/{inner}/train_2.JPEG")
    assert sample["sem_seg_file_name"].endswith(f"annotations/train/{inner}/train_2.png")


# -------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("name", ["folder:", "folder:x", "folder::train", "folder:/a/b"])
def test_name_of_another_form_is_refused(name):
    with pytest.raises(ValueError, match=f"named 'folder:ROOT:SPLIT', but is '{name}'"):
        ensure_registered([name])


def test_colons_in_the_path_are_part_of_it(tmp_path):
    root = common.write_own(tmp_path / "a:b")
    ensure_registered([f"folder:{root}:train"])
    assert len(DatasetCatalog.get(f"folder:{root}:train")) == 3


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda root: root.rename(root.with_name("moved")), r"folder '.*pets' must exist"),
        (
            lambda root: (root / "images/train").rename(root / "images/training"),
            r"images in '.*pets/images/train'.*splits there: training, val\.",
        ),
        (
            lambda root: (root / "classes.txt").unlink(),
            r"must hold 'classes\.txt' \(one name a line\) or 'classes\.json'",
        ),
    ],
)
def test_absent_parts_are_named(root, spoil, match):
    spoil(root)
    with pytest.raises(FileNotFoundError, match=match):
        ensure_registered([f"folder:{root}:train"])


def test_missing_partner_is_named(root):
    (root / "annotations/train/train_1.png").unlink()
    (root / "images/train/train_0.jpg").unlink()
    cfg = config(root)
    adapt_to_folders(cfg)
    with pytest.raises(FileNotFoundError, match=r"missing: train_0\.jpg, and .*: train_1\.png\."):
        build_train_loader(cfg)


def test_two_images_of_one_name_are_refused(root):
    (root / "images/train/train_0.png").write_bytes(b"")
    ensure_registered([f"folder:{root}:train"])
    with pytest.raises(ValueError, match=r"holds 'train_0\.jpg' and 'train_0\.png'"):
        DatasetCatalog.get(f"folder:{root}:train")


def test_value_that_is_no_class_is_named_with_its_file(root):
    write_label(root / "annotations/train/train_1.png", np.full(common.SIZE, 3))
    cfg = config(root, "DATALOADER.NUM_WORKERS", 2)
    adapt_to_folders(cfg)
    with pytest.raises(DataFileError, match=r"train_1\.png' .*\(0-2, 255\), but holds 3\."):
        list(islice(build_train_loader(cfg), 2))


def test_single_class_is_warned_of(tmp_path, caplog):
    root = common.write_own(tmp_path / "pets", classes="cat\n", ids=(0, 255))
    cfg = config(root)
    adapt_to_folders(cfg)
    with caplog.at_level(logging.WARNING, logger="offseg_d2.data.loader"):
        build_train_loader(cfg)
        build_train_loader(cfg)
    warnings = [r.getMessage() for r in caplog.records if "one class 'cat'" in r.getMessage()]
    assert len(warnings) == 1 and "mIoU is 100 whatever is learned" in warnings[0]


# ----------------------------------------------------------------------------- files of classes


def write_json(path, content):
    (path / "classes.json").write_text(json.dumps(content))
    return str(path / "classes.json")


def test_text_names_the_values_from_zero_on(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_bytes("\ufeffbackground\r\ncafé table \r\n\r\n".encode())
    table = read_class_file(str(path))
    assert [name for name, _ in table.classes] == ["background", "café table"]
    assert table.label_map == {0: 0, 1: 1, 255: 255}
    assert [color for _, color in table.classes] == distinct_colors(2)


@pytest.mark.parametrize(
    ("content", "label_map"),
    [
        (["a", "b"], {0: 0, 1: 1, 255: 255}),
        ({"classes": ["a", "b"], "ignore_label": 7}, {0: 0, 1: 1, 7: 255, 255: 255}),
        ({"classes": ["a"], "ignore_label": [3, 4]}, {0: 0, 3: 255, 4: 255, 255: 255}),
        ({"classes": ["a", "b"], "reduce_zero_label": True}, {0: 255, 1: 0, 2: 1, 255: 255}),
        (
            {"classes": ["a", "b"], "label_map": {"7": 0, "9": 1, "0": 255}},
            {7: 0, 9: 1, 0: 255, 255: 255},
        ),
    ],
)
def test_json_says_which_values_are_classes(tmp_path, content, label_map):
    assert read_class_file(write_json(tmp_path, content)).label_map == label_map


def test_json_may_say_colours(tmp_path):
    content = {"classes": ["a", "b"], "palette": [[1, 2, 3], [4, 5, 6]], "author": "somebody"}
    table = read_class_file(write_json(tmp_path, content))
    assert table.classes == [("a", [1, 2, 3]), ("b", [4, 5, 6])]


def test_json_wins_over_text(root):
    write_json(root, ["sky", "cat", "dog"])
    ensure_registered([f"folder:{root}:train"])
    assert MetadataCatalog.get(f"folder:{root}:train").stuff_classes[0] == "sky"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"names": ["a"]}, "must list 1 to 255 class names, but lists None"),
        ([], r"must list 1 to 255 class names, but lists \[\]"),
        (["a", " "], "must give each class a name"),
        (["a", 3], "must give each class a name"),
        (["a", "b", "a"], r"must name each class once, but names \['a'\] again"),
        ({"classes": ["a"], "palette": [[1, 2]]}, r"in 'palette', but gives \[\[1, 2\]\]"),
        ({"classes": ["a"], "palette": [[1, 2, 256]]}, "in 'palette', but gives"),
        ({"classes": ["a"], "palette": {"a": [1, 2, 3]}}, "in 'palette', but gives {'a'"),
        (
            {"classes": ["a"], "label_map": {"0": 0}, "reduce_zero_label": True},
            "must have 'reduce_zero_label' or 'label_map', .* but has both",
        ),
        (
            {"classes": ["a"], "ignore_label": "void"},
            "'ignore_label' as values in 0..255 or as colours",
        ),
        ({"classes": ["a", "b"], "ignore_label": 1}, "'ignore_label' is 1 and 1 is class 1"),
        ({"classes": ["a"], "ignore_label": [[0, 0, 0]]}, "but there is no 'palette'"),
        (
            {"classes": ["a"], "palette": [[0, 0, 9]], "ignore_label": [[0, 0, 9]]},
            r"but \[0, 0, 9\] is that of a class",
        ),
        ({"classes": ["a"], "ignore_label": [0, 0, 0]}, r"\[\[0, 0, 0\]\] for a colour"),
        ({"classes": ["a"], "label_map": {"0": 1}}, "below 1 or 255 in 'label_map', but maps '0'"),
        ({"classes": ["a"], "label_map": {"sky": 0}}, "but maps 'sky' to 0"),
        ({"classes": ["a"], "label_map": [0]}, r"but 'label_map' is \[0\]"),
    ],
)
def test_unusable_classes_are_refused_in_one_sentence_that_names_the_file(tmp_path, content, match):
    path = write_json(tmp_path, content)
    with pytest.raises(ValueError, match=match) as caught:
        read_class_file(path)
    assert str(caught.value).startswith(f"'{path}' must") and "\n" not in str(caught.value)


def test_broken_json_and_absent_file_are_named(tmp_path):
    (tmp_path / "classes.json").write_text("{")
    with pytest.raises(ValueError, match=r"classes\.json' cannot be read as text or JSON"):
        read_class_file(str(tmp_path / "classes.json"))
    with pytest.raises(FileNotFoundError, match=r"nothing\.txt' must exist"):
        read_class_file(str(tmp_path / "nothing.txt"))


def test_colours_are_all_different_and_do_not_depend_on_their_number():
    colors = distinct_colors(255)
    assert len({tuple(color) for color in colors}) == 255
    assert distinct_colors(7) == colors[:7]
