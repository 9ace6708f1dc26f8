import json
import logging
from itertools import islice

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

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
from offseg_d2.data.datasets.class_file import class_table
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
    """Config of another dataset that is told to train on the folder."""
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
    for batch in islice(build_train_loader(cfg), 2):
        assert {v for s in batch for v in s["sem_seg"].unique().tolist()} == {0, 1, 2, 255}
    tested = [batch[0]["image_id"] for batch in build_test_loader(cfg, cfg.DATASETS.TEST[0])]
    assert tested == ["val_0", "val_1", "val_2"]
    assert MetadataCatalog.get(cfg.DATASETS.TEST[0]).stuff_classes == ["background", "cat", "dog"]


def test_loaders_register_a_folder_themselves(root):
    cfg = config(root, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3, "DATALOADER.NUM_WORKERS", 0)
    assert f"folder:{root}:val" not in DatasetCatalog.list()
    assert len(build_test_loader(cfg, f"folder:{root}:val")) == 3
    assert next(iter(build_train_loader(cfg)))[0]["image"].shape[0] == 3


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


def test_changes_of_the_config_are_logged(root, caplog):
    with caplog.at_level(logging.INFO, logger="offseg_d2.data.datasets"):
        adapt_to_folders(config(root))
    assert "NUM_CLASSES` is 3" in caplog.text and "says 11" in caplog.text
    assert f"`DATASETS.TEST` is ('folder:{root}:val',) instead of ('camvid_test',)" in caplog.text


def test_no_test_set_is_left_if_the_folder_has_no_val(tmp_path):
    root = common.write_own(tmp_path / "pets", splits=("train",))
    cfg = config(root)
    adapt_to_folders(cfg)
    assert cfg.DATASETS.TEST == ()


def test_misspelt_test_set_stays_for_the_error_that_names_it(root):
    cfg = config(root, "DATASETS.TEST", "('camvid_tset',)")
    adapt_to_folders(cfg)
    assert cfg.DATASETS.TEST == ("camvid_tset",)


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
        records = DatasetCatalog.get("pets_val")
        assert [r["file_name"] for r in records] == [
            str(root / "images/val" / name) for name in ("val_0.jpg", "val_1.png", "val_2.JPEG")
        ]
        assert MetadataCatalog.get("pets_val").stuff_classes == ["nothing", "tabby", "poodle"]
        assert register_folder("pets", str(root)) == names  # the same folder again
        assert MetadataCatalog.get("pets_val").stuff_classes == ["background", "cat", "dog"]
    finally:
        for name in names:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_registered_folder_does_not_take_the_name_of_another_dataset(root):
    with pytest.raises(ValueError, match="'camvid_train' is taken"):
        register_folder("camvid", str(root))


def test_files_in_inner_folders_and_hidden_ones(root):
    for kind in ("images", "annotations"):
        inner = root / kind / "val" / "monday"
        inner.mkdir()
        suffix = ".jpg" if kind == "images" else ".png"
        (root / kind / "val" / f"val_0{suffix}").rename(inner / f"val_0{suffix}")
        (root / kind / "val" / f"._val_0{suffix}").write_bytes(b"")
    ensure_registered([f"folder:{root}:val"])
    records = DatasetCatalog.get(f"folder:{root}:val")
    assert [r["image_id"] for r in records] == ["val_0", "val_1", "val_2"]  # monday/ comes first
    assert records[0]["sem_seg_file_name"].endswith("annotations/val/monday/val_0.png")


def test_inner_folders_may_have_a_dot_in_their_name(root):
    for kind, suffix in (("images", ".JPEG"), ("annotations", ".png")):
        inner = root / kind / "train" / "2024.05.01"
        inner.mkdir()
        (root / kind / "train" / f"train_2{suffix}").rename(inner / f"train_2{suffix}")
    ensure_registered([f"folder:{root}:train"])
    records = DatasetCatalog.get(f"folder:{root}:train")
    assert [r["image_id"] for r in records] == ["train_2", "train_0", "train_1"]
    assert records[0]["file_name"].endswith("images/train/2024.05.01/train_2.JPEG")


def test_files_of_the_wanted_kind_are_not_asked_whether_they_are_folders(root, monkeypatch):
    ensure_registered([f"folder:{root}:train"])
    asked = []
    monkeypatch.setattr(PathManager, "isdir", lambda path: asked.append(path) or False)
    assert len(DatasetCatalog.get(f"folder:{root}:train")) == 3
    assert not asked


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
    with caplog.at_level(logging.WARNING, logger="offseg_d2.data.build"):
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


def test_json_may_say_colours_and_ignored_values(tmp_path):
    content = {"classes": ["a", "b"], "palette": [[1, 2, 3], [4, 5, 6]], "ignore_label": 7}
    table = read_class_file(write_json(tmp_path, {**content, "author": "somebody"}))
    assert table.classes == [("a", [1, 2, 3]), ("b", [4, 5, 6])]
    assert table.label_map == {0: 0, 1: 1, 7: 255, 255: 255}
    assert read_class_file(write_json(tmp_path, ["a", "b"])).label_map == {0: 0, 1: 1, 255: 255}


def test_json_may_say_other_values():
    shifted = class_table({"classes": ["a", "b"], "reduce_zero_label": True}, "x")
    assert shifted.label_map == {0: 255, 1: 0, 2: 1, 255: 255}
    mapped = class_table({"classes": ["a", "b"], "label_map": {"7": 0, "9": 1, "0": 255}}, "x")
    assert mapped.label_map == {7: 0, 9: 1, 0: 255, 255: 255}
    several = class_table({"classes": ["a"], "ignore_label": [3, 4]}, "x")
    assert several.label_map == {0: 0, 3: 255, 4: 255, 255: 255}


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
        ({"classes": ["a"], "palette": 5}, "in 'palette', but gives 5"),
        ({"classes": ["a"], "palette": {"a": [1, 2, 3]}}, "in 'palette', but gives {'a'"),
        ({"classes": ["a"], "palette": "r"}, "in 'palette', but gives 'r'"),
        (
            {"classes": ["a"], "label_map": {"0": 0}, "reduce_zero_label": True},
            "must have 'reduce_zero_label' or 'label_map', .* but has both",
        ),
        ({"classes": ["a"], "ignore_label": "void"}, "'ignore_label' as values in 0..255, but"),
        ({"classes": ["a", "b"], "ignore_label": 1}, "'ignore_label' is 1 and 1 is class 1"),
        ({"classes": ["a"], "label_map": {"0": 1}}, "below 1 or 255 in 'label_map', but maps '0'"),
        ({"classes": ["a"], "label_map": {"sky": 0}}, "but maps 'sky' to 0"),
        ({"classes": ["a"], "label_map": [0]}, r"but 'label_map' is \[0\]"),
    ],
)
def test_unusable_classes_are_told_in_one_sentence_that_names_the_file(tmp_path, content, match):
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
