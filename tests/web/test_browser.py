"""The page in headless Chromium: as a visitor meets it, and what it sends where.

``OFFSEG_SCREENSHOTS=DIR`` keeps pictures of the page.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest
from PIL import Image

from offseg_d2.web.arguments import free_port
from offseg_d2.web.uploads import Limits
from tests.web.common import workbench, write_drawn

pytestmark = pytest.mark.browser
# Longest waits, in milliseconds: a busy machine is slow.
PATIENCE = 30_000


class Server:
    """A page that is served from this process."""

    def __init__(self, folder: Path, *checkpoints: str) -> None:
        from offseg_d2.web.server import launch

        self.folder = folder
        self.workbench = workbench(*checkpoints, limits=Limits(200_000, 100_000))
        example = write_drawn(folder / "example.png")
        port = free_port("127.0.0.1", 0)
        # One folder for both servers: gradio has one for a process.
        files = Path(os.environ.get("GRADIO_TEMP_DIR", folder / "files"))
        files.mkdir(exist_ok=True)
        self.page = launch(self.workbench, [str(example)], "127.0.0.1", port, str(files))
        self.url = f"http://127.0.0.1:{port}/"


@pytest.fixture(scope="module")
def single(tmp_path_factory, offset_checkpoint) -> Iterator[Server]:
    pytest.importorskip("gradio")
    server = Server(tmp_path_factory.mktemp("single"), offset_checkpoint)
    yield server
    server.page.close(verbose=False)


@pytest.fixture(scope="module")
def pair(tmp_path_factory, offset_checkpoint, plain_checkpoint) -> Iterator[Server]:
    pytest.importorskip("gradio")
    server = Server(tmp_path_factory.mktemp("pair"), offset_checkpoint, plain_checkpoint)
    yield server
    server.page.close(verbose=False)


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


def wait_for_result(page) -> None:
    page.wait_for_selector("#legend tbody tr")
    page.wait_for_selector("#picture-0 img")


def picture(page, number: int = 0) -> np.ndarray:
    """What a picture of the page shows, as its file holds it."""
    source = page.locator(f"#picture-{number} img").get_attribute("src")
    content = page.request.get(source).body()
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def wait_for_other_picture(page, before: str) -> None:
    page.wait_for_function(
        "before => { const i = document.querySelector('#picture-0 img');"
        " return i && i.src !== before && i.complete; }",
        arg=before,
    )


def keep(page, name: str) -> None:
    if folder := os.environ.get("OFFSEG_SCREENSHOTS"):
        time.sleep(1)
        page.screenshot(path=os.path.join(folder, f"{name}.png"), full_page=True)


def test_result_of_an_image_and_views_without_another_run(single, open_page, tmp_path):
    page = open_page(single)
    image = write_drawn(tmp_path / "scene.png")
    runs = single.workbench.runs
    upload(page, image)
    wait_for_result(page)
    assert "128 × 96 pixels" in page.locator("#status").inner_text()
    shares = page.locator("#legend tbody .value").all_inner_texts()
    areas = [float(share.strip(" %<")) for share in shares]
    assert len(areas) > 1 and areas == sorted(areas, reverse=True)
    shown = picture(page)
    original = cv2.resize(cv2.imread(str(image))[..., ::-1], shown.shape[1::-1])
    assert np.abs(shown.astype(int) - original).mean() > 5
    keep(page, "overlay")
    for view in ("Labels", "Side by side"):
        before = page.locator("#picture-0 img").evaluate("image => image.src")
        page.get_by_label(view, exact=True).check()
        wait_for_other_picture(page, before)
    assert picture(page).shape[1] > 2 * original.shape[1]
    before = page.locator("#picture-0 img").evaluate("image => image.src")
    page.locator("#opacity input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    wait_for_other_picture(page, before)
    assert single.workbench.runs == runs + 1


def test_click_names_the_class_and_downloads_hold_the_labels(single, open_page, tmp_path):
    page = open_page(single)
    upload(page, write_drawn(tmp_path / "my scene.png"))
    wait_for_result(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download label map").click()
    assert download.value.suggested_filename == "my_scene_labels.png"
    labels = np.asarray(Image.open(download.value.path()))
    assert labels.shape == (96, 128)
    box = page.locator("#picture-0 img").bounding_box()
    page.locator("#picture-0 img").click(position={"x": box["width"] / 4, "y": box["height"] / 3})
    text = page.wait_for_selector("#found .pixel").inner_text()
    x, y = (int(part) for part in text.replace(",", "").split()[1:3])
    assert abs(x - 32) <= 2 and abs(y - 32) <= 2
    name = single.workbench.classes[labels[y, x]]
    assert name in text
    page.get_by_label("Offsets", exact=True).check()
    page.wait_for_selector("#scale .ramp")
    assert "coupled similarity" in page.locator("#scale").inner_text()
    page.get_by_role("button", name="Look up a pixel").click()
    page.get_by_label("x, from the left").fill("100")
    page.get_by_label("y, from the top").fill("90")
    page.get_by_role("button", name="Which class is there?").click()
    page.wait_for_selector("#found :text('Pixel 100, 90')")
    name = single.workbench.classes[labels[90, 100]]
    page.wait_for_selector(f"#scale :text('“{name}”')")
    keep(page, "offsets")


def test_two_models_are_compared(pair, open_page, tmp_path):
    page = open_page(pair)
    upload(page, write_drawn(tmp_path / "scene.png"))
    wait_for_result(page)
    page.wait_for_selector("#picture-2 img")
    assert not np.array_equal(picture(page, 0), picture(page, 1))
    assert "A and B differ in" in page.locator("#status").inner_text()
    assert page.locator("#legend thead th").all_inner_texts() == ["Class", "A", "B", "B − A"]
    keep(page, "comparison")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"This is a letter.", "must be an image"),
        (None, "must have at most 0.1 megapixels"),
    ],
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
    problem = page.wait_for_selector("#message .problem").inner_text()
    assert message in problem
    text = page.locator("body").inner_text()
    assert "Traceback" not in text and str(single.folder) not in text
    assert page.locator("#legend tbody tr").count() == 0
    keep(page, "message")
    page.locator("#upload button[aria-label='Remove Image']").click()
    page.wait_for_selector("#message .problem", state="hidden")
    page.wait_for_selector("#upload input[type=file]", state="attached")
    upload(page, write_drawn(tmp_path / "good.png"))
    wait_for_result(page)


def test_example_is_chosen_and_a_phone_shows_all_without_scrolling_sideways(
    pair, open_page, tmp_path
):
    page = open_page(pair, width=400, color_scheme="dark")
    page.locator("#examples button").first.click()
    wait_for_result(page)
    page.get_by_label("Offsets", exact=True).check()
    page.wait_for_selector("#scale .ramp")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    keep(page, "phone")


def test_inputs_have_names(single, open_page):
    page = open_page(single)
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('input, select, textarea, button')].filter(e =>
        e.type !== 'file' && e.offsetParent && !(e.labels && e.labels.length) && !e.ariaLabel
        && !e.getAttribute('aria-labelledby') && !e.title && !e.innerText
        && !e.querySelector('img')).map(e => e.outerHTML.slice(0, 200))"""
    )
    assert unnamed == []


def test_server_serves_nothing_but_its_own_files(single, open_page):
    page = open_page(single)
    for path in ("/etc/hostname", str(single.folder / "example.png"), "setup.py"):
        assert page.request.get(f"{single.url}gradio_api/file={path}").status in (403, 404)
    config = page.request.get(f"{single.url}config").json()
    assert config["analytics_enabled"] is False and config["run_history"] is False
    assert not config["footer_links"]
