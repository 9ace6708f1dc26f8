import cv2
import numpy as np
import pytest

from offseg_d2.data.photometric import PhotometricDistortion, PhotometricTransform


def test_photometric_distortion_equals_the_literal_rule_with_the_same_draws():
    image = np.random.RandomState(0).randint(0, 256, (24, 32, 3)).astype(np.uint8)
    changed = 0
    for seed in range(200):
        np.random.seed(seed)
        expected = _literal_photometric(image)
        np.random.seed(seed)
        result = PhotometricDistortion().get_transform(image).apply_image(image)
        assert np.array_equal(result, expected), seed
        changed += not np.array_equal(result, image)
    assert changed > 150


def _literal_photometric(image):
    """The rule word for word, on whole float32 images."""

    def convert(values, alpha=1.0, beta=0.0):
        scaled = values.astype(np.float32) * np.float32(alpha) + np.float32(beta)
        return np.clip(scaled, 0, 255).astype(np.uint8)

    def contrast(values):
        if np.random.randint(2):
            return convert(values, alpha=np.random.uniform(0.5, 1.5))
        return values

    if np.random.randint(2):
        image = convert(image, beta=np.random.uniform(-32, 32))
    mode = np.random.randint(2)
    if mode == 1:
        image = contrast(image)
    if np.random.randint(2):
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        hsv[..., 1] = convert(hsv[..., 1], alpha=np.random.uniform(0.5, 1.5))
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if np.random.randint(2):
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + np.random.randint(-18, 18)) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    return contrast(image) if mode == 0 else image


def test_photometric_steps_truncate_and_clip_by_hand():
    pixel = np.array([[[10, 200, 101]]], np.uint8)

    def apply(brightness=None, contrast=None):
        transform = PhotometricTransform(brightness, contrast, None, None, contrast_first=True)
        return transform.apply_image(pixel)[0, 0].tolist()

    assert apply(brightness=-10.5) == [0, 189, 90]
    assert apply(brightness=0.9) == [10, 200, 101]
    assert apply(contrast=1.5) == [15, 255, 151]
    assert apply(brightness=60.0, contrast=0.5) == [35, 127, 80]  # 260 is clipped in between


def test_hue_turns_red_of_bgr_into_the_expected_colour():
    red = np.array([[[0, 0, 255]]], np.uint8)

    def turn(hue):
        return PhotometricTransform(None, None, None, hue, False).apply_image(red)[0, 0].tolist()

    assert turn(30) == [0, 255, 255]  # 60 degrees: yellow
    assert turn(-30) == [255, 0, 255]  # below 0 it goes on at 179: magenta


def test_photometric_distortion_leaves_labels_and_refuses_floats():
    transform = PhotometricTransform(20.0, None, None, None, False)
    labels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert np.array_equal(transform.apply_segmentation(labels), labels)
    with pytest.raises(TypeError, match="uint8"):
        transform.apply_image(np.zeros((2, 2, 3), np.float32))
