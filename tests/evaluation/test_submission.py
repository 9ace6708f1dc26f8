"""Predictions as files: forms, names, palettes, and reading back."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from offseg_d2.data.datasets.ade20k import ADE20K_CLASSES
from offseg_d2.data.datasets.cityscapes import CITYSCAPES_LABEL_IDS
from offseg_d2.evaluation import PredictionFolder
from offseg_d2.evaluation.submission import CITYSCAPES_IDS

CITY = "leftImg8bit/val/ulm/ulm_000010_000019_leftImg8bit.png"
NUM_CLASSES = {"class_ids": 7, "cityscapes": 19, "ade20k": 150}


def make_folder(path, form: str, image_root: str = "") -> PredictionFolder:
    number = NUM_CLASSES[form]
    colors = np.random.default_rng(0).integers(0, 256, (number, 3))
    return PredictionFolder(str(path), form, colors, image_root)


def random_ids(number: int, none: bool = False) -> np.ndarray:
    ids = np.random.default_rng(1).integers(0, number, (20, 30))
    ids.flat[:number] = np.arange(number)
    if none:
        ids[-1] = 255
    return ids


@pytest.mark.parametrize("form", sorted(NUM_CLASSES))
@pytest.mark.parametrize("none", [False, True])
def test_file_holds_the_prediction_in_the_colours_of_the_classes(tmp_path, form, none):
    folder = make_folder(tmp_path, form)
    ids = random_ids(NUM_CLASSES[form], none)
    assert folder.load({"file_name": CITY}) is None
    path = folder.write(CITY, ids)
    np.testing.assert_array_equal(folder.load({"file_name": CITY}), ids)
    colors = np.random.default_rng(0).integers(0, 256, (NUM_CLASSES[form], 3))
    with Image.open(path) as picture:
        assert picture.mode == "P"
        shown, is_class = np.array(picture.convert("RGB")), ids < 255
    np.testing.assert_array_equal(shown[is_class], colors[ids[is_class]])


def test_cityscapes_files_hold_label_ids_that_the_label_map_takes_back(tmp_path):
    folder = make_folder(tmp_path, "cityscapes")
    path = folder.write(CITY, random_ids(19, none=True))
    assert path == str(tmp_path / "ulm_000010_000019_pred.png")
    with Image.open(path) as picture:
        stored = np.array(picture)
    train_ids = np.vectorize(CITYSCAPES_LABEL_IDS.get)(stored)
    np.testing.assert_array_equal(train_ids, random_ids(19, none=True))
    assert sorted({raw for raw, new in CITYSCAPES_LABEL_IDS.items() if new != 255}) == sorted(
        CITYSCAPES_IDS
    )


def test_ade20k_files_hold_1_to_150_under_the_name_of_the_image(tmp_path):
    folder = make_folder(tmp_path, "ade20k")
    assert len(ADE20K_CLASSES) == folder.num_classes
    path = folder.write("images/testing/ADE_test_00000001.jpg", random_ids(150))
    assert path == str(tmp_path / "ADE_test_00000001.png")
    with Image.open(path) as picture:
        np.testing.assert_array_equal(np.array(picture), random_ids(150) + 1)


def test_class_id_files_lie_as_the_images_do(tmp_path):
    folder = make_folder(tmp_path, "class_ids", "data/images")
    assert folder.path("data/images/a/0.jpg") == str(tmp_path / "a/0.png")
    assert folder.path("data/images/b/0.jpg") == str(tmp_path / "b/0.png")
    assert folder.path("elsewhere/1.jpg") == str(tmp_path / "1.png")


def test_two_images_with_one_path_are_refused(tmp_path):
    folder = make_folder(tmp_path, "class_ids")
    folder.path("a/0.jpg")
    with pytest.raises(ValueError, match=r"'a/0.jpg' and 'b/0.jpg' would both have '.*0.png'"):
        folder.path("b/0.jpg")


def test_image_that_is_not_named_as_in_cityscapes_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Images must be named <city>_.* one is 'street.png'"):
        make_folder(tmp_path, "cityscapes").path("street.png")


def test_form_for_another_number_of_classes_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'cityscapes' must be used with 19 classes, .* has 7"):
        PredictionFolder(str(tmp_path), "cityscapes", np.zeros((7, 3)))
    with pytest.raises(ValueError, match=r"'class_ids' must be used with at most 255 .* has 256"):
        PredictionFolder(str(tmp_path), "class_ids", np.zeros((256, 3)))
    with pytest.raises(ValueError, match=r"`TEST.SEM_SEG.PREDICTION_FORMAT` must be .* 'coco'"):
        PredictionFolder(str(tmp_path), "coco", np.zeros((7, 3)))


def test_damaged_file_or_one_of_another_size_is_not_taken(tmp_path):
    folder = make_folder(tmp_path, "class_ids")
    path = Path(folder.write("0.jpg", random_ids(7)))
    size = {"height": 20, "width": 30}
    assert folder.load({"file_name": "0.jpg", **size}) is not None
    assert folder.load({"file_name": "0.jpg", "height": 30, "width": 20}) is None
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"text"):
        path.write_bytes(damaged)
        assert folder.load({"file_name": "0.jpg", **size}) is None
