"""tools/demo.py and tools/make_demo.py: pictures of files, and the user's mistakes."""

import re
import runpy
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from offseg_d2.checkpoint import CheckpointError
from offseg_d2.commands import make_demo as make_demo_command
from offseg_d2.commands.demo import parse_args
from offseg_d2.config import ConfigError, load_config
from offseg_d2.data import build_mapper
from offseg_d2.data.datasets import ShapesParams, register_shapes
from offseg_d2.engine import Trainer
from offseg_d2.inference.demo import make_folder, plan
from offseg_d2.inference.predictor import Predictor, find_images, output_paths
from offseg_d2.inference.video import VideoWriter
from tests.common import ROOT, SMALL_OFFSEG, seed_all

CONFIG = ROOT / "configs/shapes/offseg_t_offset_demo.yaml"
# The images below are 96x64; the network sees them at half size.
SMALL = (*SMALL_OFFSEG[:-2], "INPUT.RESIZE.SCALE_TEST", [48, 32])


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A checkpoint of an untrained model."""
    seed_all()
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": build_model(load_config(str(CONFIG), SMALL)).state_dict()}, path)
    return path


@pytest.fixture
def images(tmp_path) -> Path:
    """A folder with three images and a text file."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("one.png", "two.JPG", "three.bmp"):
        pixels = np.random.randint(0, 256, (64, 96, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / name), cv2.blur(pixels, (9, 9)))
    (folder / "notes.txt").write_text("no image")
    return folder


pytestmark = pytest.mark.usefixtures("loggers")


@pytest.fixture
def demo(monkeypatch, capsys, weights):
    """Calls tools/demo.py; returns exit status, output and error text."""

    def call(*arguments, opts=("MODEL.WEIGHTS", weights)) -> tuple[int, str, str]:
        argv = ["demo.py", "--config-file", CONFIG, *arguments, "--opts", *SMALL, *opts]
        monkeypatch.setattr(sys, "argv", [str(argument) for argument in argv])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / "tools/demo.py"), run_name="__main__")
        printed = capsys.readouterr()
        return stop.value.code, printed.out, printed.err

    return call


def test_incomplete_weights_are_refused_naming_the_first_that_lacks(weights, tmp_path):
    state = torch.load(weights, weights_only=True)["model"]
    offset = [name for name in state if "class_offset" in name]
    plain = {name: value for name, value in state.items() if name not in offset}
    assert offset
    torch.save({"model": plain}, tmp_path / "plain.pth")
    cfg = load_config(str(CONFIG), [*SMALL, "MODEL.WEIGHTS", str(tmp_path / "plain.pth")])
    with pytest.raises(CheckpointError, match=rf"plain\.pth` .* lacks `{re.escape(offset[0])}`"):
        Predictor(cfg)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("CLASS_NORM", "`MODEL.SEM_SEG_HEAD.CLASS_NORM` False, but is of one with True"),
        ("FEATURE_OFFSET", r"last layer, .*`sem_seg_head\.classifier\.offset_learning\.feature_"),
    ],
)
def test_weights_of_offsets_that_the_model_has_not_are_refused(weights, key, message):
    """It would score, but as no model that was trained."""
    opts = [*SMALL, f"MODEL.SEM_SEG_HEAD.{key}", False, "MODEL.WEIGHTS", str(weights)]
    with pytest.raises(CheckpointError, match=message):
        Predictor(load_config(str(CONFIG), opts))


def test_pictures_keep_the_names_and_sizes_of_their_images(demo, images, tmp_path):
    status, out, _ = demo("--input", images, "--output", tmp_path / "out")
    assert status == 0
    assert f"3 pictures lie in {tmp_path / 'out'}" in out
    pictures = {path.name: cv2.imread(str(path)) for path in (tmp_path / "out").iterdir()}
    assert sorted(pictures) == ["one.png", "three.png", "two.JPG"]
    assert {picture.shape for picture in pictures.values()} == {(64, 96, 3)}


def test_videos_are_counted_apart(demo, images, tmp_path):
    with VideoWriter(str(tmp_path / "film.mp4"), 5) as film:
        film.write(np.zeros((64, 96, 3), np.uint8))
    film_only = ("--input", tmp_path / "film.mp4", "--output", tmp_path / "out")
    assert f"1 video lies in {tmp_path / 'out'}" in demo(*film_only)[1]
    shutil.copy(tmp_path / "film.mp4", images)
    _, out, _ = demo("--input", images, "--output", tmp_path / "all")
    assert f"3 pictures and 1 video lie in {tmp_path / 'all'}" in out


