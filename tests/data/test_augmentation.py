import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data.transforms import AugInput, AugmentationList, NoOpTransform, RandomBrightness

from offseg_d2.config import add_offseg_config
from offseg_d2.data import build_augmentations
from offseg_d2.data.augmentation import (
    CategoryLimitedCrop,
    CvResizeTransform,
    KeepRatioResize,
    ShortestEdgeResize,
    keep_ratio_size,
    shortest_edge_size,
)
from offseg_d2.data.photometric import PhotometricDistortion
from offseg_d2.data.rotation import RandomRotate90, Rotate90Transform


@pytest.mark.parametrize(
    ("size", "target", "expected"),
    [
        ((360, 480), (480, 360), (360, 480)),  # identity
        ((512, 683), (2048, 512), (512, 683)),  # short side bounds
        ((683, 512), (2048, 512), (683, 512)),  # a portrait image has the same bounds
        ((300, 500), (520, 520), (312, 520)),  # long side bounds
        ((375, 500), (2048, 512), (512, 683)),  # 682.67 rounds up
        ((333, 500), (2048, 512), (512, 769)),  # 768.77
        ((200, 301), (150, 100), (100, 150)),  # factor 150 / 301: 99.67, 150
        ((1, 1000), (100, 100), (1, 100)),  # 0.1 would round to nothing
    ],
)
def test_keep_ratio_size_by_hand(size, target, expected):
    assert keep_ratio_size(*size, target) == expected


@pytest.mark.parametrize(
    ("size", "edge", "expected"),
    [
        ((400, 600), 512, (512, 768)),
        ((600, 400), 512, (768, 512)),
        ((200, 1000), 512, (410, 2048)),  # 512 x 2560 shrinks to 409.6 x 2048
        # 2048 / 1.9975 = 1025.3 rounds to 1025; its factor 1025 / 401 gives 2047.4: a pixel less
        ((401, 801), 1030, (1025, 2047)),
    ],
)
def test_shortest_edge_size_by_hand(size, edge, expected):
    assert shortest_edge_size(*size, edge, max_size=2048) == expected


def test_random_resize_truncates_the_target_before_it_scales():
    image = np.zeros((50, 100, 3), np.uint8)
    augmentation = KeepRatioResize((100, 51), (0.5, 2.0))
    np.random.seed(0)
    ratios = np.random.uniform(0.5, 2.0, 20)
    np.random.seed(0)
    for ratio in ratios:
        transform = augmentation.get_transform(image)
        target = (int(100 * ratio), int(51 * ratio))
        factor = min(target[0] / 100, target[1] / 50)
        expected = (int(50 * factor + 0.5), int(100 * factor + 0.5))
        assert (transform.new_h, transform.new_w) == expected


def test_shortest_edge_resize_draws_from_its_edges():
    image = np.zeros((100, 200, 3), np.uint8)
    np.random.seed(0)
    choice = ShortestEdgeResize((50, 80), 1000)
    assert {choice.get_transform(image).new_h for _ in range(30)} == {50, 80}
    between = ShortestEdgeResize((50, 53), 1000, "range")
    assert {between.get_transform(image).new_h for _ in range(60)} == {50, 51, 52, 53}


