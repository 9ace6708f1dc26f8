"""Pictures and tables of the page."""

import numpy as np
import pytest
from detectron2.data import Metadata

from offseg_d2.web.legend import legend_html, message_html, pixel_html, scale_html, status_html
from offseg_d2.web.pictures import (
    LABELS,
    OVERLAY,
    SIDE_BY_SIDE,
    Heat,
    draw_difference,
    draw_heat,
    draw_labels,
    pixel_of_click,
    resize,
    screen_size,
)
from tests.web.common import drawn

CLASSES = Metadata(
    name="page", stuff_classes=["sky", "a<b>c", "car"],
    stuff_colors=[(0, 0, 255), (255, 0, 0), (0, 255, 0)],
)  # fmt: skip
IMAGE = drawn()
HALVES = np.zeros(IMAGE.shape[:2], dtype=np.uint8)
HALVES[:, 32:] = 1


def test_opacity_goes_from_the_image_to_the_colours():
    assert np.array_equal(draw_labels(IMAGE, HALVES, CLASSES, OVERLAY, opacity=0.0), IMAGE)
    colors = draw_labels(IMAGE, HALVES, CLASSES, OVERLAY, opacity=1.0)
    assert tuple(colors[5, 5]) == (0, 0, 255) and tuple(colors[5, 60]) == (255, 0, 0)
    mixed = draw_labels(IMAGE, HALVES, CLASSES, OVERLAY, opacity=0.5)
    expected = (IMAGE[5, 5].astype(int) + colors[5, 5]) / 2
    assert np.abs(mixed[5, 5] - expected).max() <= 1


def test_classes_that_are_not_chosen_stay_as_the_image_is():
    only = draw_labels(IMAGE, HALVES, CLASSES, OVERLAY, classes=["a<b>c"])
    assert np.array_equal(only[:, :30], IMAGE[:, :30])
    assert not np.array_equal(only[:, 40:], IMAGE[:, 40:])
    labels = draw_labels(IMAGE, HALVES, CLASSES, LABELS, classes=["a<b>c"])
    assert len(np.unique(labels[:, :30])) == 1 and tuple(labels[5, 60]) == (255, 0, 0)


def test_side_by_side_holds_image_and_overlay():
    both = draw_labels(IMAGE, HALVES, CLASSES, SIDE_BY_SIDE)
    width = IMAGE.shape[1]
    assert np.array_equal(both[:, :width], IMAGE)
    assert np.array_equal(both[:, -width:], draw_labels(IMAGE, HALVES, CLASSES, OVERLAY))


@pytest.mark.parametrize("size", [(96, 128), (1, 1), (360, 480), (3000, 4000), (5000, 40)])
def test_click_leads_back_to_the_pixel(size):
    rows, columns = screen_size(*size)
    assert max(rows, columns) <= 1600
    for x, y in ((0, 0), (size[1] - 1, size[0] - 1), (size[1] // 2, size[0] // 3)):
        click = (int((x + 0.5) * columns / size[1]), int((y + 0.5) * rows / size[0]))
        found = pixel_of_click(click, OVERLAY, size)
        tolerance = max(size[0] / rows, 1)  # several pixels may share one of the screen
        assert abs(found[0] - x) < tolerance and abs(found[1] - y) < tolerance
        beside = (click[0] + columns + 6, click[1])
        assert pixel_of_click(beside, SIDE_BY_SIDE, size) == found
        assert pixel_of_click(beside, OVERLAY, size) is None
    assert pixel_of_click((columns + 2, 0), SIDE_BY_SIDE, size) is None


def test_pictures_on_the_page_have_the_size_of_the_screen():
    assert resize(IMAGE, screen_size(*IMAGE.shape[:2])).shape[:2] == (576, 768)
    assert screen_size(1000, 1200) == (1000, 1200)


def test_difference_is_painted_where_labels_differ():
    differs = np.zeros((48, 64), dtype=bool)
    differs[:, :10] = True
    picture = draw_difference(IMAGE, differs)
    assert len(np.unique(picture[:, :20].reshape(-1, 3), axis=0)) == 1
    assert len(np.unique(picture[:, 20:].reshape(-1, 3), axis=0)) > 10


def test_heat_is_brightest_at_the_largest_value():
    values = np.zeros((24, 32))
    values[4, 8] = 2.0
    heat = Heat(values, "x", " %")
    assert heat.ends == ("0 %", "2 %")
    picture = draw_heat(IMAGE, heat, opacity=1.0)
    y, x = np.unravel_index(picture.sum(axis=2).argmax(), picture.shape[:2])
    assert abs(y - 17.5) < 4 and abs(x - 33.5) < 4
    assert not np.array_equal(draw_heat(IMAGE, heat, opacity=1.0, pixel=(50, 50)), picture)
    assert draw_heat(IMAGE, Heat(np.ones((3, 3)), "flat")).shape == IMAGE.shape


def test_legend_lists_classes_by_area_and_escapes_names():
    text = legend_html([HALVES], CLASSES)
    assert text.index("a&lt;b&gt;c") < text.index("sky")
    assert "<b>c" not in text and "car" not in text
    assert "75.0 %" in text and "25.0 %" in text
    assert "9\u202f216" in text and "#ff0000" in text
    assert text.count("<tr") == 3
    assert "class=dim" in legend_html([HALVES], CLASSES, chosen=["sky"])


def test_legend_of_two_models_has_both_areas_and_their_difference():
    other = np.zeros_like(HALVES)
    text = legend_html([HALVES, other], CLASSES, class_offsets=np.array([0.5, 1.0, 2.0]))
    row = text[text.index("sky") :]
    assert row.index("25.0 %") < row.index("100.0 %") < row.index("+75.0") < row.index("50 %")
    assert "0.0 %" in text and "\u221275.0" in text


def test_texts_are_escaped():
    for text in (
        message_html("<x>"),
        status_html(["<x>"]),
        pixel_html((1, 2), ["<x>"], [np.array([1, 2, 3])]),
        scale_html(Heat(np.eye(2), "<x>"), "<x>"),
    ):
        assert "<x>" not in text and "&lt;x&gt;" in text
    assert message_html("") == ""
