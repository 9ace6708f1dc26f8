"""Pictures: exact colours, readable names, legends, panels."""

import numpy as np
import pytest
import torch
from detectron2.data import Metadata
from matplotlib import font_manager
from PIL import ImageDraw

from offseg_d2.utils import fonts
from offseg_d2.visualization.classes import (
    class_colors,
    class_names,
    color_map,
    is_class,
    stripes,
    to_labels,
)
from offseg_d2.visualization.overlay import SemSegVisualizer, enlarge, legend, overlay, side_by_side

NAMES = ["sky", "road", "a rather long name"]
COLORS = [[10, 20, 200], [200, 100, 0], [0, 160, 40]]
METADATA = Metadata(name="three", stuff_classes=NAMES, stuff_colors=COLORS, ignore_label=255)
EMPTY = Metadata(name="none")


def noise_image(height: int, width: int) -> np.ndarray:
    return np.random.randint(0, 256, (height, width, 3), dtype=np.uint8)


def count_color(picture: np.ndarray, color: list[int]) -> int:
    return int((picture == np.array(color, dtype=np.uint8)).all(axis=-1).sum())


def test_scores_are_resized_before_the_best_class_is_chosen():
    scores = torch.tensor([[[0.0, 1.0]], [[0.3, 0.3]]])
    # Bilinear, the first class has 0, 0, 1/8, 3/8, ...; the nearest score would give 4 ones.
    assert to_labels(scores, (1, 8)).tolist() == [[1, 1, 1, 0, 0, 0, 0, 0]]


def test_half_precision_scores_that_need_gradients_are_accepted():
    scores = torch.randn(3, 4, 5, dtype=torch.bfloat16, requires_grad=True)
    assert to_labels(scores, (8, 10)).shape == (8, 10)


def test_class_ids_are_resized_by_the_nearest_one():
    labels = np.array([[0, 255], [7, 3]], dtype=np.uint8)
    expected = np.kron(labels, np.ones((2, 3))).astype(int)
    assert to_labels(labels, (4, 6)).tolist() == expected.tolist()
    assert to_labels(labels[:, ::-1]).tolist() == [[255, 0], [3, 7]]


@pytest.mark.parametrize("shape", [(4, 5), (1, 2, 4, 5)])
def test_neither_scores_nor_class_ids_is_an_error(shape):
    with pytest.raises(ValueError, match=r"`sem_seg` must be \(K, H, W\) scores or .*float32"):
        to_labels(torch.zeros(shape))


def test_a_color_map_holds_the_colours_of_the_metadata_and_black_for_no_class():
    labels = np.array([[0, 1, 2], [255, 3, -1]])
    painted = color_map(labels, METADATA)
    assert painted.dtype == np.uint8
    assert painted[0].tolist() == COLORS
    assert painted[1].tolist() == [[0, 0, 0]] * 3


def test_colours_and_names_that_the_metadata_lacks_are_made_up():
    colors = class_colors(EMPTY, 150)
    assert len({tuple(color) for color in colors.tolist()}) == 150
    assert class_names(EMPTY, 2) == ["class 0", "class 1"]
    partly = Metadata(name="partly", stuff_classes=NAMES, stuff_colors=COLORS[:1])
    assert class_colors(partly).shape == (3, 3)
    assert class_colors(partly)[0].tolist() == COLORS[0]


@pytest.mark.parametrize("opacity", [0.3, 0.8, 1.0])
def test_an_overlay_mixes_every_pixel_with_the_colour_of_its_class(opacity):
    image = noise_image(37, 53)
    picture = overlay(image, np.full((37, 53), 1), METADATA, opacity=opacity)
    expected = (1 - opacity) * image + opacity * np.array(COLORS[1])
    assert picture.shape == image.shape
    assert np.abs(picture - expected).max() <= 1.0


def test_ignored_pixels_stay_as_they_are():
    image = noise_image(24, 40)
    labels = np.full((24, 40), 2, dtype=np.uint8)
    labels[:, 20:] = 255
    picture = overlay(image, labels, METADATA)
    assert np.array_equal(picture[:, 20:], image[:, 20:])
    assert (picture[:, :19] != image[:, :19]).any(axis=-1).mean() > 0.9


def test_opacity_zero_gives_the_image():
    image = noise_image(24, 40)
    picture = overlay(image, np.random.randint(0, 3, (24, 40)), METADATA, opacity=0.0)
    assert np.array_equal(picture, image)


def test_an_impossible_opacity_is_an_error():
    with pytest.raises(ValueError, match=r"opacity must be in 0\.\.1, but is 1\.5"):
        overlay(noise_image(8, 8), np.zeros((8, 8), dtype=int), METADATA, opacity=1.5)