def test_side_by_side_shows_the_image_the_overlay_and_a_legend(demo, images, tmp_path):
    picture_of = {}
    for opacity in ("0", "1"):
        out = tmp_path / opacity
        arguments = ("--input", images / "one.png", "--output", out, "--opacity", opacity)
        status, out_text, _ = demo(*arguments, "--side-by-side")
        assert status == 0 and f"1 picture lies in {out}" in out_text
        picture_of[opacity] = cv2.imread(str(out / "one.png"))
    image, picture = cv2.imread(str(images / "one.png")), picture_of["1"]
    assert picture.shape[0] > 64
    assert np.array_equal(picture[:64, :96], image)
    assert np.array_equal(picture_of["0"][:64, -96:], image)
    assert not np.array_equal(picture[:64, -96:], image)


@pytest.mark.parametrize("flags", [("--batch-size", 2), ("--batch-size", 4, "--deploy")])
def test_batches_and_the_deployed_model_draw_the_same_label_maps(demo, images, tmp_path, flags):
    label_maps = ("--draw", "label-map")
    assert demo("--input", images, "--output", tmp_path / "a", *label_maps)[0] == 0
    assert demo("--input", images, "--output", tmp_path / "b", *label_maps, *flags)[0] == 0
    for path in (tmp_path / "a").iterdir():
        labels, same = (cv2.imread(str(tmp_path / x / path.name)) for x in "ab")
        assert np.mean(labels == same) > 0.999


def test_an_empty_batch_is_refused(demo, images, tmp_path):
    status, _, err = demo("--input", images, "--output", tmp_path / "out", "--batch-size", "0")
    assert status == 2
    assert "`--batch-size` must be at least 1, but is 0." in err


def test_an_unreadable_file_is_named_and_the_others_are_drawn(demo, images, tmp_path):
    (images / "broken.png").write_bytes((images / "one.png").read_bytes()[:40])
    status, out, err = demo("--input", images, "--output", tmp_path / "out")
    assert status == 1
    assert "3 pictures" in out
    assert len(list((tmp_path / "out").iterdir())) == 3
    lines = [line for line in err.splitlines() if line.startswith("not drawn:")]
    assert len(lines) == 1
    assert str(images / "broken.png") in lines[0]


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        ((), "`MODEL.WEIGHTS` must name the file to predict with, but is ''."),
        (("MODEL.WEIGHTS", "absent.pth"), "must be an existing file, but is 'absent.pth'."),
        (("MODEL.WEIGHT", "x.pth"), "Did you mean `MODEL.WEIGHTS`"),
    ],
)
def test_unusable_weights_are_one_sentence(demo, images, tmp_path, opts, message):
    status, _, err = demo("--input", images, "--output", tmp_path / "out", opts=opts)
    assert status == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_input_that_matches_nothing_is_one_sentence(demo, images, tmp_path):
    pattern = str(images / "*.webp")
    status, _, err = demo("--input", images, pattern, "--output", tmp_path / "out")
    assert status == 2
    assert err.startswith("error: `--input` must name images")
    assert err.strip().endswith(f"nothing matches '{pattern}'.")


def test_images_are_never_overwritten(demo, images, tmp_path):
    before = {path: path.read_bytes() for path in images.iterdir()}
    (tmp_path / "link").symlink_to(images)
    for output in (images, tmp_path / "link", images / ".." / "images"):
        status, _, err = demo("--input", images / "one.png", "--output", output)
        assert status == 2
        assert "no image is overwritten" in err
    assert {path: path.read_bytes() for path in images.iterdir()} == before
    # Another name is no harm: three.bmp becomes three.png.
    assert demo("--input", images / "three.bmp", "--output", images)[0] == 0


def test_images_of_one_name_are_an_error(images):
    other = images / "other"
    other.mkdir()
    cv2.imwrite(str(other / "one.bmp"), np.zeros((8, 8, 3), dtype=np.uint8))
    found = find_images([str(images), str(other)])
    with pytest.raises(ValueError, match=r"one\.png' and .*one\.bmp' would both be drawn"):
        output_paths(found, "out")


def test_inputs_are_files_folders_and_patterns_each_image_once(images):
    pattern = str(images / "t*.[Jb]*")
    found = find_images([str(images / "three.bmp"), pattern, str(images)])
    names = [Path(path).name for path in found]
    assert names == ["three.bmp", "two.JPG", "one.png"]
    assert find_images([str(images / "notes.txt")]) == [str(images / "notes.txt")]


def test_the_predictor_sees_what_the_evaluation_sees(images, weights):
    cfg = load_config(str(CONFIG), [*SMALL, "MODEL.WEIGHTS", str(weights)])
    predictor = Predictor(cfg)
    assert predictor.metadata is MetadataCatalog.get("shapes_val")
    file_name = str(images / "one.png")
    sample = build_mapper(cfg, is_train=False)({"file_name": file_name})
    assert sample["image"].shape == (3, 32, 48)
    with torch.no_grad():
        expected = predictor.model([sample])[0]["sem_seg"]
    scores = predictor(cv2.imread(file_name))
    assert scores.shape == (8, 64, 96)
    assert torch.equal(scores, expected)


