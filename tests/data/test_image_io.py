import cv2
import numpy as np
import pytest
from PIL import Image

from offseg_d2.data import DataFileError, read_image
from tests.data.common import write_image


def test_image_is_bgr_as_stored(tmp_path):
    pixels = write_image(tmp_path / "a.png")
    assert np.array_equal(read_image(str(tmp_path / "a.png")), pixels)


def test_gray_image_becomes_three_equal_channels(tmp_path):
    gray = np.arange(48, dtype=np.uint8).reshape(6, 8)
    Image.fromarray(gray).save(tmp_path / "a.png")
    image = read_image(str(tmp_path / "a.png"))
    assert np.array_equal(image, np.repeat(gray[..., None], 3, axis=2))


def test_exif_orientation_is_applied(tmp_path):
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, 8:] = (255, 0, 0)  # RGB: right half red
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=100)
    image = read_image(str(tmp_path / "a.jpg"))
    assert image.shape == (16, 8, 3)
    assert image[:7, :, 2].max() < 60 and image[9:, :, 2].min() > 200  # red is at the bottom


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_truncated_image_is_named(tmp_path, suffix):
    path = tmp_path / f"cut{suffix}"
    encoded = cv2.imencode(suffix, np.random.RandomState(0).randint(0, 255, (64, 64, 3)))[1]
    path.write_bytes(encoded.tobytes()[: len(encoded) * 3 // 4])
    with pytest.raises(DataFileError, match=f"cut{suffix}.* is truncated or of another kind"):
        read_image(str(path))


def test_empty_and_missing_files_are_named(tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    with pytest.raises(DataFileError, match=r"empty\.jpg.* is empty"):
        read_image(str(tmp_path / "empty.jpg"))
    with pytest.raises(DataFileError, match=r"gone\.jpg.*No such file"):
        read_image(str(tmp_path / "gone.jpg"))
