"""The page of a report: well-formed, complete in itself, and with the right content."""

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.common import ROOT
from tests.evaluation.report_samples import (
    CLASSES,
    IGNORED,
    NUM_IMAGES,
    evaluate,
    file_names,
    make_report,
    read_metrics,
    write_large_report,
    write_small_report,
)

VOID = {"meta", "link", "img", "br", "hr", "input"}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Folder, results and file names of one evaluation."""
    return write_small_report(tmp_path_factory.mktemp("report"))


class PageReader(HTMLParser):
    """Checks that elements are closed in order, and collects what the tests ask for."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.scripts: list[str] = []
        self.rows: list[list[str]] = []
        self.names: list[str] = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        assert len(values) == len(attrs), f"<{tag}> has an attribute twice"
        self.addresses += [values[key] for key in ("src", "href") if key in values]
        self.ids += [values["id"]] if "id" in values else []
        if tag == "tr":
            self.rows.append([])
        elif "data-value" in values:
            self.rows[-1].append(values["data-value"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)


def read_page(folder) -> tuple[str, PageReader]:
    text = (folder / "report.html").read_text(encoding="utf-8")
    reader = PageReader()
    reader.feed(text)
    reader.close()
    return text, reader


def test_page_is_well_formed(written):
    text, reader = read_page(written[0])
    assert reader.open == []
    assert len(reader.ids) == len(set(reader.ids))
    assert text.startswith("<!doctype html>")
    assert all(address[1:] in reader.ids for address in reader.addresses if address[0] == "#")


def test_page_loads_nothing_from_outside(written):
    text, reader = read_page(written[0])
    assert len(reader.addresses) > 4 * 6
    assert all(address.startswith(("data:", "#")) for address in reader.addresses)
    assert not re.search(r"https?:|@import|//cdn|url\((?!#)", text)
    assert "default-src 'none'" in text


def test_page_holds_the_script_and_its_data(written):
    _, reader = read_page(written[0])
    data, script = reader.scripts
    assert json.loads(data)["names"] == list(CLASSES)
    assert json.loads(data)["matrix"] == read_metrics(written[0])["confusion_matrix"]
    assert "addEventListener" in script


def test_table_of_classes_begins_with_the_highest_iou(written):
    folder, results, _ = written
    rows = [row for row in read_page(folder)[1].rows if row]
    shown = [float(row[2]) if row[2] else None for row in rows]
    assert [row[0] for row in rows[-1:]] == ["unseen"]
    assert shown[-1] is None
    assert shown[:-1] == sorted(shown[:-1], reverse=True)
    assert {row[0]: value for row, value in zip(rows, shown, strict=True)} == {
        name: None if math.isnan(results[f"IoU-{name}"]) else results[f"IoU-{name}"]
        for name in CLASSES
    }


def test_page_tells_what_was_evaluated_and_how(written):
    text, _ = read_page(written[0])
    for words in (
        "Evaluation on drawn_val",
        f"{NUM_IMAGES} images",
        "drawn.yaml",
        "model_final.pth",
        "torch 2.x",
        "counts as IoU 0",
        "3 of 4 classes count",
        "mIoU of the single image",
    ):
        assert words in text
    assert "<b>&#34;" not in text  # the class's name is escaped, tags and all
    assert "sky &#34;&lt;b&gt;&#34;" in text


def test_page_names_the_other_rule_for_absent_classes(tmp_path):
    names = file_names(tmp_path, 2)
    report = make_report(tmp_path / "report", absent_classes="skip", rank_by="pACC")
    evaluate(report, names, absent_classes="skip")
    text, _ = read_page(tmp_path / "report")
    assert "A class absent from the ground truth does not count" in text
    assert "pACC of the single image" in text


def test_page_of_150_classes_is_small_and_has_a_matrix_to_enlarge(tmp_path):
    write_large_report(tmp_path, 150)
    text, reader = read_page(tmp_path / "report")
    assert len(text) < 1_500_000
    assert "zoom" in reader.ids
    assert len([row for row in reader.rows if row]) == 150
    assert 'class="numbers"' not in text


def test_data_without_labels_still_gives_a_page(tmp_path):
    report = make_report(tmp_path)
    label = np.full((4, 4), IGNORED)
    nothing = np.zeros((len(CLASSES) + 1,) * 2, np.int64)
    report.process({"file_name": "x.png"}, label, np.zeros((4, 4), np.int64), nothing)
    results = {"mIoU": float("nan")} | {f"IoU-{name}": float("nan") for name in CLASSES}
    report.finish(results, nothing, report.state())
    assert read_metrics(tmp_path)["summary"] == {"mIoU": None}
    assert read_page(tmp_path)[1].open == []


def test_template_is_installed_with_the_package(tmp_path):
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert (tmp_path / "offseg_d2" / "evaluation" / "report_template.html.j2").is_file()
