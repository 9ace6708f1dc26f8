"""The page of a report in headless Chromium: no errors, and it answers to the reader."""

from collections.abc import Iterator

import pytest

from tests.evaluation.report_samples import (
    CLASSES,
    evaluate,
    file_names,
    make_report,
    write_large_report,
)

pytestmark = pytest.mark.browser


@pytest.fixture
def open_page(browser) -> Iterator:
    """Opens a report; whatever the browser complains of or loads fails the test at its end."""
    complaints, pages = [], []

    def note_request(request) -> None:
        if not request.url.startswith(("data:", "file:")):
            complaints.append(request.url)

    def open_report(folder, width=1200):
        page = browser.new_page(viewport={"width": width, "height": 800})
        pages.append(page)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", note_request)
        page.goto((folder / "report.html").as_uri())
        return page

    yield open_report
    for page in pages:
        page.close()
    assert complaints == []


@pytest.fixture(scope="module")
def report_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    evaluate(make_report(folder / "report"), file_names(folder, 6))
    return folder / "report"


def first_column(page) -> list[str]:
    return page.locator("#class-table tbody th").all_inner_texts()


def test_click_on_a_heading_sorts_and_a_second_one_reverses(report_folder, open_page):
    page = open_page(report_folder)
    by_iou = first_column(page)
    assert sorted(by_iou) == sorted(CLASSES)
    page.click("#class-table th:has-text('class') button")
    assert first_column(page) == sorted(CLASSES)
    page.click("#class-table th:has-text('class') button")
    assert first_column(page) == sorted(CLASSES, reverse=True)
    page.focus("#class-table th:has-text('IoU') button")
    page.keyboard.press("Enter")
    assert first_column(page) == by_iou
    page.keyboard.press("Enter")
    # what was not measured stays last
    assert first_column(page) == [*by_iou[-2::-1], "unseen"]
    assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "ascending"


def test_cells_and_pictures_tell_what_they_show(report_folder, open_page):
    page = open_page(report_folder)
    page.focus("#cells")
    page.keyboard.press("ArrowRight")
    tip = page.locator("#tip")
    assert tip.inner_text().startswith(f"{CLASSES[0]} is predicted as {CLASSES[1]}\n")
    page.keyboard.press("Escape")
    assert not tip.is_visible()
    page.hover("#cells", position={"x": 3, "y": 3})
    assert tip.inner_text().startswith(f"{CLASSES[0]} is found\n")
    page.locator(".exact").first.hover(position={"x": 100, "y": 2})
    assert tip.inner_text().startswith("truth: ignored\nprediction: ")
    assert tip.inner_text().split("prediction: ")[1] in CLASSES


def test_page_fits_a_narrow_screen_and_all_pictures_load(report_folder, open_page):
    page = open_page(report_folder, width=400)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert page.locator("img").count() == 1 + 4 * 6
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")


def test_matrix_of_many_classes_can_be_enlarged(tmp_path, open_page):
    write_large_report(tmp_path, 80, num_images=2)
    page = open_page(tmp_path / "report")
    width = page.locator("#cells").bounding_box()["width"]
    assert not page.locator(".rows").is_visible()
    page.click("#zoom")
    assert page.locator("#cells").bounding_box()["width"] > 1.2 * width
    assert page.locator(".rows").is_visible()
