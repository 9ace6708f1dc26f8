"""tools/check_dataset.py: what it prints and writes, its exit status, and the user's mistakes."""

import json
import re
import runpy
import sys

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from offseg_d2.data.inspection import check_datasets, format_report, plot_classes
from offseg_d2.data.inspection.check import ClassStatistics, DatasetReport
from offseg_d2.utils.io import file_stem
from tests.common import ROOT
from tests.data.checked import CLASSES, NAMES, PLANTS, plant, write_folder
from tests.data.common import write_camvid, write_label

pytestmark = pytest.mark.usefixtures("loggers")


@pytest.fixture
def tool(monkeypatch, capsys):
    """Calls the tool; returns exit status, output and error text."""

    def call(*arguments) -> tuple[int, str, str]:
        argv = ["check_dataset.py", *(str(argument) for argument in arguments)]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / "tools/check_dataset.py"), run_name="__main__")
        printed = capsys.readouterr()
        return stop.value.code, printed.out, printed.err

    return call


@pytest.fixture
def folder(tmp_path):
    """A clean dataset: its folder and its name, which is forgotten afterwards."""
    write_folder(tmp_path)
    name = f"folder:{tmp_path}:train"
    yield tmp_path, name
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_clean_dataset_ends_with_status_0(tool, folder):
    _, name = folder
    status, out, _ = tool(name, "--workers", 2)
    assert status == 0
    assert "4 samples, 4 images, 4 label maps, 4 without fault." in out
    assert f"{name}: clean, 0 warnings." in out
    assert "FAULT" not in out


def test_every_planted_fault_is_reported_in_one_line_and_in_json(tool, tmp_path):
    names = tuple(f"p{index:02d}" for index in range(len(PLANTS) + 1))
    write_folder(tmp_path, names=names)
    planted = {
        str(plant(tmp_path, fault, pair)): PLANTS[fault][0]
        for fault, pair in zip(PLANTS, names, strict=False)
    }
    assert len(planted) >= 10
    name = f"folder:{tmp_path}:train"
    status, out, _ = tool(name, "--workers", 2, "--json", tmp_path / "new" / "report.json")
    assert status == 1
    for path in planted:
        assert len([line for line in out.splitlines() if line.startswith(f"  {path}: ")]) == 1
    report = json.loads((tmp_path / "new" / "report.json").read_text())
    (dataset,) = report["datasets"]
    assert not report["clean"] and not dataset["clean"]
    assert {fault["path"]: fault["kind"] for fault in dataset["faults"]} == planted
    assert f"{len(planted)} faults in {len(planted)} files" in out
    assert dataset["usable_samples"] == 1


def test_faults_are_grouped_and_limited_on_demand(tool, folder):
    root, name = folder
    for pair in NAMES[:3]:
        (root / "images" / "train" / f"{pair}.jpg").write_bytes(b"")
    (root / "annotations/train/d.png").unlink()
    status, out, _ = tool(name, "--workers", 0, "--limit", 2)
    assert status == 1
    lines = out.splitlines()
    start = lines.index("3 FAULTS: empty files")
    assert [line.split(":")[0].strip() for line in lines[start + 1 : start + 3]] == [
        str(root / "images" / "train" / f"{pair}.jpg") for pair in NAMES[:2]
    ]
    assert lines[start + 3] == "  ... and 1 more"
    assert "1 FAULT: label maps that are not there" in lines


def test_classes_are_counted(folder):
    root, name = folder
    labels = {
        "a": [[0, 0, 2, 255]],
        "b": [[0, 2, 2, 2]],
        "c": [[255, 255, 0, 0]],
    }
    for pair, rows in labels.items():
        write_label(root / f"annotations/train/{pair}.png", np.tile(rows, (6, 2)))
        pixels = np.zeros((6, 8, 3), np.uint8) + len(pair) + rows[0][1]
        cv2.imwrite(str(root / f"images/train/{pair}.jpg"), pixels)
    (root / "annotations/train/d.png").unlink()
    (report,) = check_datasets([name])
    classes = report.classes
    assert classes.names == list(CLASSES) and classes.num_labels == 3
    assert classes.pixels.tolist() == [12 * 5, 0, 12 * 4]
    assert classes.images.tolist() == [3, 0, 2]
    assert classes.ignored_pixels == 12 * 3
    assert classes.shares.tolist() == pytest.approx([5 / 9, 0, 4 / 9])
    assert classes.absent == ["tree"]
    (warning,) = [w for w in report.warnings if w.kind == "absent_class"]
    assert "has no pixel of 1 classes: tree" in warning.message
    text = format_report(report)
    row = next(line.split() for line in text.splitlines() if " sky " in line)
    assert row == ["0", "sky", "60", "55.556%", "3", "100.0%"]
    assert next(line.split()[3] for line in text.splitlines() if " tree " in line) == "never"


