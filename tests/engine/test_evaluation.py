"""Evaluation of a configuration: evaluators, written predictions, pictures, sets without labels."""

import json
import runpy

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from torch import nn

from offseg_d2.config import ConfigError
from offseg_d2.engine import build_evaluator, evaluate
from offseg_d2.engine.evaluation import _describe_inference, folder_name
from tests.common import ROOT
from tests.engine.tiny import NUM_CLASSES, make_cfg

HEIGHT, WIDTH, NUM_IMAGES = 12, 16, 4
NAMES = [f"street_{index}" for index in range(NUM_IMAGES)]


class CountingModel(nn.Module):
    """Classifies pixels by their colour; fails after some images if asked to."""

    def __init__(self, fail_after: int = 10**9) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.fail_after, self.seen = fail_after, []

    def forward(self, batch: list[dict]) -> list[dict]:
        if len(self.seen) + len(batch) > self.fail_after:
            raise RuntimeError("power cut")
        self.seen += [sample["file_name"] for sample in batch]
        return [{"sem_seg": x["image"] * self.scale[:, None, None]} for x in batch]


@pytest.fixture
def dataset(tmp_path):
    """Four images and labels of three classes, registered as "tiny_streets" and "tiny_secret"."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "data"
    folder.mkdir()
    samples = []
    for name in NAMES:
        label = cv2.resize(rng.integers(0, 3, (3, 4)).astype(np.uint8), (WIDTH, HEIGHT))
        label[0, :3] = 9
        cv2.imwrite(str(folder / f"{name}_labels.png"), label)
        image = rng.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
        cv2.imwrite(str(folder / f"{name}.png"), image)
        label_file = str(folder / f"{name}_labels.png")
        samples.append({"file_name": str(folder / f"{name}.png"), "sem_seg_file_name": label_file})
    secret = [{"file_name": sample["file_name"]} for sample in samples]
    for name, entries in (("tiny_streets", samples), ("tiny_secret", secret)):
        DatasetCatalog.register(name, lambda entries=entries: entries)
        MetadataCatalog.get(name).set(
            stuff_classes=["road", "sky", "tree"],
            stuff_colors=[(90, 20, 30), (0, 0, 250), (0, 200, 0)],
            ignore_label=9,
            image_root=str(folder),
        )
    yield folder
    for name in ("tiny_streets", "tiny_secret"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def cfg(dataset, tmp_path):
    return make_test_cfg(tmp_path)


def make_test_cfg(tmp_path, *options, dataset_name: str = "tiny_streets"):
    return make_cfg(
        tmp_path / "run",
        *("DATASETS.TEST", (dataset_name,), "MODEL.SEM_SEG_HEAD.NUM_CLASSES", NUM_CLASSES),
        *("INPUT.RESIZE.SCALE_TEST", [WIDTH, HEIGHT], "DATALOADER.NUM_WORKERS", 0, *options),
    )


def test_evaluation_writes_a_report_unless_switched_off(cfg, tmp_path):
    results = evaluate(cfg, CountingModel())
    folder = tmp_path / "run/inference/tiny_streets"
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml",
        "metrics.json",
        "report.html",
    }
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["summary"]["mIoU"] == results["sem_seg"]["mIoU"]
    quiet = make_test_cfg(tmp_path / "quiet", "TEST.SEM_SEG.REPORT", "never")
    assert evaluate(quiet, CountingModel()) == results
    assert not (tmp_path / "quiet").exists()


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("camvid_test", "camvid_test"),
        ("folder:/data/own:val", "own_val"),
        ("folder:my data/:val", "val"),
        ("folder:own:val", "folder_own_val"),
        ("folder:/a/b c:val", "b_c_val"),
    ],
)
def test_folder_is_named_after_the_last_part_of_the_dataset(name, folder):
    assert folder_name(name) == folder


def test_datasets_that_would_share_a_folder_are_refused(cfg):
    names = ("folder:/a/own:val", "folder:/b/own:val")
    cfg.defrost()
    cfg.DATASETS.TEST = names
    with pytest.raises(ConfigError, match="would share the folder 'own_val'"):
        evaluate(cfg, CountingModel())


@pytest.mark.parametrize(("rule", "number"), [("eval_only", 0), ("never", 0), ("always", 1)])
def test_evaluation_within_a_training_writes_a_report_only_if_asked(
    dataset, tmp_path, rule, number
):
    cfg = make_test_cfg(tmp_path, "TEST.SEM_SEG.REPORT", rule)
    assert len(build_evaluator(cfg, "tiny_streets").observers) == number


def test_keys_reach_the_evaluator(dataset, tmp_path):
    options = ("TEST.SEM_SEG.BOUNDARY_IOU", True, "TEST.SEM_SEG.ABSENT_CLASSES", "skip")
    evaluator = build_evaluator(make_test_cfg(tmp_path, *options), "tiny_streets")
    assert evaluator.boundary
    assert evaluator.absent_classes == "skip"
    results = evaluate(make_test_cfg(tmp_path, *options), CountingModel())
    assert {"mBIoU", "BIoU-road"} <= results["sem_seg"].keys()
    with pytest.raises(ConfigError, match=r"`TEST.SEM_SEG.REPORT` must be .* but is 'yes'"):
        build_evaluator(make_test_cfg(tmp_path, "TEST.SEM_SEG.REPORT", "yes"), "tiny_streets")


def test_stopped_evaluation_goes_on_without_predicting_anything_twice(cfg, tmp_path):
    folder = tmp_path / "predictions"
    expected = evaluate(cfg, CountingModel())
    first, second, third = CountingModel(fail_after=3), CountingModel(), CountingModel()
    with pytest.raises(RuntimeError, match="power cut"):
        evaluate(cfg, first, predictions_dir=str(folder))
    assert len(list((folder / "tiny_streets").iterdir())) == 3
    results = evaluate(cfg, second, predictions_dir=str(folder))
    assert sorted(first.seen + second.seen) == [str(tmp_path / f"data/{n}.png") for n in NAMES]
    assert results == expected
    assert evaluate(cfg, third, predictions_dir=str(folder)) == expected
    assert third.seen == []
    with Image.open(folder / "tiny_streets/street_0.png") as picture:
        stored, colors = np.array(picture), np.array(picture.convert("RGB"))
    image = cv2.imread(str(tmp_path / "data/street_0.png"))[..., ::-1]
    np.testing.assert_array_equal(stored, image.argmax(axis=-1))
    palette = np.array(MetadataCatalog.get("tiny_streets").stuff_colors)
    np.testing.assert_array_equal(colors, palette[stored])


def test_predictions_of_another_model_or_setting_are_not_taken(cfg, tmp_path):
    folder, model = str(tmp_path / "predictions"), CountingModel()
    evaluate(cfg, model, predictions_dir=folder)
    other = CountingModel()
    nn.init.constant_(other.scale, 2.0)
    with pytest.raises(ConfigError, match=r"`--save-predictions` .* files of other weights;"):
        evaluate(cfg, other, predictions_dir=folder)
    changed = make_test_cfg(tmp_path, "TEST.SEM_SEG.MODE", "slide")
    with pytest.raises(ConfigError, match=r"files of other settings;"):
        evaluate(changed, model, predictions_dir=folder)
    # what only changes the scores may change
    scored = make_test_cfg(tmp_path, "TEST.SEM_SEG.BOUNDARY_IOU", True)
    evaluate(scored, model, predictions_dir=folder)
    assert len(model.seen) == NUM_IMAGES
    external = tmp_path / "external/tiny_streets"
    external.mkdir(parents=True)
    (external / "street_0.png").write_bytes(b"precious")
    with pytest.raises(ConfigError, match=r"'.*external/tiny_streets' holds files of other"):
        evaluate(cfg, model, predictions_dir=str(tmp_path / "external"))
    assert (external / "street_0.png").read_bytes() == b"precious"


def test_pictures_show_truth_and_prediction_beside_each_other(cfg, tmp_path):
    results = evaluate(cfg, CountingModel(), pictures_dir=str(tmp_path / "show"))
    assert results["sem_seg"]["pACC"] > 0
    folder = tmp_path / "show/tiny_streets"
    assert sorted(path.name for path in folder.iterdir()) == [f"{name}.jpg" for name in NAMES]
    picture = cv2.imread(str(folder / "street_0.jpg"))
    assert picture.shape[1] >= 2 * WIDTH
    assert picture.shape[0] > HEIGHT


def test_set_without_labels_is_predicted_but_not_evaluated(dataset, tmp_path, caplog):
    cfg = make_test_cfg(tmp_path, dataset_name="tiny_secret")
    directories = {"predictions_dir": tmp_path / "out", "pictures_dir": tmp_path / "show"}
    arguments = {key: str(path) for key, path in directories.items()}
    assert evaluate(cfg, CountingModel(), **arguments) == {}
    for path in directories.values():
        assert len(list((path / "tiny_secret").iterdir())) == NUM_IMAGES
    assert "tiny_secret has no labels" in caplog.text
    with pytest.raises(ConfigError, match=r"'tiny_secret' has none for 4 of 4 images, such as"):
        evaluate(cfg, CountingModel())


def test_several_sets_each_have_their_results_and_folders(dataset, tmp_path):
    cfg = make_test_cfg(tmp_path)
    cfg.defrost()
    cfg.DATASETS.TEST = ("tiny_streets", "tiny_secret")
    out = tmp_path / "out"
    results = evaluate(cfg, CountingModel(), predictions_dir=str(out))
    assert list(results) == ["tiny_streets", "tiny_secret"]
    assert results["tiny_secret"] == {}
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == [
        "tiny_secret",
        "tiny_streets",
    ]
    cfg.DATASETS.TEST = ()
    with pytest.raises(ConfigError, match=r"`DATASETS.TEST` must name a data set"):
        evaluate(cfg, CountingModel())


@pytest.mark.parametrize("flag", ["--save-predictions", "--show-dir"])
def test_flags_of_the_evaluation_are_refused_in_training(cfg, tmp_path, capsys, flag):
    config = tmp_path / "tiny.yaml"
    config.write_text(cfg.dump())
    main = runpy.run_path(str(ROOT / "tools/train_net.py"))["main"]
    with pytest.raises(SystemExit) as stop:
        main(["--config-file", str(config), flag, str(tmp_path / "out")])
    assert stop.value.code == 2
    assert "must be used with --eval-only" in capsys.readouterr().err


def test_predictions_of_nested_folders_keep_their_folders(tmp_path):
    root = tmp_path / "nested"
    (root / "classes.txt").parent.mkdir()
    (root / "classes.txt").write_text("road\nsky\ntree\n")
    for below in ("a", "b"):
        for kind in ("images", "annotations"):
            (root / kind / "val" / below).mkdir(parents=True)
            channels = 3 if kind == "images" else 1
            picture = np.zeros((HEIGHT, WIDTH, channels), np.uint8)
            cv2.imwrite(str(root / kind / "val" / below / "1.png"), picture)
    cfg = make_test_cfg(tmp_path, dataset_name=f"folder:{root}:val")
    out = tmp_path / "out"
    evaluate(cfg, CountingModel(), predictions_dir=str(out))
    written = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png"))
    assert written == ["nested_val/a/1.png", "nested_val/b/1.png"]


def test_misspelt_test_set_is_answered_with_the_nearest_names_before_anything_is_written(
    dataset, tmp_path
):
    cfg = make_test_cfg(tmp_path, dataset_name="tiny_street")
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"`DATASETS.TEST` must .* 'tiny_street' .* tiny_streets"):
        evaluate(cfg, CountingModel(), predictions_dir=str(out))
    assert not out.exists()


@pytest.mark.parametrize("augmented", [False, True])
def test_report_says_how_the_evaluation_was_made(cfg, augmented):
    cfg.defrost()
    cfg.TEST.SEM_SEG.TTA.ENABLED = augmented
    cfg.TEST.SEM_SEG.TTA.RATIOS = [0.5, 1.0]
    settings = _describe_inference(cfg)
    text = " ".join([*settings, *settings.values()])
    assert ("test scale" in text) is not augmented
    assert ("[0.5, 1.0] of the image's size, mirrored" in text) is augmented
