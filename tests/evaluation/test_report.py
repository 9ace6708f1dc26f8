"""The report of an evaluation: its numbers, the images it shows, and the page."""

import base64
import io
import json
import math
import os
import re
import subprocess
import sys
import tracemalloc
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import Metadata
from PIL import Image

from offseg_d2.evaluation import (
    EvaluatedImage,
    EvaluationReport,
    RunInfo,
    SemSegEvaluator,
    metrics_from_confusion,
    report,
)
from offseg_d2.evaluation.report_pictures import draw_confusion, draw_example, example_labels
from tests.common import ROOT

IGNORED = 255
# Names that a page has to escape, and one class that no image holds.
CLASSES = ("road", 'sky "<b>"', "tree & </script> $x$", "unseen")
COLORS = ((128, 64, 128), (70, 130, 180), (107, 142, 35), (220, 20, 60))
METADATA = Metadata(stuff_classes=CLASSES, stuff_colors=COLORS)
SIZE = (30, 40)
NUM_IMAGES = 14
RUN = RunInfo(
    "drawn_val", "drawn.yaml", "model_final.pth", {"inference": "whole"}, {"torch": "2.x"}
)


def index_of(file_name: str) -> int:
    return int(Path(file_name).stem[-3:])


def label_of(index: int) -> np.ndarray:
    """(30, 40) uint8: blocks of the first three classes, with an ignored rim."""
    blocks = np.random.default_rng([1, index]).integers(0, 3, (3, 4)).astype(np.uint8)
    label = np.kron(blocks, np.ones((10, 10), np.uint8))
    label[:2] = IGNORED
    return label


def prediction_of(index: int) -> np.ndarray:
    """(30, 40) uint8, the more wrong the higher the index."""
    prediction = label_of(index)
    prediction[prediction == IGNORED] = 0
    wrong = np.random.default_rng([2, index]).random(SIZE) < index / NUM_IMAGES
    prediction[wrong] = (prediction[wrong] + 1) % 3
    return prediction


def counts_of(index: int) -> np.ndarray:
    label, prediction = label_of(index), prediction_of(index)
    counts = np.zeros((len(CLASSES) + 1,) * 2, np.int64)
    counted = label != IGNORED
    np.add.at(counts, (label[counted], prediction[counted]), 1)
    return counts


def make_report(folder: Path, **kwargs: Any) -> EvaluationReport:
    return EvaluationReport(str(folder), METADATA, IGNORED, run=RUN, **kwargs)


def process(written: EvaluationReport, name: str) -> None:
    index = index_of(name)
    written.process(EvaluatedImage(name, label_of(index), prediction_of(index), counts_of(index)))


def evaluate(folder: Path, names: list[str], **kwargs: Any) -> dict[str, float]:
    """Evaluate with a report as observer; returns the evaluator's results."""
    evaluator = SemSegEvaluator(
        CLASSES,
        IGNORED,
        lambda sample: label_of(index_of(sample["file_name"])),
        observers=[make_report(folder, **kwargs)],
        boundary=True,
        **kwargs,
    )
    for name in names:
        prediction = torch.from_numpy(prediction_of(index_of(name)))
        evaluator.process([{"file_name": name}], [{"sem_seg": prediction}])
    return evaluator.evaluate()["sem_seg"]


def read_metrics(folder: Path) -> dict[str, Any]:
    """``metrics.json``, read as strictly as can be."""
    text = (folder / "metrics.json").read_text(encoding="utf-8")
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"not strict JSON: {word}"))


@pytest.fixture(scope="module")
def names(tmp_path_factory) -> list[str]:
    """Drawn images, whose names end with their index."""
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"image_{index:03d}.png" for index in range(NUM_IMAGES)]
    for index, path in enumerate(paths):
        pixels = np.random.default_rng([3, index]).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return [str(path) for path in paths]


@pytest.fixture(scope="module")
def written(names, tmp_path_factory) -> tuple[Path, dict[str, float]]:
    """Folder and results of one evaluation."""
    folder = tmp_path_factory.mktemp("written") / "report"
    return folder, evaluate(folder, names)


# --- metrics.json


def test_metrics_are_those_of_the_evaluator(written):
    folder, results = written
    assert sorted(os.listdir(folder)) == ["metrics.json", "report.html"]
    document = read_metrics(folder)
    assert document["summary"].keys() == {"mIoU", "fwIoU", "mACC", "pACC", "mBIoU"}
    for key, value in document["summary"].items():
        assert value == results[key]
    for entry, name, color in zip(document["classes"], CLASSES, COLORS, strict=True):
        assert (entry["name"], entry["color"]) == (name, list(color))
        for key in ("IoU", "ACC", "BIoU"):
            expected = results[f"{key}-{name}"]
            assert entry[key] == (None if math.isnan(expected) else expected)
    matrix = sum(counts_of(index) for index in range(NUM_IMAGES))
    assert document["confusion_matrix"] == matrix.tolist()
    assert document["num_images"] == NUM_IMAGES
    assert document["num_pixels"] == matrix.sum()
    precision = 100 * matrix[1, 1] / matrix[:, 1].sum()
    assert document["classes"][1]["precision"] == pytest.approx(precision)
    assert sum(entry["label_share"] for entry in document["classes"]) == pytest.approx(100)
    assert document["run"]["weights"] == "model_final.pth"
    assert document["absent_classes"] == "zero"
    unseen = document["classes"][3]
    assert [unseen[key] for key in ("IoU", "ACC", "precision", "BIoU")] == [None] * 4