def made_up_report(num_classes: int, pixels: np.ndarray) -> DatasetReport:
    names = [f"class {index}" for index in range(num_classes)]
    colors = [(index % 256, 0, 255) for index in range(num_classes)]
    statistics = ClassStatistics(names, colors, pixels, np.minimum(pixels, 3), 5, 3)
    return DatasetReport("made up", "", 3, 3, 3, 3, {(6, 8): 3}, statistics, (), ())


@pytest.mark.parametrize("num_classes", [1, 11, 171])
def test_plot_shows_a_bar_in_the_colour_of_each_class_that_occurs(num_classes):
    pixels = 1000 + np.arange(num_classes)
    picture = cv2.imdecode(
        np.frombuffer(plot_classes(made_up_report(num_classes, pixels)), "u1"), 1
    )
    blue, green, red = np.moveaxis(picture, -1, 0)
    assert set(range(num_classes)) <= set(np.unique(red[(green == 0) & (blue == 255)]).tolist())
    assert max(picture.shape) < 4000


def test_plot_can_be_drawn_of_nothing():
    assert plot_classes(made_up_report(4, np.zeros(4, dtype=np.int64)))[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("camvid_train", "camvid_train"),
        ("folder:/data/x:train", "folder_data_x_train"),
        ("../..", "dataset"),
    ],
)
def test_file_stem_holds_no_path(name, stem):
    assert file_stem(name) == stem


def test_several_datasets_have_a_report_and_a_plot_each(tool, tmp_path, monkeypatch):
    write_camvid(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "camvid/images/val/val_1.jpg").unlink()
    out_dir = tmp_path / "deep" / "out"
    status, out, _ = tool("camvid_train", "camvid_val", "--output", out_dir, "--workers", 2)
    assert status == 1
    assert "camvid_train: clean" in out and "camvid_val: 1 fault in 1 file" in out
    plots = sorted(path.name for path in out_dir.iterdir())
    assert plots == ["camvid_train_classes.png", "camvid_val_classes.png"]
    assert all(cv2.imread(str(out_dir / plot)) is not None for plot in plots)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["camvid_trian"], "'camvid_trian' must be a registered dataset.* camvid_train"),
        (["camvid_train"], "camvid_train.*DETECTRON2_DATASETS"),
        (["folder:{tmp}/nowhere:train"], "{tmp}/nowhere"),
        (["folder:{tmp}:val"], "'folder:{tmp}:val'.*train"),
        (["folder:{tmp}:train", "--output", "{tmp}/classes.txt/x"], "`--output` .*classes.txt/x'"),
        (["folder:{tmp}:train", "--json", "{tmp}/classes.txt/x"], "`--json` .*classes.txt'"),
        (["folder:{tmp}:train", "--workers", "-1"], "`--workers` must not be negative.* -1"),
        (["folder:{tmp}:train", "folder:{tmp}:train"], "named once each"),
    ],
)
def test_mistake_of_the_user_is_reported_in_one_line(
    tool, folder, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "elsewhere"))
    status, out, err = tool(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert status == 2 and not out
    assert err.startswith("error: ") and err.count("\n") == 1
    assert re.search(message.format(tmp=re.escape(str(tmp_path))), err)


def test_datasets_that_cannot_be_listed_are_explained(tool, tmp_path):
    def complain():
        raise AssertionError("No images found in /x")

    DatasetCatalog.register("check_unlistable", complain)
    DatasetCatalog.register("check_empty", lambda: [])
    DatasetCatalog.register("check_unnamed", lambda: [{"file_name": "x.png"}])
    try:
        for name, message in (
            ("check_unlistable", "No images found in /x"),
            ("check_empty", "must hold at least one image"),
            ("check_unnamed", "must have `stuff_classes`"),
        ):
            status, _, err = tool(name)
            assert status == 2 and message in err and err.count("\n") == 1
    finally:
        for name in ("check_unlistable", "check_empty", "check_unnamed"):
            DatasetCatalog.remove(name)
            MetadataCatalog.pop(name, None)


# ---------------------------------------------------------------------- a folder without classes


def proposed(printed: str) -> dict:
    return json.loads(printed[printed.index("{") : printed.rindex("}") + 1])


def write_labels(folder, arrays) -> None:
    for index, array in enumerate(arrays):
        path = folder / f"annotations/train/{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), np.array(array, dtype=np.uint8)[..., ::-1])


def test_values_of_a_folder_without_classes_are_proposed(tool, tmp_path):
    for index, values in enumerate(([[1, 1, 5]], [[5, 255, 9]])):
        write_label(tmp_path / f"annotations/train/{index}.png", np.array(values))
    status, printed, _ = tool(f"folder:{tmp_path}:train", f"folder:{tmp_path}:val")
    assert status == 1
    assert proposed(printed) == {
        "classes": ["class 0", "class 1", "class 2"],
        "label_map": {"1": 0, "5": 1, "9": 2},
    }
    assert re.search(r"\b5 +2 +33\.33%", printed) and "255 is ignored" in printed
    assert printed.count("has no classes.json") == 1  # for both splits


def test_colours_of_a_folder_without_classes_are_proposed_and_then_read(tool, tmp_path):
    red, grey = [200, 10, 10], [7, 7, 7]
    write_labels(tmp_path, [[[red, red, grey]], [[grey, grey, grey]]])
    status, printed, _ = tool(f"folder:{tmp_path}:train")
    assert status == 1
    content = proposed(printed)
    assert content == {"classes": ["class 0", "class 1"], "palette": [grey, red]}
    assert 'without a name: "ignore_label": [[200, 10, 10]]' in printed
    (tmp_path / "classes.json").write_text(json.dumps(content))
    for index in range(2):
        path = tmp_path / f"images/train/{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((1, 3, 3), index, np.uint8))
    status, printed, _ = tool(f"folder:{tmp_path}:train")
    assert status == 0 and "class 1" in printed
    ignoring = {"classes": ["wall"], "palette": [grey], "ignore_label": [red]}
    (tmp_path / "classes.json").write_text(json.dumps(ignoring))
    status, printed, _ = tool(f"folder:{tmp_path}/.:train")  # a name that is not yet registered
    assert status == 0 and re.search(r"wall +4 ", printed)
    assert re.search(r"ignored.* 2 ", printed)


def test_other_split_of_a_folder_without_splits_is_no_finding(tool, tmp_path):
    (tmp_path / "classes.txt").write_text("wall\n")
    for index in range(12):
        write_label(tmp_path / f"annotations/{index}.png", np.zeros((2, 3)))
        (tmp_path / "images").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / f"images/{index}.png"), np.full((2, 3, 3), index, np.uint8))
    names = [f"folder:{tmp_path}:train", f"folder:{tmp_path}:val"]
    status, printed, _ = tool(*names)
    assert status == 0 and printed.count("clean, 0 warnings") == 2
    write_label(tmp_path / "annotations/left.png", np.zeros((2, 3)))
    status, printed, _ = tool(*names)
    assert status == 1 and re.search(r"images that are not there\n.*left\.", printed)


