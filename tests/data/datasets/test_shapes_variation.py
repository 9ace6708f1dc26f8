"""Scenes of the experiment on within-class variation: what grows with it, and what does not."""

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from offseg_d2.data.datasets import (
    SHAPES_CLASSES,
    ShapesParams,
    generate_scene,
    within_class_params,
)

NUM_SCENES = 24


def draw(strength: float, index: int) -> tuple[np.ndarray, np.ndarray]:
    params = within_class_params(strength)
    return generate_scene(index, params.seed, params.variation, params.size, params.shift)


def class_means(strength: float) -> np.ndarray:
    """Mean colour of each class in each scene, NaN where it is absent: (scenes, 8, 3)."""
    means = np.full((NUM_SCENES, len(SHAPES_CLASSES), 3), np.nan)
    for index in range(NUM_SCENES):
        image, label = draw(strength, index)
        for k in np.unique(label):
            means[index, k] = image[label == k].mean(0)
    return means


def spread_between_images(strength: float) -> float:
    return float(np.nanstd(class_means(strength), axis=0).mean())


def test_without_variation_a_class_looks_the_same_in_every_image():
    assert spread_between_images(0.0) < 12  # shading, noise and objects cut off by the border


def test_spread_between_images_grows_with_the_strength():
    none, medium, strong = (spread_between_images(s) for s in (0.0, 0.5, 1.0))
    assert medium > 2 * none and strong > 1.3 * medium


def test_strong_variation_lies_between_images_rather_than_between_objects_of_one_image():
    # Two objects of a class in one image against two images' means of the class: the halves of
    # each class's pixels, left and right, stand for objects.
    within, between = [], class_means(1.0)
    for index in range(NUM_SCENES):
        image, label = draw(1.0, index)
        for k in np.unique(label):
            columns = np.nonzero(label == k)[1]
            colors, middle = image[label == k], np.median(columns)
            halves = [colors[columns < middle], colors[columns >= middle]]
            if min(len(half) for half in halves) > 20:
                within.append(np.std([half.mean(0) for half in halves], axis=0))
    assert np.nanstd(between, axis=0).mean() > 3 * np.mean(within)


def test_classes_keep_their_distance_within_an_image_of_strong_variation():
    def distance(strength: float) -> float:
        """Mean distance of two classes' mean colours in one image."""
        means = class_means(strength)
        pairs = means[:, :, None] - means[:, None]
        lengths = np.linalg.norm(pairs, axis=-1)
        return float(np.nanmean(lengths[:, ~np.eye(len(SHAPES_CLASSES), dtype=bool)]))

    assert distance(1.0) > 0.75 * distance(0.0)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_layout_is_the_same_for_any_strength(strength):
    for index in range(5):
        assert np.array_equal(draw(strength, index)[1], draw(0.0, index)[1])


def test_shifted_scene_is_a_function_of_its_numbers():
    first, again, other = (generate_scene(3, 1, 0.1, shift=s)[0] for s in (0.8, 0.8, 0.7))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_folders_of_scenes_without_shift_keep_their_old_name():
    assert ShapesParams().folder_name == "v1-8f78141d"
    assert ShapesParams(shift=0.5).folder_name != ShapesParams().folder_name


def test_shift_out_of_range_is_named():
    with pytest.raises(ValueError, match=r"`shift` must be in 0\.\.1, but is -0\.1"):
        generate_scene(0, shift=-0.1)


def test_datasets_of_each_strength_are_registered_and_differ(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    names = {f"shapes_v{p}_{split}" for p in (0, 50, 100) for split in ("train", "val")}
    assert names <= set(DatasetCatalog.list())
    assert MetadataCatalog.get("shapes_v50_val").stuff_classes == [n for n, _ in SHAPES_CLASSES]
    assert len({within_class_params(s).folder_name for s in (0.0, 0.5, 1.0)}) == 3
