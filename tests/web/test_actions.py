"""What happens on each event of the page, without a browser and without gradio."""

import dataclasses

import cv2
import numpy as np
import pytest
from detectron2.data import Metadata
from PIL import Image

from offseg_d2 import Segmenter
from offseg_d2.config import ConfigError
from offseg_d2.web.actions import Actions, Choices
from offseg_d2.web.offset_maps import MAPS, SIMILARITY
from offseg_d2.web.pictures import LABELS, OFFSETS, OVERLAY, SIDE_BY_SIDE, VIEWS, screen_size
from offseg_d2.web.uploads import Limits
from offseg_d2.web.workbench import LoadedModel, Workbench, difference
from tests.web.common import drawn, workbench, write_drawn


@pytest.fixture(scope="module")
def single(offset_checkpoint) -> Actions:
    return Actions(workbench(offset_checkpoint))


@pytest.fixture(scope="module")
def pair(offset_checkpoint, plain_checkpoint) -> Actions:
    return Actions(workbench(offset_checkpoint, plain_checkpoint))


@pytest.fixture
def image(tmp_path) -> tuple[str, str]:
    return str(write_drawn(tmp_path / "scene.png")), "scene"


def session_of(actions: Actions, image: tuple[str, str]):
    session, message, status = actions.analyse(image)
    assert session is not None and not message and "128 × 96 pixels" in status
    return session


def test_labels_are_those_of_the_checkpoint(single, image, offset_checkpoint):
    session = session_of(single, image)
    expected = Segmenter.from_checkpoint(offset_checkpoint, device="cpu")(image[0]).labels
    assert np.array_equal(session.results[0].labels, expected)
    assert len(np.unique(expected)) > 1, "the tests below need several classes"


def test_models_run_once_for_all_views_and_opacities(single, image):
    before = single.workbench.runs
    session = session_of(single, image)
    assert single.workbench.runs == before + 1
    drawings = [
        single.draw(session, None, Choices(view=view, opacity=opacity, classes=classes))
        for view in (OVERLAY, LABELS, SIDE_BY_SIDE)
        for opacity, classes in ((20, ()), (80, ()), (80, ("sky",)))
    ]
    assert single.workbench.runs == before + 1
    assert len({drawing.pictures[0].pixels.tobytes() for drawing in drawings}) == 8
    for pixel in (None, (3, 4)):  # of the offsets only the first look costs a run
        for kind in MAPS:
            single.draw(session, pixel, Choices(view=OFFSETS, offset_map=kind))
    assert single.workbench.runs == before + 2


def test_offsets_are_shown_and_follow_class_and_pixel(single, image):
    session = session_of(single, image)

    def picture(pixel=None, **choices) -> bytes:
        drawing = single.draw(session, pixel, Choices(view=OFFSETS, **choices))
        assert "ramp" in drawing.scale and "offset: how far" in drawing.legend
        assert drawing.pictures[0].pixels.shape[:2] == screen_size(96, 128)
        return drawing.pictures[0].pixels.tobytes()

    assert len({picture(offset_map=kind) for kind in MAPS}) == len(MAPS)
    first, second = single.workbench.classes[:2]
    assert picture(offset_class=first) != picture(offset_class=second)
    like = MAPS[-1]
    assert picture((10, 10), offset_map=like) != picture((120, 90), offset_map=like)


def test_plain_model_says_that_it_has_no_offsets(pair, plain_checkpoint, image):
    plain = Actions(workbench(plain_checkpoint))
    session = session_of(plain, image)
    drawing = plain.draw(session, None, Choices(view=OFFSETS))
    assert "This model has a plain classifier, so it has no offsets" in drawing.scale
    expected = plain.draw(session, None, Choices(view=OVERLAY))
    assert np.array_equal(drawing.pictures[0].pixels, expected.pictures[0].pixels)
    both = pair.draw(session_of(pair, image), None, Choices(view=OFFSETS, offset_map=SIMILARITY))
    assert "Model A: coupled similarity" in both.scale and "Model B has a plain" in both.scale


