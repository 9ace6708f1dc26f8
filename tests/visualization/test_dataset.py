"""tools/view_dataset.py: pictures of ground truth and of training batches."""

import re
import runpy
import sys

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import Metadata, MetadataCatalog
from PIL import Image

from offseg_d2.data import build_train_loader
from offseg_d2.visualization.dataset import choose_samples, draw_batch, to_picture, training_batches
from offseg_d2.visualization.overlay import enlarge
from tests.common import ROOT
from tests.data.common import camvid_cfg, write_camvid

# A configuration of CamVid whose crops are as small as the fixture's images.
OPTS = (
    *("INPUT.RESIZE.SCALE", "[40,30]"),
    *("INPUT.CROP.SIZE", "[20,24]"),
    *("SOLVER.IMS_PER_BATCH", "4"),
)
CONFIG = ROOT / "configs/camvid/offseg_t_offset_cpu.yaml"
AUGMENTED = ("camvid_val", "--augmented", "--config-file", CONFIG)


pytestmark = pytest.mark.usefixtures("loggers")


@pytest.fixture
def camvid(tmp_path, monkeypatch):
    """A tiny CamVid of 40x30 frames; its folder."""
    write_camvid(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path / "camvid"


@pytest.fixture
def tool(monkeypatch, capsys, tmp_path):
    """Calls the tool; returns exit status, the pictures by name, and the error text."""

    def call(*arguments, output="out") -> tuple[int, dict[str, np.ndarray], str]:
        folder = tmp_path / output
        argv = ["view_dataset.py", *arguments]
        if "--output" not in arguments:
            argv[1:1] = ["--output", folder]
        monkeypatch.setattr(sys, "argv", [str(argument) for argument in argv])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / "tools/view_dataset.py"), run_name="__main__")
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
        pictures = {path.name: cv2.imread(str(path))[..., ::-1] for path in paths}
        return stop.value.code, pictures, capsys.readouterr().err

    return call


def test_image_stands_beside_its_ground_truth_above_a_legend(tool, camvid):
    arguments = ("camvid_train", "--images", "train_3", "--opacity", "1")
    status, pictures, _ = tool(*arguments)
    assert status == 0
    (picture,) = pictures.values()
    assert list(pictures) == ["camvid_train_train_3.png"]
    image = cv2.imread(str(camvid / "images/train/train_3.jpg"))
    enlarged = cv2.resize(image, (480, 360), interpolation=cv2.INTER_CUBIC)[..., ::-1]
    tops = [y for y in range(100) if np.array_equal(picture[y : y + 360, :480], enlarged)]
    assert len(tops) == 1
    assert picture.shape[0] > tops[0] + 360  # the legend
    # The middle of each pixel of the label map has the colour of its class.
    labels = np.array(Image.open(camvid / "annotations/train/train_3.png"))
    drawn = picture[tops[0] + 5 : tops[0] + 360 : 12, picture.shape[1] - 480 + 5 :: 12]
    colors = np.array(MetadataCatalog.get("camvid_train").stuff_colors)
    known = labels < 11
    # Names of classes are written over some of them.
    same = (drawn[known] == colors[labels[known]]).all(axis=-1)
    assert same.mean() > 0.9


def test_choice_at_random_depends_on_the_seed_alone(tool, camvid):
    _, first, _ = tool("camvid_train", "--number", 2, "--seed", 1, output="1")
    _, again, _ = tool("camvid_train", "--number", 2, "--seed", 1, output="2")
    assert len(first) == 2 and list(first) == list(again)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    chosen = set()
    samples = [{"file_name": f"/x/{index}.jpg"} for index in range(30)]
    for seed in range(5):
        chosen.add(tuple(r["file_name"] for r in choose_samples(samples, number=3, seed=seed)))
    assert len(chosen) == 5
    assert len(choose_samples(samples, number=99)) == 30


@pytest.mark.parametrize(("number", "message"), [(1, "1 picture lies"), (2, "2 pictures lie")])
def test_number_of_pictures_is_reported(camvid, tmp_path, monkeypatch, capsys, number, message):
    out = tmp_path / "out"
    argv = ["view_dataset.py", "camvid_train", "--output", str(out), "--number", str(number)]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "tools/view_dataset.py"), run_name="__main__")
    assert f"{message} in {out}" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("name", ["city/7", "7_rgb.png", "7_rgb"])
def test_images_are_chosen_by_id_or_file_name(name):
    samples = [
        {"file_name": f"/data/{index}_rgb.png", "image_id": f"city/{index}"} for index in range(9)
    ]
    assert choose_samples(samples, [name]) == [samples[7]]


