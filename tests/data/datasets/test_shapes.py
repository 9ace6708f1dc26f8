import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

import offseg_d2
from offseg_d2.data import read_image, read_label_map
from offseg_d2.data.datasets import (
    SHAPES_CLASSES,
    ShapesParams,
    generate_scene,
    generated,
    register_shapes,
    shapes,
    within_class_params,
)

SMALL = ShapesParams(num_train=3, num_val=2, size=(48, 64))


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Names of a small dataset, not yet made, and the root it will be made in."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "root"))
    register_shapes("tiny_shapes", SMALL)
    yield tmp_path / "root" / "shapes" / SMALL.folder_name
    for name in ("tiny_shapes_train", "tiny_shapes_val"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def crc(*arrays):
    value = 0
    for array in arrays:
        value = zlib.crc32(np.ascontiguousarray(array).tobytes(), value)
    return value


def test_scene_is_a_function_of_its_numbers_in_any_process():
    here = crc(*generate_scene(3, 1, 0.7))
    np.random.seed(99)
    assert crc(*generate_scene(3, 1, 0.7)) == here
    code = (
        "import zlib; from offseg_d2.data.datasets import generate_scene;"
        "image, label = generate_scene(3, 1, 0.7);"
        "print(zlib.crc32(label.tobytes(), zlib.crc32(image.tobytes())))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "77"},
        cwd=Path(offseg_d2.__file__).parents[1],
        capture_output=True,
        check=True,
    )
    assert int(out.stdout) == here
    others = [(4, 1, 0.7), (3, 2, 0.7), (3, 1, 0.6), (3, 1, 0.7, (192, 256), 0.8)]
    assert len({here, *(crc(*generate_scene(*o)) for o in others)}) == 5


def test_drawing_is_frozen_as_long_as_its_version_is():
    # Golden: whoever changes the drawing raises GENERATOR_VERSION and these values.
    labels = [generate_scene(i)[1] for i in range(3)]
    assert crc(*labels) == 800726038
    assert np.mean([generate_scene(i)[0].mean() for i in range(3)]) == pytest.approx(
        147.042, abs=0.01
    )


@pytest.mark.parametrize("size", [(192, 256), (97, 61), (32, 32), (384, 512)])
@pytest.mark.parametrize("variation", [0.0, 1.0])
def test_scene_has_the_asked_size_and_valid_classes(size, variation):
    for index in range(5):
        image, label = generate_scene(index, 0, variation, size)
        assert image.shape == (*size, 3) and image.dtype == np.uint8
        assert label.shape == size and label.dtype == np.uint8
        assert label.max() < len(SHAPES_CLASSES)


def test_every_class_occurs_often_and_no_image_is_flat():
    scenes = [generate_scene(i) for i in range(40)]
    present = np.array([[(label == k).any() for k in range(8)] for _, label in scenes])
    assert present.mean(0).min() > 0.3
    assert min(image.std() for image, _ in scenes) > 15


def test_variation_changes_the_looks_but_not_the_layout():
    plain_image, plain_label = generate_scene(2, variation=0.0)
    image, label = generate_scene(2, variation=1.0)
    assert np.array_equal(label, plain_label)
    assert np.abs(image.astype(int) - plain_image).mean() > 10


def draw(strength, index):
    params = within_class_params(strength)
    return generate_scene(index, params.seed, params.variation, params.size, params.shift)


def class_means(scene):
    """Mean colour of each class in each of 24 scenes, NaN where it is absent: (24, 8, 3)."""
    means = np.full((24, len(SHAPES_CLASSES), 3), np.nan)
    for index in range(24):
        image, label = scene(index)
        for k in np.unique(label):
            means[index, k] = image[label == k].mean(0)
    return means


def test_variation_spreads_a_class_over_images_until_colour_says_little():
    means = [class_means(lambda i, v=v: generate_scene(i, variation=v)) for v in (0.0, 0.5, 1.0)]
    spreads = [np.nanstd(m, axis=0).mean() for m in means]
    assert spreads[0] < 12 and spreads[1] > 2 * spreads[0] and spreads[2] > spreads[1]
    accuracies = []
    for of_strength in means:
        fixed_vectors = np.nanmean(of_strength, axis=0)  # what a fixed vector per class can know
        known = ~np.isnan(of_strength[..., 0])
        distances = np.linalg.norm(of_strength[:, :, None] - fixed_vectors, axis=-1)
        accuracies.append((distances[known].argmin(-1) == np.nonzero(known)[1]).mean())
    assert accuracies[0] > 0.9 and accuracies[2] < 0.5


@pytest.fixture(scope="module")
def within_class_means():
    """Strength of the within-class experiment -> means of the classes."""
    return {s: class_means(lambda i, s=s: draw(s, i)) for s in (0.0, 0.5, 1.0)}


def test_spread_between_images_grows_with_the_strength(within_class_means):
    none, medium, strong = (np.nanstd(m, axis=0).mean() for m in within_class_means.values())
    assert none < 12  # shading, noise and objects cut off by the border
    assert medium > 2 * none and strong > 1.3 * medium


def test_strong_variation_lies_between_images_rather_than_between_objects_of_one_image(
    within_class_means,
):
    # The halves of each class's pixels, left and right, stand for two objects of one image.
    within = []
    for index in range(24):
        image, label = draw(1.0, index)
        for k in np.unique(label):
            columns = np.nonzero(label == k)[1]
            colors, middle = image[label == k], np.median(columns)
            halves = [colors[columns < middle], colors[columns >= middle]]
            if min(len(half) for half in halves) > 20:
                within.append(np.std([half.mean(0) for half in halves], axis=0))
    assert np.nanstd(within_class_means[1.0], axis=0).mean() > 3 * np.mean(within)


def test_classes_keep_their_distance_within_an_image_of_strong_variation(within_class_means):
    def distance(means):
        """Mean distance of two classes' mean colours in one image."""
        lengths = np.linalg.norm(means[:, :, None] - means[:, None], axis=-1)
        return np.nanmean(lengths[:, ~np.eye(len(SHAPES_CLASSES), dtype=bool)])

    assert distance(within_class_means[1.0]) > 0.75 * distance(within_class_means[0.0])


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_layout_is_the_same_for_any_strength(strength):
    for index in range(5):
        assert np.array_equal(draw(strength, index)[1], draw(0.0, index)[1])


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"variation": 1.5}, r"`variation` must be in 0\.\.1"),
        ({"shift": -0.1}, r"`shift` must be in 0\.\.1, but is -0\.1"),
        ({"size": (20, 64)}, "at least 32"),
    ],
)
def test_unusable_argument_is_named(kwargs, match):
    with pytest.raises(ValueError, match=match):
        generate_scene(0, **kwargs)