def test_comparison_tells_the_share_that_differs(pair, image):
    session = session_of(pair, image)
    first, second = (result.labels for result in session.results)
    share = f"{100 * (first != second).mean():.1f} %"
    assert (difference(session) == (first != second)).all() and difference(session).any()
    assert share in pair.analyse(image)[2]
    drawing = pair.draw(session, None, Choices())
    assert [picture.label for picture in drawing.pictures] == [
        "A: Overlay",
        "B: Overlay",
        f"Where A and B differ: {share}",
    ]
    assert "B − A" in drawing.legend


def test_click_tells_the_class_of_each_model(pair, image):
    session = session_of(pair, image)
    names = pair.workbench.classes
    rows, columns = screen_size(96, 128)
    for x, y in ((5, 5), (100, 80)):
        click = (int((x + 0.5) * columns / 128), int((y + 0.5) * rows / 96))
        for shift, view in ((0, OVERLAY), (columns + 6, SIDE_BY_SIDE)):
            pixel, text, name = pair.click(session, (click[0] + shift, click[1]), view)
            assert pixel == (x, y) and f"Pixel {x}, {y}" in text
            assert name == names[session.results[0].labels[y, x]]
            assert f"<b>{names[session.results[1].labels[y, x]]}</b>" in text
    assert pair.click(session, (columns + 2, 5), SIDE_BY_SIDE)[0] is None


def test_coordinates_outside_the_image_are_refused(single, image):
    session = session_of(single, image)
    pixel, text, name = single.find(session, (128, 3))
    assert pixel is None and name is None and "x in 0..127 and y in 0..95" in text
    assert single.find(session, (None, None))[0] == (0, 0)
    assert "Choose an image first" in single.find(None, (0, 0))[1]


def test_nothing_is_shown_without_an_image(pair):
    session, message, status = pair.analyse(None)
    assert session is None and message == "" and "Choose an image" in status
    drawing = pair.draw(None, None, Choices())
    assert len(drawing.pictures) == 3 and all(p.pixels is None for p in drawing.pictures)
    assert drawing.legend == "" and pair.click(None, (1, 1), OVERLAY)[0] is None


def test_bad_file_gives_a_message_and_no_session(single, tmp_path):
    path = tmp_path / "letter.jpg"
    path.write_text("Dear reader")
    session, message, status = single.analyse((str(path), "letter"))
    assert session is None and status == "" and "must be an image" in message
    assert "role=alert" in message and str(tmp_path) not in message


@pytest.mark.parametrize(
    ("error", "message"),
    [(RuntimeError("/secret/path"), "the server&#x27;s log"), (MemoryError(), "not enough memory")],
)
def test_failure_of_a_model_shows_no_details(single, image, error, message, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr("offseg_d2.inference.predictor.Predictor.label_map", fail)
    session, text, _ = single.analyse(image)
    assert session is None and message in text and "secret" not in text


def test_downloads_have_the_size_of_the_image(pair, image, tmp_path):
    session = session_of(pair, image)
    path = pair.write(str(tmp_path), session, 1, overlay=False)
    assert path.endswith("scene_labels_B.png")
    assert np.array_equal(np.asarray(Image.open(path)), session.results[1].labels)
    path = pair.write(str(tmp_path), session, 0, overlay=True, opacity=0)
    assert path.endswith("scene_overlay_A.png")
    assert np.array_equal(cv2.imread(path)[..., ::-1], drawn())


def test_models_of_different_classes_are_not_compared(single):
    model = single.workbench.models[0]
    other = dataclasses.replace(model)
    predictor = type("Fake", (), {"metadata": Metadata(name="x", stuff_classes=["a", "b"])})()
    other = LoadedModel("B", predictor)
    with pytest.raises(ConfigError, match=r"`--weights2` must be .*has 2 \(a, b\)"):
        Workbench([model, other], Limits())


def test_views_are_complete(single, image):
    session = session_of(single, image)
    for view in VIEWS:
        assert single.draw(session, None, Choices(view=view)).pictures[0].pixels is not None
    assert "offset classifier, 8 classes" in single.workbench.models[0].describe()