def test_checkpoint_alone_is_enough(images, tmp_path, monkeypatch):
    opts = [*SMALL, "MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path / "run")]
    trainer = Trainer(load_config(str(CONFIG), [*opts, "DATASETS.TEST", "()", "SEED", 1]))
    trainer.iter = 0
    trainer.save_checkpoint("model_final")
    argv = ["demo.py", "--weights", str(tmp_path / "run" / "model_final.pth"), "--legend"]
    argv += ["--input", str(images), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "tools/demo.py"), run_name="__main__")
    assert stop.value.code == 0
    assert cv2.imread(str(tmp_path / "out" / "one.png")).shape[0] > 64


def test_another_number_of_classes_is_an_error(weights):
    opts = ["MODEL.WEIGHTS", str(weights), "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 11]
    with pytest.raises(ConfigError, match=r"must be 8 for dataset 'shapes_val', but is 11"):
        Predictor(load_config(str(CONFIG), opts))


@pytest.fixture
def make_demo(tmp_path, monkeypatch):
    """The command make-demo, on five scenes and for seconds."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    register_shapes("few_shapes", ShapesParams(num_train=2, num_val=3, size=(64, 96)))
    config = tmp_path / "demo.yaml"
    config.write_text(
        f"_BASE_: [{CONFIG}]\n"
        "DATASETS: {TRAIN: [few_shapes_train], TEST: [few_shapes_val]}\n"
        "INPUT: {RESIZE: {SCALE: [96, 64], SCALE_TEST: [96, 64]}, CROP: {SIZE: [32, 64]}}\n"
        "MODEL:\n"
        "  EFFICIENTFORMER_V2: {VARIANT: s0}\n"
        "  OFFSEG: {LEVEL_CHANNELS: [32, 32, 32, 32]}\n"
        "  SEM_SEG_HEAD: {CONVS_DIM: 64}\n"
        "SOLVER: {IMS_PER_BATCH: 2, MAX_ITER: 2, WARMUP_ITERS: 1}\n"
        f"OUTPUT_DIR: {tmp_path / 'run'}\n"
    )
    monkeypatch.setattr(make_demo_command, "CONFIG", str(config))
    yield make_demo_command
    for split in ("train", "val"):
        DatasetCatalog.remove(f"few_shapes_{split}")
        MetadataCatalog.remove(f"few_shapes_{split}")


def test_make_demo_trains_again_evaluates_and_draws(make_demo, tmp_path, capsys):
    run = tmp_path / "run"
    (run / "pictures").mkdir(parents=True)
    for stale in ("model_0000009.pth", "metrics.json", "pictures/old.png", "my notes.md"):
        (run / stale).write_text("of an earlier run")
    make_demo.main([])
    printed = capsys.readouterr().out
    assert "mIoU on few_shapes_val: " in printed
    assert "always the most frequent class: " in printed
    assert str(run / "pictures") in printed
    assert not (run / "model_0000009.pth").exists()
    assert (run / "my notes.md").exists()
    assert (run / "model_final.pth").exists()
    assert '"sem_seg/mIoU"' in (run / "metrics.json").read_text()
    pictures = sorted(path.name for path in (run / "pictures").iterdir())
    assert pictures == [f"val_{index:05d}.png" for index in range(3)]
    # Three panels of one and a half times the size, captions above and a legend below.
    shape = cv2.imread(str(run / "pictures/val_00000.png")).shape
    assert shape[0] > 96
    assert shape[1] >= 3 * 144


def test_chance_is_the_share_of_the_largest_class_over_the_number_of_classes(make_demo):
    samples = DatasetCatalog.get("few_shapes_val")
    labels = np.stack([cv2.imread(r["sem_seg_file_name"], -1) for r in samples])
    largest = np.bincount(labels.ravel()).max() / labels.size
    assert make_demo.chance_miou("few_shapes_val") == pytest.approx(100 * largest / 8)


def test_file_as_output_folder_is_refused_before_the_model_is_loaded(tmp_path, images):
    file = tmp_path / "file"
    file.write_text("no folder")
    with pytest.raises(ValueError, match=r"`--output` must be a folder, but '.*file' is a file"):
        plan([str(images)], str(file), "overlay")
    with pytest.raises(OSError, match=r"`--output` must be a folder that can be made, but '.*/x'"):
        make_folder(str(file / "x"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-frames", "-1"], "`--max-frames` must be at least 0, but is -1"),
        (["--draw", "label-map"], "`--draw` must be overlay or side-by-side for a camera"),
    ],
)
def test_options_that_a_camera_cannot_have_are_refused(options, message, capsys):
    words = ["--weights", "a.pth", "--webcam", "0", "--output", "o", *options]
    with pytest.raises(SystemExit) as caught:
        parse_args(words)
    assert caught.value.code == 2 and message in capsys.readouterr().err
