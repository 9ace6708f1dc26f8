"""The page in headless Chromium: as a visitor meets it, and what it sends where.

``OFFSEG_SCREENSHOTS=DIR`` keeps pictures of the page.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest
from PIL import Image

from offseg_d2.web.results import Models
from offseg_d2.web.uploads import Limits
from tests.web.common import load, served, write_drawn

pytestmark = pytest.mark.browser
PATIENCE = 30_000  # longest waits, in milliseconds: a busy machine is slow


@dataclass
class Server:
    """A page that is served from this process."""

    url: str
    folder: Path
    models: Models


def _serve(folder: Path, *checkpoints: str) -> Iterator[Server]:
    pytest.importorskip("gradio")
    models = load(*checkpoints, limits=Limits(200_000, 100_000))
    example = write_drawn(folder / "example.png")
    with served(models, folder / "files", [str(example)]) as url:
        yield Server(url, folder, models)


@pytest.fixture(scope="module")
def single(tmp_path_factory, offset_checkpoint) -> Iterator[Server]:
    yield from _serve(tmp_path_factory.mktemp("single"), offset_checkpoint)


@pytest.fixture(scope="module")
def pair(tmp_path_factory, offset_checkpoint, plain_checkpoint) -> Iterator[Server]:
    yield from _serve(tmp_path_factory.mktemp("pair"), offset_checkpoint, plain_checkpoint)


@pytest.fixture
def open_page(browser) -> Iterator:
    """Opens a page; errors of its console and requests to other hosts fail the test at its end."""
    complaints, contexts = [], []

    def open_url(server: Server, width: int = 1280, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda m: m.type == "error" and complaints.append(m.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        host = urlsplit(server.url).netloc

        def note_request(request) -> None:
            if request.url.startswith("http") and urlsplit(request.url).netloc != host:
                complaints.append(request.url)

        page.on("request", note_request)
        page.goto(server.url)
        page.wait_for_selector("#upload input[type=file]", state="attached")
        return page

    yield open_url
    for context in contexts:
        context.close()
    assert complaints == []


def upload(page, path: Path) -> None:
    page.set_input_files("#upload input[type=file]", str(path))


def wait_for_result(page, size: str = "128 × 96 pixels") -> None:
    page.wait_for_selector(f"#status :text('{size}')")
    page.wait_for_selector("#picture-0 img.mask", state="attached")


def source(page, selector: str) -> str:
    return page.locator(selector).first.get_attribute("src")


def keep(page, name: str) -> None:
    if folder := os.environ.get("OFFSEG_SCREENSHOTS"):
        time.sleep(1)
        page.screenshot(path=os.path.join(folder, f"{name}.png"), full_page=True)


def test_classes_are_shown_named_and_downloaded(single, open_page, tmp_path):
    page = open_page(single)
    image = write_drawn(tmp_path / "my scene.png")
    upload(page, image)
    wait_for_result(page)
    result = single.models.predict(str(image))
    labels = result.predictions[0].labels
    rows = single.models.areas(result)
    assert page.locator("#picture-0 .legend-item").all_inner_texts() == [row[0] for row in rows]
    table = page.locator("#areas").inner_text()
    assert all(row[0] in table and str(row[2]) in table for row in rows)
    mask = page.request.get(source(page, "#picture-0 img.mask")).body()
    drawn = cv2.imdecode(np.frombuffer(mask, np.uint8), cv2.IMREAD_UNCHANGED)[..., 3] > 0
    assert np.array_equal(drawn, labels == single.models.classes.index(rows[0][0]))
    page.locator("#opacity input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "getComputedStyle(document.querySelector('#picture-0 img.mask')).opacity == '0.51'"
    )
    keep(page, "classes")
    box = page.locator("#upload img").bounding_box()
    page.locator("#upload img").click(position={"x": box["width"] / 4, "y": box["height"] / 3})
    text = page.wait_for_selector("#found p").inner_text()
    x, y = (int(part.strip(",:")) for part in text.split()[1:3])
    assert 0 <= x < 64 and abs(y - 32) <= 2
    assert text.endswith(single.models.classes[labels[y, x]])
    page.get_by_role("button", name="Prepare downloads").click()
    with page.expect_download() as download:
        page.locator("#files a").first.click()
    assert download.value.suggested_filename == "my scene_labels.png"
    assert np.array_equal(np.asarray(Image.open(download.value.path())), labels)


def test_offsets_follow_the_class(single, open_page, tmp_path):
    page = open_page(single)
    upload(page, write_drawn(tmp_path / "scene.png"))
    wait_for_result(page)
    page.get_by_label("Offsets", exact=True).check()
    page.wait_for_selector("#offsets-0 img")
    before = source(page, "#offsets-0 img")
    page.locator("#class input").click()
    page.get_by_role("option", name=single.models.classes[-1]).click()
    page.wait_for_function(
        "before => document.querySelector('#offsets-0 img')?.getAttribute('src') !== before",
        arg=before,
    )
    keep(page, "offsets")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"This is a letter.", "must be an image"), (None, "must have at most 0.1 megapixels")],
)
def test_bad_file_gives_a_message_and_the_next_one_works(
    single, open_page, tmp_path, content, message
):
    page = open_page(single)
    path = tmp_path / "bad.jpg"
    if content is None:
        Image.new("RGB", (500, 400)).save(path)
    else:
        path.write_bytes(content)
    upload(page, path)
    page.wait_for_selector(f"#status :text('{message}')")
    text = page.locator("body").inner_text()
    assert "Traceback" not in text and str(single.folder) not in text
    assert page.locator("#picture-0 img.mask").count() == 0
    page.locator("#upload button[aria-label='Remove Image']").click()
    page.wait_for_selector("#status :text('Choose an image')")
    page.wait_for_selector("#upload input[type=file]", state="attached")
    upload(page, write_drawn(tmp_path / "good.png"))
    wait_for_result(page)


def test_example_of_two_models_on_a_phone(pair, open_page):
    page = open_page(pair, width=400, color_scheme="dark")
    page.locator("#examples button").first.click()
    wait_for_result(page)
    assert "A and B differ in" in page.locator("#status").inner_text()
    page.wait_for_selector("#picture-2 img.mask", state="attached")
    keep(page, "comparison")
    page.get_by_label("Offsets", exact=True).check()
    page.wait_for_selector("#offsets-0 img")
    page.wait_for_selector(":text('Model B has a plain classifier, so it has no offsets.')")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    keep(page, "phone")