def test_datasets_are_registered_without_being_made(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "root"))
    register_shapes()
    for name in ("shapes", "shapes_v0", "shapes_v50", "shapes_v100"):
        assert {f"{name}_train", f"{name}_val"} <= set(DatasetCatalog.list())
        classes = MetadataCatalog.get(f"{name}_train").stuff_classes
        assert classes == [n for n, _ in SHAPES_CLASSES]
    assert not (tmp_path / "root").exists()


def test_files_are_made_on_first_use_and_hold_the_scenes(small):
    train = DatasetCatalog.get("tiny_shapes_train")
    val = DatasetCatalog.get("tiny_shapes_val")
    assert (len(train), len(val)) == (3, 2)
    label_map = MetadataCatalog.get("tiny_shapes_val").label_map
    for samples, seed in ((train, 0), (val, 1)):
        for index, sample in enumerate(samples):
            image, label = generate_scene(index, seed, SMALL.variation, SMALL.size)
            assert sample["file_name"].startswith(str(small))
            assert np.array_equal(read_image(sample["file_name"])[..., ::-1], image)
            assert np.array_equal(read_label_map(sample["sem_seg_file_name"], label_map), label)
    assert json.loads((small / "params.json").read_text())["size"] == [48, 64]
    assert [p.name for p in small.parent.iterdir()] == [small.name]  # nothing temporary is left
    stamps = {p: p.stat().st_mtime_ns for p in small.rglob("*.png")}
    assert len(DatasetCatalog.get("tiny_shapes_val")) == 2  # again, without drawing
    assert {p: p.stat().st_mtime_ns for p in small.rglob("*.png")} == stamps


def test_other_parameters_and_versions_have_other_folders(monkeypatch):
    assert ShapesParams().folder_name == "v1-8f78141d"  # older than the shift
    others = [SMALL, ShapesParams(seed=1), *(within_class_params(s) for s in (0.0, 0.5, 1.0))]
    folders = {ShapesParams().folder_name, *(params.folder_name for params in others)}
    monkeypatch.setattr(shapes, "GENERATOR_VERSION", 999)
    assert len({*folders, SMALL.folder_name}) == 7


def test_unfinished_generation_leaves_nothing_that_looks_finished(tmp_path):
    def fill(path):
        with open(os.path.join(path, "half"), "w"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generated.generated_folder(str(tmp_path), "a/b", fill)
    assert os.listdir(tmp_path / "a") == []


def test_slower_process_takes_the_folder_of_the_faster_one(tmp_path):
    def write(path, text):
        with open(os.path.join(path, "file"), "w") as file:
            file.write(text)

    def fill(path):
        # While this process draws, another one finishes.
        generated.generated_folder(str(tmp_path), "a/b", lambda other: write(other, "fast"))
        write(path, "slow")

    assert generated.generated_folder(str(tmp_path), "a/b", fill) == str(tmp_path)
    assert (tmp_path / "a" / "b" / "file").read_text() == "fast"
    assert os.listdir(tmp_path / "a") == ["b"]


def test_unwritable_root_falls_back_to_a_temporary_folder(small, tmp_path, monkeypatch, caplog):
    # A file where the folder should be: not even root can write below it.
    (tmp_path / "root").write_text("")
    monkeypatch.setattr(generated.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    samples = DatasetCatalog.get("tiny_shapes_train")
    assert samples[0]["file_name"].startswith(str(tmp_path / "tmp" / "offseg_d2-"))
    assert "Cannot write below" in caplog.text
    assert DatasetCatalog.get("tiny_shapes_train") == samples


def test_every_class_of_scenes_with_more_classes_is_drawn():
    seen = {
        int(k) for i in range(40) for k in np.unique(shapes.generate_scene(i, 1, classes=32)[1])
    }
    assert seen == set(range(32))


@pytest.mark.parametrize("classes", shapes.NUMBERS_OF_CLASSES)
def test_names_of_scenes_with_more_classes_differ(classes):
    names = [name for name, _ in shapes.shapes_classes(classes)]
    assert len(set(names)) == len(names) == classes


@pytest.mark.parametrize("classes", [7, 154])
def test_number_of_classes_of_scenes_is_checked(classes):
    with pytest.raises(ValueError, match=rf"`classes` must be in 8..153, but is {classes}"):
        shapes.generate_scene(0, classes=classes)