def test_scores_of_any_size_are_drawn_over_the_whole_image():
    image = np.zeros((40, 60, 3), dtype=np.uint8)
    scores = torch.zeros(3, 10, 15)
    scores[2] = 1.0
    picture = overlay(image, scores, METADATA, opacity=1.0)
    assert count_color(picture, COLORS[2]) == 40 * 60


def test_an_overlay_can_be_larger_than_its_image():
    image = noise_image(20, 30)
    picture = overlay(image, np.zeros((20, 30), dtype=int), METADATA, scale=1.5)
    assert picture.shape == (30, 45, 3)
    assert enlarge(image, 0.5).shape == (10, 15, 3)


@pytest.mark.parametrize(("side", "named"), [(319, False), (320, True)])
def test_names_are_written_on_large_pictures_only(side, named):
    image = np.full((side, side, 3), 90, dtype=np.uint8)
    labels = np.zeros((side, side), dtype=int)
    plain = overlay(image, labels, METADATA, names=False)
    assert len(np.unique(plain.reshape(-1, 3), axis=0)) == 1
    assert (not np.array_equal(overlay(image, labels, METADATA), plain)) == named


class Recorder(SemSegVisualizer):
    """Notes where names are written."""

    def __init__(self, image: np.ndarray, metadata: Metadata = METADATA) -> None:
        super().__init__(image, metadata)
        self.written: list[tuple[str, int, int]] = []

    def draw_text(self, text, position, **options):
        # Names are centred on the point below whose top edge Detectron2 asks for.
        middle = position[1] + 0.65 * options["font_size"] * self.output.dpi / 72
        self.written.append((text, round(position[0]), round(middle)))
        return super().draw_text(text, position, **options)


def written_names(labels: np.ndarray, **options) -> list[tuple[str, int, int]]:
    recorder = Recorder(np.zeros((*labels.shape, 3), dtype=np.uint8))
    recorder.draw_sem_seg(labels, **options)
    return recorder.written


def test_a_name_stands_on_its_own_class():
    labels = np.zeros((300, 400), dtype=int)
    labels[50:290, 100:340] = 1  # the centre of class 0 lies on class 1
    labels[5:45, 250:398] = 2
    written = written_names(labels)
    assert len(written) == 3
    assert all(NAMES[labels[y, x]] == text for text, x, y in written)


def test_regions_too_thin_for_a_name_get_none_but_are_coloured():
    labels = np.zeros((300, 400), dtype=int)
    labels[:, 200] = 1
    assert {text for text, _, _ in written_names(labels)} == {"sky"}
    picture = overlay(np.zeros((300, 400, 3), np.uint8), labels, METADATA, opacity=1.0, names=False)
    column = picture[:, 200].astype(int) - COLORS[1]
    assert (column >= 0).all(), "the colour itself, lightened where it borders on another class"


def test_names_never_cover_each_other():
    labels = np.zeros((200, 200), dtype=int)
    labels[100:116] = 1  # both are just wide enough, but lie one upon the other
    labels[116:132] = 2
    written = [entry for entry in written_names(labels) if entry[0] != "sky"]
    assert len(written) == 1 or abs(written[0][2] - written[1][2]) >= 12


def test_small_regions_are_left_without_name_on_request():
    labels = np.zeros((200, 200), dtype=int)
    labels[50:100, 50:150] = 1
    assert len(written_names(labels)) == 2
    assert [text for text, _, _ in written_names(labels, area_threshold=5001)] == ["sky"]


def test_large_separate_regions_of_a_class_each_get_its_name():
    labels = np.zeros((200, 300), dtype=int)
    labels[:, 140:160] = 1
    assert [text for text, _, _ in written_names(labels)].count("sky") == 2


def test_a_legend_lists_the_classes_that_are_there():
    everything = legend(METADATA, 400)
    present = legend(METADATA, 400, np.array([[0, 2, 2, 255]]))
    assert all(count_color(everything, color) > 50 for color in COLORS)
    assert [count_color(present, color) > 50 for color in COLORS] == [True, False, True]


def test_a_legend_wraps_to_its_width():
    wide, narrow = legend(METADATA, 600), legend(METADATA, 150)
    assert (wide.shape[1], narrow.shape[1]) == (600, 150)
    assert narrow.shape[0] > wide.shape[0]
    assert all(count_color(narrow, color) > 50 for color in COLORS)


def test_pictures_side_by_side_keep_their_pixels():
    left, right = noise_image(60, 80), noise_image(60, 50)
    row = side_by_side([left, right], gap=4)
    assert row.shape == (60, 134, 3)
    assert np.array_equal(row[:, :80], left)
    assert np.array_equal(row[:, 84:], right)
    captioned = side_by_side([left, right], ["left", "right"], gap=4)
    assert np.array_equal(captioned[-60:], row)
    assert captioned[:-60, :80].min() < 100, "a caption stands above the left picture"
    assert captioned[:-60, 84:].min() < 100, "a caption stands above the right picture"