@pytest.mark.parametrize(("src", "dst"), [(2, 98), (7, 3), (360, 533), (480, 241), (5, 5)])
def test_label_resize_is_floor_of_the_index_ratio(src, dst):
    labels = (np.arange(src)[:, None] * 7 + np.arange(src + 1)).astype(np.uint8)
    resized = CvResizeTransform(src, src + 1, dst, dst + 3).apply_segmentation(labels)
    for y in range(dst):
        for x in (0, 1, dst // 2, dst + 2):
            assert resized[y, x] == labels[(y * src) // dst, (x * (src + 1)) // (dst + 3)]


def test_image_resize_is_bilinear_with_half_pixel_centres_and_no_low_pass():
    image = np.random.RandomState(0).randint(0, 256, (12, 20, 3)).astype(np.uint8)
    for new_h, new_w in ((6, 10), (5, 7), (24, 33)):
        resized = CvResizeTransform(12, 20, new_h, new_w).apply_image(image)
        exact = _bilinear(_bilinear(image.astype(float), new_h, 0), new_w, 1)
        # OpenCV's fixed-point weights have 11 bits; its result is rounded.
        assert np.abs(resized - exact).max() <= 0.5 + 2 * 255 / 2048


def _bilinear(values, new_size, axis):
    size = values.shape[axis]
    centres = np.clip((np.arange(new_size) + 0.5) * size / new_size - 0.5, 0, size - 1)
    low = np.floor(centres).astype(int)
    share = (centres - low).reshape([-1 if a == axis else 1 for a in range(values.ndim)])
    high = np.minimum(low + 1, size - 1)
    return values.take(low, axis) * (1 - share) + values.take(high, axis) * share


def test_coordinates_follow_the_resize_and_its_inverse():
    resize = CvResizeTransform(10, 20, 30, 40)
    assert resize.apply_coords(np.array([[20.0, 10.0]])).tolist() == [[40.0, 30.0]]
    assert resize.inverse().apply_coords(np.array([[40.0, 30.0]])).tolist() == [[20.0, 10.0]]


def test_crop_draws_y_then_x_and_takes_the_first_mixed_candidate():
    labels = np.zeros((20, 30), np.uint8)
    labels[:, 15:] = 1
    labels[:, 14:16] = 255
    crop = CategoryLimitedCrop((8, 10))
    image = np.zeros((20, 30, 3), np.uint8)
    taken = set()
    for seed in range(40):
        np.random.seed(seed)
        candidates = [(np.random.randint(0, 13), np.random.randint(0, 21)) for _ in range(11)]
        mixed = [_is_mixed_at(x) for _, x in candidates[:10]]
        expected = mixed.index(True) if any(mixed) else 10
        np.random.seed(seed)
        transform = crop.get_transform(image, labels)
        assert (transform.y0, transform.x0) == candidates[expected]
        assert (transform.h, transform.w) == (8, 10)
        taken.add(expected)
    assert len(taken) > 3


def _is_mixed_at(x):
    """Columns x .. x+9 hold 0 (up to 13) and 1 (from 16), neither at 3/4 or more."""
    zeros, ones = max(14 - x, 0), max(x + 10 - 16, 0)
    zeros, ones = min(zeros, 10), min(ones, 10)
    return min(zeros, ones) > 0 and max(zeros, ones) / (zeros + ones) < 0.75


@pytest.mark.parametrize(
    ("labels", "candidate"),
    [
        (np.zeros((20, 30), np.uint8), 10),  # the eleventh one unchecked
        (np.full((20, 30), 255, np.uint8), 10),
        (None, 0),
    ],
)
def test_crop_of_what_is_never_mixed_is_the_last_candidate_and_without_labels_the_first(
    labels, candidate
):
    np.random.seed(1)
    candidates = [(np.random.randint(0, 13), np.random.randint(0, 21)) for _ in range(11)]
    np.random.seed(1)
    transform = CategoryLimitedCrop((8, 10)).get_transform(np.zeros((20, 30, 3)), labels)
    assert (transform.y0, transform.x0) == candidates[candidate]


@pytest.mark.parametrize(
    ("labels", "accepted"),
    [
        ([0] * 6 + [1] * 2, False),  # three quarters of one class
        ([0] * 5 + [1] * 3, True),
        ([255] * 90 + [0, 0, 1], True),  # ignored pixels do not count
    ],
)
def test_crop_rejects_three_quarters_of_one_class_among_the_labelled_pixels(labels, accepted):
    crop = CategoryLimitedCrop((1, len(labels)))
    assert crop._is_mixed(np.array([labels], np.uint8)) == accepted


def test_smaller_image_stays_whole_and_one_small_side_too():
    labels = np.zeros((6, 30), np.uint8)
    image = np.zeros((6, 30, 3), np.uint8)
    assert isinstance(CategoryLimitedCrop((8, 40)).get_transform(image, labels), NoOpTransform)
    transform = CategoryLimitedCrop((8, 10)).get_transform(image, labels)
    assert (transform.y0, transform.h, transform.w) == (0, 6, 10)


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_offseg_config(cfg)
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute"
    cfg.INPUT.CROP.SIZE = [32, 48]
    return cfg


def test_training_order_is_resize_crop_flip_photometric_and_test_only_resizes(cfg):
    names = [type(a).__name__ for a in build_augmentations(cfg, is_train=True)]
    assert names == [
        "KeepRatioResize",
        "CategoryLimitedCrop",
        "RandomFlip",
        "PhotometricDistortion",
    ]
    cfg.INPUT.RESIZE.SCALE_TEST = [520, 520]
    (resize,) = build_augmentations(cfg, is_train=False)
    assert resize.scale == (520, 520) and resize.ratio_range == (1.0, 1.0)


def test_steps_can_be_switched_off_and_the_resize_chosen(cfg):
    cfg.INPUT.CROP.ENABLED = False
    cfg.INPUT.FLIP_PROBABILITY = 0.0
    cfg.INPUT.PHOTOMETRIC_DISTORTION = False
    cfg.INPUT.RESIZE.TYPE_TRAIN = "shortest_edge"
    cfg.INPUT.MIN_SIZE_TRAIN = (256, 512)
    (resize,) = build_augmentations(cfg, is_train=True)
    assert isinstance(resize, ShortestEdgeResize) and resize.edges == (256, 512)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("INPUT.RESIZE.TYPE_TRAIN", "stretch"),
        ("INPUT.RESIZE.RATIO_RANGE", [2.0, 0.5]),
        ("INPUT.RESIZE.SCALE", [512]),
        ("INPUT.CROP.TYPE", "relative"),
        ("INPUT.CROP.SIZE", [0.9, 0.9]),
        ("INPUT.VERTICAL_FLIP_PROBABILITY", 1.5),
        ("INPUT.ROTATE_90_PROBABILITY", -0.5),
    ],
)
def test_unusable_value_is_named_with_its_key(cfg, key, value):
    cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=f"`{key}` must be .* but is"):
        build_augmentations(cfg, is_train=True)