def test_scores_of_a_class_are_separate_from_one_whose_name_ends_likewise(tmp_path):
    metadata = Metadata(stuff_classes=["road", "rail-road"], stuff_colors=COLORS[:2])
    results = {"mIoU": 1.0, "IoU-road": 2.0, "IoU-rail-road": 3.0, "X-road": 4.0}
    two = EvaluationReport(str(tmp_path), metadata, IGNORED, run=RunInfo("two"))
    two.finish(results, np.eye(3, dtype=np.int64), {})
    document = read_metrics(tmp_path)
    assert [entry["IoU"] for entry in document["classes"]] == [2.0, 3.0]
    assert document["summary"] == {"mIoU": 1.0, "X-road": 4.0}


def test_confusions_are_the_largest_wrong_cells_in_order():
    matrix = np.array([[50, 9, 0, 1], [4, 10, 6, 0], [0, 0, 7, 0], [2, 2, 2, 0]])
    found = report.top_confusions(matrix, ["a", "b", "c"], 2)
    assert [(c["label"], c["prediction"], c["pixels"]) for c in found] == [
        ("a", "b", 9),
        ("b", "c", 6),
    ]
    assert found[0]["share"] == pytest.approx(100 * 9 / 60)
    assert len(report.top_confusions(matrix, ["a", "b", "c"], 20)) == 3


# --- best and worst images


def test_shown_images_are_the_best_and_the_worst(written):
    scores = [100 * metrics_from_confusion(counts_of(index)).miou for index in range(NUM_IMAGES)]
    order = np.argsort(scores)
    images = read_metrics(written[0])["images"]
    assert [index_of(entry["file_name"]) for entry in images["worst"]] == order[:5].tolist()
    assert [index_of(entry["file_name"]) for entry in images["best"]] == order[:-6:-1].tolist()
    assert images["worst"][0]["mIoU"] == pytest.approx(min(scores))
    assert images["mean"] == pytest.approx(np.mean(scores))
    assert images["num_ranked"] == NUM_IMAGES


def test_no_image_is_among_the_best_and_the_worst_and_one_without_labels_in_neither():
    scores = {name: {"mIoU": 50.0} for name in "012345"} | {"6": {"mIoU": float("nan")}}
    best, worst = report.rank_images(scores)
    assert sorted(best + worst) == list("012345")
    assert report.rank_images({"0": {"mIoU": 50.0}}) == (["0"], [])


def test_report_does_not_depend_on_how_images_are_spread_over_processes(tmp_path, names):
    total = sum(counts_of(index) for index in range(NUM_IMAGES))
    results = {"mIoU": 1.0} | {f"IoU-{name}": 1.0 for name in CLASSES}

    def write(name: str, shares: list[list[int]]) -> tuple[dict, str]:
        images = {}
        for share in shares:
            part = make_report(tmp_path / name)
            for index in share:
                process(part, names[index])
            images |= part.state()
        part.finish(results, total, dict(sorted(images.items())))
        document = read_metrics(tmp_path / name)
        page = (tmp_path / name / "report.html").read_text(encoding="utf-8")
        return document | {"time": ""}, re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "", page)

    # shuffled, unequal, one without images, and one image twice as by a sampler that pads
    spread = write("spread", [[9, 2, 13, 0, 1], [], [12, 11, 3, 4, 5, 6, 7, 8, 10, 9]])
    assert spread == write("alone", [list(range(NUM_IMAGES))])


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    many, counts = make_report(tmp_path), counts_of(0)
    tracemalloc.start()
    for index in range(40):
        counts[0, 0] += index  # every image is better than the ones before
        label = np.zeros((1000, 1600), np.int64)
        many.process(EvaluatedImage(f"{index}", label, label, counts))
    del label
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < 12_000_000  # one label map has 12,800,000 bytes
    assert len(many.state()) == 40
    many.reset()
    assert many.state() == {}


# --- pictures


def test_errors_are_red_and_ignored_pixels_blue_grey(tmp_path, caplog):
    label = example_labels(np.array([[0, 1], [2, IGNORED]], np.uint8))
    prediction = np.zeros_like(label)
    assert label.shape == (400, 400)
    content = draw_example(str(tmp_path / "lost.png"), label, prediction, METADATA, IGNORED)
    assert "lost.png" in caplog.text  # no photograph: three panels, with gaps of 6 pixels
    picture = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    assert picture.shape[1] == 3 * 400 + 2 * 6
    head = 2 * int(picture.shape[1] / 64)
    truth, predicted, errors = (picture[head:, 406 * i : 406 * i + 400] for i in range(3))
    centres = [(100, 100), (100, 300), (300, 100), (300, 300)]
    for panel, colors in (
        (truth, COLORS[:3]),
        (predicted, [COLORS[0]] * 4),
        (errors, [(140, 140, 140), (230, 30, 30), (230, 30, 30), (96, 110, 140)]),
    ):
        found = [panel[row, column] for row, column in centres[: len(colors)]]
        np.testing.assert_allclose(found, colors, atol=4)  # JPEG
    ignored = truth[220:380, 220:380]  # stripes in two greys
    assert np.ptp(ignored, axis=-1).max() < 9 and (ignored.min(), ignored.max()) == (
        pytest.approx(110, abs=12),
        pytest.approx(190, abs=12),
    )