def test_sheets_show_the_very_batches_of_training(camvid):
    cfg = camvid_cfg(batch=4, seed=5)
    cfg.INPUT.RESIZE.RATIO_RANGE = [1.0, 2.0]  # no image is smaller than the crop
    batches = training_batches(cfg, "camvid_train")
    expected = iter(build_train_loader(cfg))
    metadata = MetadataCatalog.get("camvid_train")
    for _ in range(2):
        batch, trained_on = next(batches), next(expected)
        assert [s["image_id"] for s in batch] == [s["image_id"] for s in trained_on]
        for sample, other in zip(batch, trained_on, strict=True):
            assert np.array_equal(sample["image"], other["image"])
            assert np.array_equal(sample["sem_seg"], other["sem_seg"])
        sheet = draw_batch(batch, metadata, opacity=0.0)
        for sample in batch[:2]:
            crop = to_picture(sample)
            enlarged = enlarge(crop, 320 / crop.shape[1])
            match = cv2.matchTemplate(sheet, enlarged, cv2.TM_SQDIFF)
            top, left = np.unravel_index(match.argmin(), match.shape)
            shown = sheet[top : top + enlarged.shape[0], left : left + enlarged.shape[1]]
            assert np.array_equal(shown, enlarged)
    late = next(training_batches(cfg, "camvid_train", start_iter=1))
    assert [s["image_id"] for s in late] == [s["image_id"] for s in batch]


def test_crops_of_several_sizes_are_padded_at_the_right_and_at_the_bottom():
    metadata = Metadata(stuff_classes=["road"], stuff_colors=[[0, 200, 0]])
    batch = [
        {
            "file_name": "x.jpg",
            "image": torch.full((3, *size), 40, dtype=torch.uint8),
            "sem_seg": torch.zeros(size, dtype=torch.int64),
            "height": 320,
            "width": 320,
        }
        for size in ((320, 160), (80, 320))
    ]
    sheet = draw_batch(batch, metadata, opacity=1.0)
    filled = {
        color: (sheet == color).all(axis=-1).sum() for color in ((40,) * 3, (0, 200, 0), (225,) * 3)
    }
    area = 320 * 160 + 80 * 320
    # Interpolation and the white borders of classes touch the edges, captions are grey in places.
    assert filled[(40, 40, 40)] == pytest.approx(area, rel=0.03)
    assert filled[(0, 200, 0)] == pytest.approx(area, rel=0.03)
    assert filled[(225, 225, 225)] == pytest.approx(2 * (2 * 320 * 320 - area), rel=0.03)


def test_tool_draws_a_sheet_for_each_batch_the_same_for_the_same_seed(tool, camvid):
    arguments = ("camvid_train", "--augmented", "--config-file", CONFIG, "--number", 2)
    status, first, _ = tool(*arguments, "--seed", 3, "--opts", *OPTS, output="1")
    assert status == 0
    assert list(first) == ["camvid_train_iter0_batch0.png", "camvid_train_iter0_batch1.png"]
    again = tool(*arguments, "--seed", 3, "--opts", *OPTS, output="2")[1]
    other = tool(*arguments, "--seed", 4, "--opts", *OPTS, output="3")[1]
    for name in first:
        assert np.array_equal(first[name], again[name])
        assert first[name].shape != other[name].shape or (first[name] != other[name]).any()


def test_images_in_bgr_are_drawn_in_their_right_colours(camvid):
    cfg = camvid_cfg(seed=5)
    metadata = MetadataCatalog.get("camvid_train")
    rgb = draw_batch(next(training_batches(cfg, "camvid_train")), metadata)
    cfg.INPUT.FORMAT = "BGR"
    bgr = draw_batch(next(training_batches(cfg, "camvid_train")), metadata, "BGR")
    assert np.array_equal(rgb, bgr)


def test_unusable_image_is_reported_and_the_others_are_drawn(tool, camvid):
    (camvid / "images/train/train_2.jpg").unlink()
    (camvid / "annotations/train/train_4.png").write_bytes(b"")
    status, pictures, err = tool("camvid_train", "--number", 9)
    assert status == 1
    assert len(pictures) == 3
    lines = [line for line in err.splitlines() if line.startswith("not drawn: ")]
    assert len(lines) == 2 and "train_2.jpg" in lines[0] and "train_4.png" in lines[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["camvid_vall"], "'camvid_vall' must be a registered dataset.*camvid_val"),
        (["ade20k_150_val"], "ade20k_150_val.*DETECTRON2_DATASETS"),
        (["camvid_val", "--images", "val_7"], "`--images` .*'val_7'.*val_1"),
        (["camvid_val", "--output", "/dev/null/x"], "`--output` .*'/dev/null/x'"),
        (["camvid_val", "--seed", "-1"], "`--seed`.*-1"),
        (["camvid_val", "--augmented", "--config-file", "absent.yaml"], r"absent\.yaml"),
        (
            [*AUGMENTED, "--opts", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "8"],
            "`MODEL.SEM_SEG_HEAD.NUM_CLASSES` must be 11",
        ),
        (
            [*AUGMENTED, "--iteration", "-2"],
            "`--iteration`.*-2",
        ),
    ],
)
def test_mistake_of_the_user_is_reported_in_one_line(tool, camvid, arguments, message):
    status, pictures, err = tool(*arguments)
    assert status == 2 and not pictures
    (line,) = [line for line in err.splitlines() if not line.startswith("[")]
    assert line.startswith("error: ")
    assert re.search(message, line)


@pytest.mark.parametrize(
    "arguments",
    [["--augmented"], ["--config-file", "x"], ["--opacity", "2"], ["--number", "0"]],
)
def test_options_that_do_not_fit_are_refused(tool, arguments):
    status, _, err = tool("camvid_val", *arguments)
    assert status == 2 and arguments[0] in err.splitlines()[-1]
