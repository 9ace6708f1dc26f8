"""The augmentation for devices, run on the CPU, against the one for single images."""

from itertools import islice

import cv2
import numpy as np
import pytest
import torch
from detectron2.data.transforms import RandomFlip

from offseg_d2.data import build_augmentations, build_train_loader
from offseg_d2.data.augmentation import CategoryLimitedCrop
from offseg_d2.data.device_augmentation import DeviceAugmentation, distort, flip, split_for_device
from offseg_d2.data.photometric import PhotometricDistortion, PhotometricTransform
from offseg_d2.data.rotation import RandomRotate90
from tests.data.common import camvid_cfg, write_camvid

KEY = "AUGMENT_ON_DEVICE"


@pytest.fixture(autouse=True)
def camvid(tmp_path, monkeypatch):
    write_camvid(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))


def both(changes=(), count=3):
    """Batches with augmentation by the workers, and on the device."""
    results = []
    for on_device in (False, True):
        cfg = camvid_cfg()
        cfg.INPUT.VERTICAL_FLIP_PROBABILITY = 0.5
        cfg.merge_from_list(["INPUT." + KEY, on_device, *changes])
        results.append([s for b in islice(build_train_loader(cfg), count) for s in b])
    return results


def colours(seed=0):
    """(64, 96, 3) uint8: noise above, smooth below, and grey, black and white."""
    image = np.random.RandomState(seed).randint(0, 256, (64, 96, 3)).astype(np.uint8)
    image[32:] = cv2.GaussianBlur(image[32:], (0, 0), 3)
    image[:2], image[2:4], image[4:6] = 128, 0, 255
    return image


def on_device(transform, image, red_first):
    distortion = PhotometricDistortion()
    distortion.get_transform = lambda _: transform
    augmentation = DeviceAugmentation([distortion], red_first=red_first)
    planes = torch.from_numpy(np.ascontiguousarray(image[..., ::-1] if red_first else image))
    row = augmentation.draw(image)
    result = distort(planes.permute(2, 0, 1)[None], row[None], red_first=red_first)
    result = result[0].permute(1, 2, 0).numpy()
    return result[..., ::-1] if red_first else result


@pytest.mark.parametrize("red_first", [True, False])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("contrast", [None, 0.55, 1.45])
@pytest.mark.parametrize("brightness", [None, -31.4, 27.3])
def test_brightness_and_contrast_are_those_of_the_cpu_bit_by_bit(
    brightness, contrast, first, red_first
):
    transform = PhotometricTransform(brightness, contrast, None, None, first)
    expected = transform.apply_image(colours())
    assert np.array_equal(on_device(transform, colours(), red_first), expected)


@pytest.mark.parametrize("red_first", [True, False])
@pytest.mark.parametrize(
    ("saturation", "hue", "largest"),
    [
        *((0.5, None, 1), (1.0, None, 1), (1.5, None, 1), (None, -18, 1), (None, 17, 1)),
        *((0.55, -18, 3), (1.45, 17, 3), (1.2, 3, 3)),
    ],
)
def test_colours_are_those_of_the_cpu_within_rounding(saturation, hue, largest, red_first):
    transform = PhotometricTransform(None, None, saturation, hue, False)
    expected = transform.apply_image(colours()).astype(int)
    error = np.abs(on_device(transform, colours(), red_first) - expected)
    assert error.max() <= largest and (error > 0).mean() < (0.05 if largest == 1 else 0.35)


def test_contrast_comes_before_or_after_the_colours():
    for first in (True, False):
        transform = PhotometricTransform(20.0, 1.5, 1.4, None, first)
        expected = transform.apply_image(colours()).astype(int)
        assert np.abs(on_device(transform, colours(), True) - expected).max() <= 2
        other = PhotometricTransform(20.0, 1.5, 1.4, None, not first).apply_image(colours())
        assert np.abs(on_device(transform, colours(), True) - other.astype(int)).max() > 20


@pytest.mark.parametrize("mapper", ["sem_seg", "instances"])
@pytest.mark.parametrize("form", ["RGB", "BGR"])
def test_the_loader_gives_the_samples_that_it_gives_without_the_key(form, mapper):
    changes = ["INPUT.FORMAT", form, "INPUT.DATASET_MAPPER_NAME", mapper]
    plain, device = both(changes)
    changed = 0
    for expected, found in zip(plain, device, strict=True):
        assert expected.keys() == found.keys()
        assert torch.equal(expected["sem_seg"], found["sem_seg"])  # flipped alike
        error = (expected["image"].int() - found["image"].int()).abs()
        assert error.max() <= 5  # contrast 1.5 on rounding
        changed += int(error.max() > 0)
        if mapper == "instances":
            for name, value in expected["instances"].get_fields().items():
                assert torch.equal(found["instances"].get(name), value)
    assert changed > 0  # the other arithmetic has been at work


@pytest.mark.parametrize("flips", [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_flips_are_equal_bit_by_bit(flips):
    keys = ["INPUT.FLIP_PROBABILITY", flips[0], "INPUT.VERTICAL_FLIP_PROBABILITY", flips[1]]
    plain, device = both([*keys, "INPUT.PHOTOMETRIC_DISTORTION", False])
    for expected, found in zip(plain, device, strict=True):
        assert torch.equal(expected["image"], found["image"])
        assert torch.equal(expected["sem_seg"], found["sem_seg"])


@pytest.mark.parametrize("axis", [-1, -2])
def test_only_the_stated_part_is_turned_round(axis):
    values = torch.randint(256, (3, 2, 5, 6), dtype=torch.uint8)
    labels = values[:, 0]
    found, found_labels = flip([values, labels], torch.tensor([0.0, 3.0, 5.0]), axis)
    assert torch.equal(found_labels, found[:, 0])
    assert torch.equal(found[0], values[0])
    for index, number in ((1, 3), (2, 5)):
        parts = values[index].tensor_split([number], axis)
        assert torch.equal(found[index], torch.cat([parts[0].flip(axis), parts[1]], axis))


def test_samples_of_different_sizes():
    plain, device = both(["INPUT.CROP.ENABLED", False])
    assert len({sample["image"].shape for sample in plain[:4]}) > 1
    for expected, found in zip(plain, device, strict=True):
        assert torch.equal(expected["sem_seg"], found["sem_seg"])
        assert (expected["image"].int() - found["image"].int()).abs().max() <= 5


def test_a_resumed_loader_goes_on_exactly():
    cfg = camvid_cfg(workers=2)
    cfg.INPUT.AUGMENT_ON_DEVICE = True
    whole = list(islice(build_train_loader(cfg), 4))
    for batch, again in zip(whole[2:], islice(build_train_loader(cfg, 2), 2), strict=True):
        assert all(torch.equal(a["image"], b["image"]) for a, b in zip(batch, again, strict=True))


def test_what_comes_before_other_augmentations_stays_with_the_workers():
    cfg = camvid_cfg()
    cfg.INPUT.ROTATE_90_PROBABILITY = 0.5
    cpu, device = split_for_device(build_augmentations(cfg, is_train=True))
    assert [type(a) for a in cpu[1:]] == [CategoryLimitedCrop, RandomFlip, RandomRotate90]
    assert [type(a) for a in device] == [PhotometricDistortion]
    cfg.INPUT.ROTATE_90_PROBABILITY = 0.0
    cpu, device = split_for_device(build_augmentations(cfg, is_train=True))
    assert [type(a) for a in cpu[1:]] == [CategoryLimitedCrop]
    assert [type(a) for a in device] == [RandomFlip, PhotometricDistortion]