@pytest.mark.parametrize("shape", [(7, 5), (64, 100), (1024, 2048), (900, 3), (1, 1)])
def test_example_keeps_the_proportions_and_has_no_new_ids(shape):
    small = example_labels(np.random.randint(0, 2, shape) * 9)
    expected = np.array(shape) * 400 / max(shape)
    assert max(small.shape) == 400
    assert (abs(small.shape - expected) <= 1).all()
    assert np.isin(small, [0, 9]).all()


@pytest.mark.parametrize("num_classes", [3, 150])
def test_confusion_matrix_is_darker_where_shares_are_larger(num_classes):
    matrix = np.zeros((num_classes + 1,) * 2, np.int64)
    right = draw_confusion(matrix + np.diag([5] * num_classes + [0]), ["$a^"] * num_classes)
    nothing = draw_confusion(matrix, ["$a^"] * num_classes)
    brightness = [np.mean(Image.open(io.BytesIO(p)).convert("L")) for p in (right, nothing)]
    assert brightness[0] < brightness[1]


# --- report.html


class PageReader(HTMLParser):
    """Checks that elements are closed in order, and collects addresses and rows of tables."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.text = (folder / "report.html").read_text(encoding="utf-8")
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(self.text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for key, value in attrs if key in ("src", "href")]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in {"meta", "link", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def test_page_loads_nothing_from_outside_and_its_pictures_are_whole(written):
    page = PageReader(written[0])
    icon, *pictures = page.addresses
    assert icon == "data:,"
    assert len(pictures) == 1 + 10
    for address in pictures:
        kind, content = address.split(";base64,")
        picture = Image.open(io.BytesIO(base64.b64decode(content, validate=True)))
        assert kind == f"data:image/{picture.format.lower()}"
        picture.load()
    assert not re.search(r"https?:|@import|url\(", page.text)
    assert "default-src 'none'" in page.text


def test_page_shows_the_numbers_with_the_highest_iou_first(written):
    folder, results = written
    rows = PageReader(folder).rows
    assert ["mIoU", f"{results['mIoU']:.2f} %"] in [row[:2] for row in rows]
    shown = {row[0]: row[2] for row in rows if row[0] in CLASSES and row[1].isdigit()}
    iou = {name: results[f"IoU-{name}"] for name in CLASSES[:3]}
    order = sorted(iou, key=lambda name: -iou[name])
    assert list(shown.items()) == [(n, f"{iou[n]:.2f}") for n in order] + [("unseen", "–")]
    first = read_metrics(folder)["confusions"][0]
    assert [first["label"], first["prediction"]] in [row[:2] for row in rows]


def test_page_says_what_was_evaluated_and_how(written, names, tmp_path):
    text = PageReader(written[0]).text
    for words in (
        *("Evaluation on drawn_val", f"{NUM_IMAGES} images", "drawn.yaml", "model_final.pth"),
        *("torch 2.x", "counts as IoU 0", "3 of 4 classes count", "mIoU of the single image"),
    ):
        assert words in text
    assert "sky &#34;&lt;b&gt;&#34;" in text
    evaluate(tmp_path / "report", names[:2], absent_classes="skip")
    skipped = PageReader(tmp_path / "report").text
    assert "A class absent from the ground truth does not count" in skipped


def test_image_that_cannot_be_read_does_not_stop_the_report(tmp_path, caplog):
    (tmp_path / "image_001.png").write_bytes(b"no image")
    evaluate(tmp_path / "report", [str(tmp_path / f"image_{i:03d}.png") for i in (0, 1)])
    assert len(PageReader(tmp_path / "report").addresses) == 2 + 2
    assert "image_000.png" in caplog.text and "image_001.png" in caplog.text


def test_data_without_labels_still_gives_a_page(tmp_path):
    empty = make_report(tmp_path)
    nothing = np.zeros((len(CLASSES) + 1,) * 2, np.int64)
    ignored = np.full((4, 4), IGNORED)
    empty.process(EvaluatedImage("x.png", ignored, np.zeros((4, 4), int), nothing))
    results = {"mIoU": float("nan")} | {f"IoU-{name}": float("nan") for name in CLASSES}
    empty.finish(results, nothing, empty.state())
    assert read_metrics(tmp_path)["summary"] == {"mIoU": None}
    assert "none" in [row[0] for row in PageReader(tmp_path).rows]


def test_template_is_installed_with_the_package(tmp_path):
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert (tmp_path / "offseg_d2" / "evaluation" / "report_template.html.j2").is_file()