def test_colours_that_are_no_mask_are_refused(tool, tmp_path):
    noise = np.random.RandomState(0).randint(0, 256, (20, 20, 3))
    write_labels(tmp_path, [noise])
    status, _, errors = tool(f"folder:{tmp_path}:train")
    assert status == 2 and "at most 255 colours, but hold 400; were they resized" in errors


def test_drawn_annotations_are_checked(tool, tmp_path):
    box = [[0, 0, 8, 0, 8, 2, 0, 2]]
    entry = {"id": 0, "file_name": "a.png", "height": 6, "width": 8}
    content = {"images": [entry], "categories": [{"id": 1, "name": "cat"}]}
    content["annotations"] = [{"image_id": 0, "category_id": 1, "segmentation": box}]
    (tmp_path / "train").mkdir()
    cv2.imwrite(str(tmp_path / "train/a.png"), np.zeros((6, 8, 3), np.uint8))
    path = tmp_path / "train/_annotations.coco.json"
    path.write_text(json.dumps(content))
    status, printed, _ = tool(f"folder:{tmp_path}:train", "--workers", 0)
    assert status == 0 and "background" in printed and "cat" in printed


def test_drawn_annotations_with_faults_are_reported(tool, tmp_path):
    entry = {"id": 0, "file_name": "a.png", "height": 6, "width": 8}
    content = {"images": [entry], "categories": [{"id": 1, "name": "cat"}]}
    bad = {"size": [6, 8], "counts": [3]}
    content["annotations"] = [{"image_id": 0, "category_id": 1, "segmentation": bad}]
    (tmp_path / "train").mkdir()
    cv2.imwrite(str(tmp_path / "train/a.png"), np.zeros((6, 8, 3), np.uint8))
    (tmp_path / "train/_annotations.coco.json").write_text(json.dumps(content))
    status, printed, _ = tool(f"folder:{tmp_path}:train", "--workers", 0)
    assert status == 1 and "must hold polygons or run lengths" in printed
