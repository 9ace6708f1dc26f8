"""Results for an image, without gradio."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import Metadata
from PIL import Image

from offseg_d2 import Segmenter
from offseg_d2.config import ConfigError
from offseg_d2.web import results
from offseg_d2.web.results import DIFFERENT, Models
from offseg_d2.web.uploads import Limits, UploadError
from tests.web.common import drawn, load, write_drawn


@pytest.fixture(scope="module")
def pair(offset_checkpoint, plain_checkpoint) -> Models:
    return load(offset_checkpoint, plain_checkpoint)


@pytest.fixture(scope="module")
def single(pair) -> Models:
    return Models(pair.segmenters[:1], Limits())


@pytest.fixture
def image(tmp_path) -> str:
    return str(write_drawn(tmp_path / "scene.png"))


def test_labels_are_those_of_the_checkpoint(single, image, offset_checkpoint):
    result = single.predict(image)
    expected = Segmenter.from_checkpoint(offset_checkpoint, device="cpu")(image).labels
    assert np.array_equal(result.predictions[0].labels, expected)
    assert result.predictions[0].labels.dtype == np.uint8
    assert len(np.unique(expected)) > 1, "the tests below need several classes"
    assert single.status(result).startswith("128 × 96 pixels · Model: ")
    assert "offset classifier, 8 classes" in single.describe(0)
    folder = Path(single.segmenters[0].predictor.cfg.MODEL.WEIGHTS).parent.name
    assert single.describe(0).startswith(f"{folder}/model_final.pth: ")


def test_masks_are_those_of_the_classes(single, image):
    result = single.predict(image)
    labels = result.predictions[0].labels
    [(picture, masks)] = single.annotated(result)
    assert np.array_equal(picture, drawn())
    assert np.array_equal(sum(mask for mask, _ in masks), np.ones(labels.shape))
    for mask, name in masks:
        assert np.array_equal(mask == 1, labels == single.classes.index(name))
        assert single.colors[name].startswith("#") and len(single.colors[name]) == 7


def test_large_pictures_are_reduced_to_the_screen(single, tmp_path):
    result = single.predict(str(write_drawn(tmp_path / "large.png", 20, 3200)))
    [(picture, masks)] = single.annotated(result)
    assert picture.shape == (10, 1600, 3) and masks[0][0].shape == (10, 1600)


def test_areas_are_listed_from_the_largest(single, image):
    result = single.predict(image)
    rows = single.areas(result)
    counts = np.bincount(result.predictions[0].labels.ravel(), minlength=len(single.classes))
    assert [row[2] for row in rows] == sorted(counts[counts > 0], reverse=True)
    for name, percent, pixels in rows:
        assert pixels == counts[single.classes.index(name)]
        assert abs(percent - 100 * pixels / (96 * 128)) <= 0.005


def test_two_models_are_compared(pair, image):
    result = pair.predict(image)
    first, second = (prediction.labels for prediction in result.predictions)
    assert (first != second).any()
    assert f"{DIFFERENT} in {100 * (first != second).mean():.1f} %" in pair.status(result)
    shown = pair.annotated(result)
    assert len(shown) == 3 and shown[2][1][0][1] == DIFFERENT
    assert np.array_equal(shown[2][1][0][0] == 1, first != second)
    rows = pair.areas(result)
    assert {row[0] for row in rows} == {pair.classes[i] for i in np.union1d(first, second)}
    for name, a, b, change in rows:
        index = pair.classes.index(name)
        assert abs(a - 100 * (first == index).mean()) <= 0.005
        assert abs(b - 100 * (second == index).mean()) <= 0.005 and abs(b - a - change) <= 0.015
    assert [max(row[1:3]) for row in rows] == sorted((max(r[1:3]) for r in rows), reverse=True)
    for x, y in ((5, 5), (100, 80)):
        expected = [pair.classes[first[y, x]], pair.classes[second[y, x]]]
        assert pair.classes_at(result, (x, y)) == expected


def test_models_of_different_classes_are_not_compared(single):
    predictor = type("Fake", (), {"metadata": Metadata(name="x", stuff_classes=["a", "b"])})()
    with pytest.raises(ConfigError, match=r"`--weights2` must be .*has 2 from \['a', 'b'\]"):
        Models([single.segmenters[0], Segmenter(predictor)], Limits())


def test_offsets_follow_class_and_pixel_and_run_the_model_once(single, image, monkeypatch):
    runs, trace_image = [], results.trace_image
    monkeypatch.setattr(
        results, "trace_image", lambda *args: runs.append(args) or trace_image(*args)
    )
    result = single.predict(image)
    first, second = single.classes[:2]
    choices = [(None, None), (first, None), (second, None), (second, (10, 10)), (None, (120, 90))]
    pictures = {single.draw_offsets(result, 0, *choice).tobytes() for choice in choices}
    assert len(pictures) == len(choices) and len(runs) == 1
    other = single.predict(image)
    single.draw_offsets(other, 0, None, None)
    single.draw_offsets(result, 0, None, None)
    assert len(runs) == 3, "only the image that was drawn last stays in memory"


def test_only_models_with_offsets_have_them(pair):
    assert [pair.has_offsets(index) for index in range(2)] == [True, False]


@pytest.mark.parametrize(
    ("error", "message"),
    [(RuntimeError("/secret/path"), "the server's log"), (MemoryError(), "not enough memory")],
)
def test_failure_of_a_model_shows_no_details(single, image, error, message, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(Segmenter, "__call__", fail)
    with pytest.raises(UploadError, match=message) as caught:
        single.predict(image)
    assert "secret" not in str(caught.value)


def test_files_have_the_size_of_the_image(pair, image, tmp_path):
    result = pair.predict(image)
    paths = pair.write_files(result, str(tmp_path / ""), opacity=0)
    names = ["labels_A", "overlay_A", "labels_B", "overlay_B"]
    assert paths == [str(tmp_path / f"scene_{name}.png") for name in names]
    for index, path in enumerate(paths[::2]):
        labels = Image.open(path)
        assert labels.mode == "P"
        assert np.array_equal(np.asarray(labels), result.predictions[index].labels)
        colors = np.asarray(labels.convert("RGB"))
        assert np.array_equal(colors, result.predictions[index].colors())
    assert np.array_equal(cv2.imread(paths[1])[..., ::-1], drawn())
