"""The fast forms of resize, crop and flip give the pixels of the readable ones."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data.transforms import (
    AugInput,
    AugmentationList,
    NoOpTransform,
    RandomBrightness,
    RandomFlip,
)
from PIL import Image

from offseg_d2.data import SemSegDatasetMapper, build_augmentations, build_lut, build_mapper
from offseg_d2.data.augmentation import CategoryLimitedCrop, KeepRatioResize, ShortestEdgeResize
from offseg_d2.data.fused import CvRandomFlip, ResizeCrop, ResizeCropTransform, fuse
from offseg_d2.data.image_io import EncodedImage
from offseg_d2.data.resizing import resize_image_window, resize_labels_window
from offseg_d2.data.rotation import RandomRotate90
from tests.common import assert_close
from tests.data.common import camvid_cfg, write_label

IDS = build_lut({i: i for i in range(256)})


def random_image(height, width, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)


def smooth_image(height, width):
    """A coarse random pattern enlarged, with nothing a reduced scale would lose."""
    coarse = random_image(5, 6)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def smooth_labels(height, width, classes=4):
    rng = np.random.RandomState(3)
    scores = [cv2.resize(rng.normal(size=(4, 5)), (width, height)) for _ in range(classes)]
    return np.argmax(scores, axis=0).astype(np.uint8)


def random_window(rng, height, width):
    h, w = rng.randint(1, height + 1), rng.randint(1, width + 1)
    return rng.randint(0, height - h + 1), rng.randint(0, width - w + 1), h, w


def test_window_of_a_resized_image_is_equal_to_cutting_it_out_in_each_bit():
    rng = np.random.RandomState(0)
    for number in range(400):
        height, width = rng.randint(1, 160, 2)
        # halving averages, whole factors and copies are cases of their own in OpenCV
        scale = [rng.uniform(0.2, 3), 0.5, 2, 1, 1 / 3][number % 5 if number % 3 else 0]
        size = max(int(height * scale + 0.5), 1), max(int(width * scale + rng.randint(3)), 1)
        image = random_image(height, width, number)
        whole = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
        for _ in range(3):
            y, x, h, w = random_window(rng, *size)
            window = resize_image_window(image, size, (y, x, h, w))
            assert np.array_equal(window, whole[y : y + h, x : x + w]), (image.shape, size, y, x)


def test_window_is_right_where_the_part_before_it_keeps_its_size():
    image = random_image(200, 300)  # 201 of 200 rows: its first ten are resized to ten
    whole = cv2.resize(image, (301, 201), interpolation=cv2.INTER_LINEAR)
    window = resize_image_window(image, (201, 301), (2, 3, 7, 8))
    assert np.array_equal(window, whole[2:9, 3:11])
    assert not np.array_equal(window, image[2:9, 3:11])


def test_window_of_resized_labels_follows_the_rule_for_single_pixels():
    rng = np.random.RandomState(1)
    for _ in range(60):
        height, width = rng.randint(1, 60, 2)
        size = tuple(rng.randint(1, 120, 2))
        labels = rng.randint(0, 256, (height, width)).astype(np.uint8)
        y, x, h, w = random_window(rng, *size)
        window = resize_labels_window(labels, size, (y, x, h, w))
        expected = [
            [labels[r * height // size[0], c * width // size[1]] for c in range(x, x + w)]
            for r in range(y, y + h)
        ]
        assert np.array_equal(window, expected)


RESIZES = [
    KeepRatioResize((80, 60), (0.5, 2.0)),
    KeepRatioResize((97, 60)),
    ShortestEdgeResize((30, 53, 90), 150),
]


@pytest.mark.parametrize("resize", RESIZES, ids=["keep_ratio", "fixed", "shortest_edge"])
@pytest.mark.parametrize("crop", [None, (40, 48), (70, 20), (200, 200)])
def test_fused_list_draws_and_gives_what_the_readable_list_does(resize, crop):
    crops = [] if crop is None else [CategoryLimitedCrop(crop, 0.6)]
    cfg = camvid_cfg()
    readable = [resize, *crops, *build_augmentations(cfg, is_train=True)[-2:]]
    image, labels = random_image(60, 81), smooth_labels(60, 81)
    fast = fuse(readable)
    assert type(fast[0]) is ResizeCrop and len(fast) == 3
    for seed in range(25):
        results = []
        for augmentations in (readable, fast):
            np.random.seed(seed)
            aug_input = AugInput(image, sem_seg=labels)
            AugmentationList(augmentations)(aug_input)
            results.append((aug_input.image, aug_input.sem_seg, np.random.rand()))
        assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True)), seed


def test_augmentations_that_cannot_be_fused_stay_what_and_where_they_are():
    brightness, rotation = RandomBrightness(0.5, 0.6), RandomRotate90(0.5)
    crop = CategoryLimitedCrop((4, 4))
    first, second = KeepRatioResize((9, 8)), KeepRatioResize((7, 6))
    assert fuse([crop, brightness, rotation]) == [crop, brightness, rotation]
    fused = fuse([first, brightness, crop, second, crop, crop])
    assert [type(a).__name__ for a in fused] == [
        "ResizeCrop",
        "RandomBrightness",
        "CategoryLimitedCrop",
        "ResizeCrop",
        "CategoryLimitedCrop",
    ]
    assert fused[0].crop is None and fused[3].crop is crop and fused[3].resize is second


def test_vertical_flip_is_that_of_detectron2():
    readable = RandomFlip(0.5, horizontal=False, vertical=True)
    (fast,) = fuse([readable])
    image, labels = random_image(5, 7), smooth_labels(5, 7)
    drawn = set()
    for seed in range(10):
        results = []
        for augmentation in (readable, fast):
            np.random.seed(seed)
            aug_input = AugInput(image, sem_seg=labels)
            transform = augmentation(aug_input)
            coordinates = transform.apply_coords(np.array([[2.0, 1.0]]))
            results.append((aug_input.image, aug_input.sem_seg, coordinates))
        assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))
        drawn.add(np.array_equal(aug_input.image, image[::-1]))
        assert aug_input.image.flags.c_contiguous
    assert drawn == {True, False}


def test_flip_keeps_its_probability_and_array_order():
    (never,), (always,) = fuse([RandomFlip(0.0)]), fuse([RandomFlip(1.0)])
    image = random_image(5, 7)
    assert isinstance(never, CvRandomFlip)
    assert isinstance(never.get_transform(image), NoOpTransform)
    transform = always.get_transform(image)
    flipped = transform.apply_image(image)
    assert np.array_equal(flipped, image[:, ::-1]) and flipped.flags.c_contiguous
    assert transform.apply_coords(np.array([[2.0, 1.0]])).tolist() == [[5.0, 1.0]]


def test_coordinates_follow_resize_and_crop():
    transform = ResizeCropTransform((10, 20), (30, 40), (3, 5, 20, 20))
    assert_close(transform.apply_coords(np.array([[10.0, 5.0]])), np.array([[15.0, 12.0]]))


@pytest.fixture
def sample(tmp_path):
    """A JPEG, 363 pixels high and 241 wide."""
    return write_sample(tmp_path, smooth_image(363, 241))


def write_sample(folder, image, **options):
    pixels = Image.fromarray(image[..., ::-1])
    pixels.save(folder / "a.jpg", quality=98, subsampling=0, **options)
    write_label(folder / "a.png", smooth_labels(363, 241))
    return {
        "file_name": str(folder / "a.jpg"),
        "sem_seg_file_name": str(folder / "a.png"),
    }


def mapped(sample, resize, reduced, seed=0, is_train=True):
    mapper = SemSegDatasetMapper(
        is_train,
        augmentations=fuse([resize, CategoryLimitedCrop((30, 40)), RandomFlip(0.5)]),
        label_lut=IDS,
        reduced_jpeg_decoding=reduced,
    )
    np.random.seed(seed)
    return mapper(sample), np.random.rand()


def spy_on_decoding(monkeypatch):
    """The reductions of all images that are decoded from now on."""
    used = []
    decode = EncodedImage.decode
    monkeypatch.setattr(
        EncodedImage, "decode", lambda self, factor=1: used.append(factor) or decode(self, factor)
    )
    return used


@pytest.mark.parametrize(
    ("short_side", "reduction"), [(241, 1), (121, 1), (120, 2), (61, 2), (60, 4), (30, 8)]
)
def test_reduced_decoding_changes_a_smooth_image_by_little_and_labels_and_draws_not_at_all(
    sample, short_side, reduction, monkeypatch
):
    used = spy_on_decoding(monkeypatch)
    resize = KeepRatioResize((10 * short_side, short_side))
    for seed in range(4):
        full, full_draw = mapped(sample, resize, False, seed)
        reduced, reduced_draw = mapped(sample, resize, True, seed)
        assert full_draw == reduced_draw
        assert (reduced["height"], reduced["width"]) == (363, 241)
        assert np.array_equal(reduced["sem_seg"], full["sem_seg"])
        difference = np.abs(reduced["image"].numpy().astype(int) - full["image"].numpy())
        # In grey levels; the pattern changes by up to 4 a pixel, and bends within 8 of them.
        assert difference.mean() < 1 and difference.max() <= 6
        assert reduction > 1 or difference.max() == 0
    assert used == [1, reduction] * 4


def test_reduced_decoding_is_off_by_default_and_at_test():
    cfg = camvid_cfg()
    assert not build_mapper(cfg, is_train=True).reduced_jpeg_decoding
    cfg.INPUT.REDUCED_JPEG_DECODING = True
    assert build_mapper(cfg, is_train=True).reduced_jpeg_decoding
    assert not build_mapper(cfg, is_train=False).reduced_jpeg_decoding


def test_other_formats_and_turned_jpegs_are_decoded_whole(sample, tmp_path, monkeypatch):
    used = spy_on_decoding(monkeypatch)
    resize = KeepRatioResize((300, 30))
    png = {**sample, "file_name": str(tmp_path / "image.png")}
    cv2.imwrite(png["file_name"], smooth_image(363, 241))
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "turned").mkdir()
    turned = write_sample(tmp_path / "turned", smooth_image(241, 363), exif=exif)
    for other in (png, turned):
        reduced, full = (mapped(other, resize, switch)[0] for switch in (True, False))
        assert np.array_equal(reduced["image"], full["image"])
        assert np.array_equal(reduced["sem_seg"], full["sem_seg"])
    assert used == [1] * 4


def test_broken_jpeg_is_named_at_reduced_scale_as_well(sample):
    path = sample["file_name"]
    content = Path(path).read_bytes()
    for keep in (20, len(content) // 2):
        Path(path).write_bytes(content[:keep])
        with pytest.raises(ValueError, match=r"a\.jpg.* is truncated or of another kind"):
            mapped(sample, KeepRatioResize((300, 30)), True)