def test_pictures_of_different_heights_do_not_go_side_by_side():
    with pytest.raises(ValueError, match=r"one height, but have \[5, 6\]"):
        side_by_side([noise_image(5, 5), noise_image(6, 5)])


def test_font_is_one_that_has_the_characters_else_a_warning_names_them(monkeypatch, caplog):
    metadata = Metadata(stuff_classes=["道路", "天空"], stuff_colors=[(9, 9, 9), (200, 9, 9)])
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: ["/absent.ttf"])
    fonts.font_file.cache_clear()
    legend(metadata, 200)
    legend(metadata, 200)
    assert caplog.text.count("No font on this system") == 1 and "道" in caplog.text
    own = fonts.font_file(frozenset("abc"))
    charmaps = {own: {}, "/with.ttf": {ord(character): 1 for character in "道路天空"}}

    class Font:
        def __init__(self, path):
            self.path = path

        def get_charmap(self):
            return charmaps[self.path]

    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: ["/with.ttf"])
    monkeypatch.setattr(font_manager, "get_font", Font)
    fonts.font_file.cache_clear()
    assert fonts.font_file(frozenset("道路")) == "/with.ttf"
    fonts.font_file.cache_clear()


LONG = "a name of a class that is far too long for the width of a small picture, " * 2


def drawn_texts(monkeypatch) -> list[tuple[float, str, float]]:
    """Record left edge, text and right edge of all that is written."""
    written = []
    draw = ImageDraw.ImageDraw.text

    def text(self, xy, content, *, font, anchor, **options):
        left, _, right, _ = self.textbbox(xy, content, font=font, anchor=anchor)
        written.append((left, content, right))
        draw(self, xy, content, font=font, anchor=anchor, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return written


@pytest.mark.parametrize("name", [LONG, "x" * 90, "路" * 50])
@pytest.mark.parametrize("width", [120, 333])
def test_long_names_in_legends_are_wrapped_and_whole(monkeypatch, name, width):
    written = drawn_texts(monkeypatch)
    metadata = Metadata(stuff_classes=["sky", name, "road"], stuff_colors=COLORS)
    strip = legend(metadata, width)
    assert all(left >= 0 and right <= width for left, _, right in written)
    shown = "".join(text for _, text, _ in written).replace(" ", "")
    assert shown == f"sky{name}road".replace(" ", "")
    assert all(count_color(strip, color) > 50 for color in COLORS)


def test_captions_are_cut_at_their_end(monkeypatch):
    written = drawn_texts(monkeypatch)
    side_by_side([noise_image(20, 100), noise_image(20, 90)], [LONG, "short"])
    (left, text, right), (_, short, _) = written
    assert text.endswith("…") and LONG.startswith(text[:-1]) and len(text) > 9
    assert left >= 0 and right <= 100 and short == "short"


def test_names_wider_than_the_picture_are_left_to_the_legend():
    metadata = Metadata(stuff_classes=[LONG, "road"], stuff_colors=COLORS[:2])
    recorder = Recorder(np.zeros((330, 330, 3), dtype=np.uint8), metadata)
    labels = np.zeros((330, 330), dtype=int)
    labels[:100] = 1
    recorder.draw_sem_seg(labels)
    assert [text for text, _, _ in recorder.written] == ["road"]


def test_ignored_pixels_have_stripes_where_it_is_asked_for():
    labels = np.array([[0, 0, 255, 255]] * 40).repeat(20, axis=1)
    image = noise_image(*labels.shape)
    bare = overlay(image, labels, METADATA, opacity=0.0, names=False)
    plain = overlay(image, labels, METADATA, opacity=1.0, names=False)
    marked = overlay(image, labels, METADATA, opacity=1.0, names=False, ignored=True)
    inside = ~is_class(labels, 3)
    inside[:, :41] = False  # borders are lightened
    assert np.array_equal(plain[inside], bare[inside])
    assert np.array_equal(marked[inside], stripes(*labels.shape)[inside])
    assert len(np.unique(marked[inside], axis=0)) == 2
    assert np.array_equal(marked[:, :39], plain[:, :39])


def test_legend_lists_ignored_pixels_only_where_they_are_marked(monkeypatch):
    written = drawn_texts(monkeypatch)
    legend(METADATA, 600, np.array([[0, 255]]))
    legend(METADATA, 600, np.array([[0, 1]]), ignored=True)
    assert "ignored" not in [text for _, text, _ in written]
    legend(METADATA, 600, np.array([[0, 255, -1]]), ignored=True)
    assert [text for _, text, _ in written][-2:] == ["sky", "ignored"]


def test_dollar_signs_in_names_are_drawn_as_they_are():
    metadata = Metadata(stuff_classes=["a $x_{ b$"], stuff_colors=COLORS[:1])
    overlay(noise_image(330, 400), np.zeros((330, 400), int), metadata)
