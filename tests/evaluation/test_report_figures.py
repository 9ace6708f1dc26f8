"""Pictures of a report: exact colours, small sizes, texts that suit the page."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from offseg_d2.evaluation.report_figures import (
    RIGHT_RGB,
    WRONG_RGB,
    draw_example,
    draw_histogram,
    draw_matrix,
    thumbnail_labels,
)

COLORS = np.array([[10, 20, 200], [200, 100, 0], [0, 160, 40]], np.uint8)
blocks = np.kron(np.array([[0, 1], [2, 255]], np.uint8), np.ones((16, 16), np.uint8))


def decode(address: str, mode: str = "RGBA") -> np.ndarray:
    head, data = address.split(",", 1)
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    return np.asarray(picture.convert(mode)).astype(int)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.randint(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("num_colors", [3, 300])
def test_classes_have_exactly_their_colours_and_the_rest_is_transparent(num_colors):
    colors = np.resize(COLORS, (num_colors, 3))
    prediction = np.where(blocks == 255, -1, blocks.astype(int))
    pictures = draw_example(None, blocks.astype(int), prediction, colors, 1000)
    for address in (pictures.truth, pictures.prediction)[: 2 if num_colors == 3 else 1]:
        painted = decode(address)
        for class_id in range(3):
            rgba = [*COLORS[class_id], 255]
            np.testing.assert_array_equal(painted[blocks == class_id], np.tile(rgba, (256, 1)))
    assert (decode(pictures.prediction)[blocks == 255][:, 3] == 0).all()


def test_error_map_is_red_where_wrong_and_grey_where_right():
    prediction = np.zeros_like(blocks)
    pictures = draw_example(noise(64, 64), blocks, prediction, COLORS, 255)
    red, green, blue = np.moveaxis(decode(pictures.error, "RGB"), -1, 0)
    inside = np.zeros(blocks.shape, bool)  # JPEG smears borders
    inside[2:14, 2:14] = inside[2:14, 18:30] = inside[18:30, 2:14] = inside[18:30, 18:30] = True
    wrong = (blocks != prediction) & (blocks != 255) & inside
    assert (red[wrong] > 100 + green[wrong]).all()
    right = (blocks == prediction) & inside
    assert (abs(red - green)[right] < 12).all()
    assert (abs(red - blue)[right] < 12).all()
    ignored = (blocks == 255) & inside
    assert (red[ignored] < blue[ignored]).all()


def test_pictures_have_the_size_of_the_label_map():
    pictures = draw_example(noise(200, 100), blocks, blocks, COLORS, 255)
    assert pictures.size == (32, 32)
    addresses = (pictures.image, pictures.truth, pictures.prediction, pictures.error)
    assert {decode(address).shape for address in addresses} == {(32, 32, 4)}


@pytest.mark.parametrize("shape", [(7, 5), (64, 100), (1024, 2048), (900, 3), (1, 1)])
def test_thumbnail_is_small_keeps_the_proportions_and_has_no_new_ids(shape):
    labels = np.random.randint(0, 2, shape) * 9
    small = thumbnail_labels(labels, 64)
    height, width = small.shape
    assert max(height, width) <= 64
    scale = max(*shape, 64) / 64
    assert abs(height - shape[0] / scale) <= 1 and abs(width - shape[1] / scale) <= 1
    assert np.isin(small, [0, 9]).all()


def test_thumbnail_of_a_small_map_is_the_map_and_of_a_large_one_samples_pixel_centres():
    np.testing.assert_array_equal(thumbnail_labels(blocks, 440), blocks)
    ramp = np.arange(9)[None].repeat(9, 0)
    assert thumbnail_labels(ramp, 3)[0].tolist() == [1, 4, 7]


def test_matrix_has_a_pixel_a_cell_and_its_opacity_grows_with_the_share():
    shares = np.array([[0.81, 0.04, 0.15], [0.0, 1.0, 0.0], [np.nan, np.nan, np.nan]])
    pixels = decode(draw_matrix(shares))
    assert pixels.shape == (3, 3, 4)
    assert pixels[0, 0].tolist() == [*RIGHT_RGB, round(0.9 * 255)]
    assert pixels[0, 1].tolist() == [*WRONG_RGB, round(0.2 * 255)]
    assert pixels[1, :, 3].tolist() == [0, 255, 0]
    assert (pixels[2, :, 3] == 0).all()


def test_histogram_has_the_page_s_font_and_colours_and_stands_alone():
    svg = draw_histogram([10.0, 12.0, 90.0], "mIoU", 37.3)
    assert svg.startswith("<svg viewBox=")
    assert "mIoU of an image (%)" in svg
    assert "currentColor" in svg and "var(--accent)" in svg and "var(--font)" in svg
    for word in ("http", "#000000", "DejaVu", "<style", "<metadata"):
        assert word not in svg
    assert "width=" not in svg.split(">")[0]  # the page decides
    assert svg == draw_histogram([10.0, 12.0, 90.0], "mIoU", 37.3)