def test_augmentations_of_detectron2_can_stand_between_ours():
    augmentations = AugmentationList(
        [KeepRatioResize((40, 30)), RandomBrightness(0.5, 0.6), PhotometricDistortion()]
    )
    aug_input = AugInput(np.full((60, 80, 3), 100, np.uint8), sem_seg=np.zeros((60, 80), np.uint8))
    augmentations(aug_input)
    assert aug_input.image.shape == (30, 40, 3) and aug_input.image.dtype == np.uint8
    assert aug_input.sem_seg.shape == (30, 40)


# ---------------------------------------------------------------------- rotations


def test_flips_and_rotations_come_before_the_photometric_distortion(cfg):
    cfg.INPUT.VERTICAL_FLIP_PROBABILITY = cfg.INPUT.ROTATE_90_PROBABILITY = 0.5
    augmentations = build_augmentations(cfg, is_train=True)
    names = [type(a).__name__ for a in augmentations]
    assert names[2:] == ["RandomFlip", "RandomFlip", "RandomRotate90", "PhotometricDistortion"]
    assert [a.horizontal for a in augmentations[2:4]] == [True, False]
    assert len(build_augmentations(cfg, is_train=False)) == 1


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_rotation_turns_image_labels_and_coordinates(turns):
    image = np.random.RandomState(0).randint(0, 256, (4, 6, 3)).astype(np.uint8)
    transform = Rotate90Transform(4, 6, turns)
    np.testing.assert_array_equal(transform.apply_image(image), np.rot90(image, turns))
    labels = np.zeros((4, 6), np.uint8)
    labels[1, 4] = 7
    turned = transform.apply_segmentation(labels)
    np.testing.assert_array_equal(turned, np.rot90(labels, turns))
    (x, y) = transform.apply_coords(np.array([[4.5, 1.5]]))[0]  # the middle of the pixel
    assert turned[int(y), int(x)] == 7
    back = transform.inverse()
    np.testing.assert_array_equal(back.apply_image(transform.apply_image(image)), image)
    np.testing.assert_array_equal(back.apply_coords(np.array([[x, y]])), [[4.5, 1.5]])


@pytest.mark.parametrize(("prob", "share"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_angles_are_as_likely_and_the_probability_is_kept(prob, share):
    np.random.seed(0)
    augmentation = RandomRotate90(prob)
    drawn = [augmentation.get_transform(np.zeros((2, 3, 3))) for _ in range(3000)]
    turns = [t.turns for t in drawn if isinstance(t, Rotate90Transform)]
    assert len(turns) / 3000 == pytest.approx(share, abs=0.05)
    for angle in (1, 2, 3) if prob else ():
        assert turns.count(angle) / len(turns) == pytest.approx(1 / 3, abs=0.05)
