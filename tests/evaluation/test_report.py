"""The report of an evaluation: its numbers, and which images it shows."""

import math
import os
import re
import tracemalloc

import numpy as np
import pytest

from offseg_d2.evaluation import EvaluationReport, RunInfo, metrics_from_confusion
from offseg_d2.evaluation.report import top_confusions
from offseg_d2.evaluation.report_examples import ImageResult, choose_examples
from tests.evaluation.report_samples import (
    CLASSES,
    COLORS,
    IGNORED,
    NUM_IMAGES,
    evaluate,
    file_names,
    index_of,
    label_of,
    make_report,
    prediction_of,
    read_metrics,
    write_small_report,
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Folder, results and file names of one evaluation."""
    return write_small_report(tmp_path_factory.mktemp("report"))


def counts_of(index: int, num_images: int = NUM_IMAGES) -> np.ndarray:
    label, prediction = label_of(index), prediction_of(index, num_images)
    counts = np.zeros((len(CLASSES) + 1,) * 2, np.int64)
    counted = label != IGNORED
    np.add.at(counts, (label[counted], prediction[counted]), 1)
    return counts


# --- metrics.json


def test_metrics_are_those_of_the_evaluator(written):
    folder, results, names = written
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
    assert document["num_images"] == len(names)
    assert document["num_pixels"] == matrix.sum()
    precision = 100 * matrix[1, 1] / matrix[:, 1].sum()
    assert document["classes"][1]["precision"] == pytest.approx(precision)
    assert sum(entry["label_share"] for entry in document["classes"]) == pytest.approx(100)
    assert document["run"]["weights"] == "model_final.pth"
    assert document["absent_classes"] == "zero"


def test_what_cannot_be_measured_is_null(written):
    unseen = read_metrics(written[0])["classes"][3]
    assert [unseen[key] for key in ("IoU", "ACC", "precision", "BIoU")] == [None] * 4
    assert unseen["label_share"] == 0


def test_nothing_but_the_two_files_is_written(written):
    assert sorted(os.listdir(written[0])) == ["metrics.json", "report.html"]


def test_scores_of_a_class_are_told_from_one_whose_name_ends_likewise(tmp_path):
    report = EvaluationReport(
        str(tmp_path), ["road", "rail-road"], COLORS[:2], IGNORED, run=RunInfo("two")
    )
    results = {"mIoU": 1.0, "IoU-road": 2.0, "IoU-rail-road": 3.0, "X-road": 4.0}
    report.finish(results, np.eye(3, dtype=np.int64), {})
    document = read_metrics(tmp_path)
    assert [entry["IoU"] for entry in document["classes"]] == [2.0, 3.0]
    assert document["summary"] == {"mIoU": 1.0, "X-road": 4.0}


def test_confusions_are_the_largest_wrong_cells_in_order():
    matrix = np.array([[50, 9, 0, 1], [4, 10, 6, 0], [0, 0, 7, 0], [2, 2, 2, 0]])
    found = top_confusions(matrix, ["a", "b", "c"], 2)
    assert [(c["label"], c["prediction"], c["pixels"]) for c in found] == [
        ("a", "b", 9),
        ("b", "c", 6),
    ]
    assert found[0]["share"] == pytest.approx(100 * 9 / 60)
    assert len(top_confusions(matrix, ["a", "b", "c"], 20)) == 3


# --- best and worst images


@pytest.mark.parametrize("rank_by", ["mIoU", "pACC"])
def test_shown_images_are_the_best_and_the_worst(tmp_path, rank_by):
    names = file_names(tmp_path, NUM_IMAGES)
    evaluate(make_report(tmp_path / "report", num_examples=3, rank_by=rank_by), names)
    metrics = [metrics_from_confusion(counts_of(index)) for index in range(NUM_IMAGES)]
    scores = [100 * (m.miou if rank_by == "mIoU" else m.pacc) for m in metrics]
    order = np.argsort(scores)
    images = read_metrics(tmp_path / "report")["images"]
    assert images["rank_by"] == rank_by
    assert [index_of(entry["file_name"]) for entry in images["worst"]] == order[:3].tolist()
    assert [index_of(entry["file_name"]) for entry in images["best"]] == order[:-4:-1].tolist()
    assert images["worst"][0][rank_by] == pytest.approx(min(scores))
    assert images["mean"] == pytest.approx(np.mean(scores))


def test_report_does_not_depend_on_how_images_are_spread_over_processes(tmp_path):
    names = file_names(tmp_path, NUM_IMAGES)
    indices = range(NUM_IMAGES)
    total = sum(counts_of(index) for index in indices)
    results = {"mIoU": 1.0} | {f"IoU-{name}": 1.0 for name in CLASSES}

    def write(name: str, shares: list[list[int]]) -> tuple[dict, str]:
        images = {}
        for share in shares:
            report = make_report(tmp_path / name, num_examples=3)
            for i in share:
                label, prediction = label_of(i), prediction_of(i, NUM_IMAGES)
                report.process({"file_name": names[i]}, label, prediction, counts_of(i))
            images |= report.state()
        report.finish(results, total, dict(sorted(images.items())))
        document = read_metrics(tmp_path / name)
        page = (tmp_path / name / "report.html").read_text(encoding="utf-8")
        return document, re.sub(r"\d{4}-\d\d-\d\d[T ][\d:]+(\+00:00)?", "", page)

    alone, page = write("alone", [list(indices)])
    # shuffled, unequal, one without images, and one image twice as by a sampler that pads
    spread, same_page = write("spread", [[9, 2, 13, 0, 1], [], [12, 11, 3, 4, 5, 6, 7, 8, 10, 9]])
    del alone["time"], spread["time"]
    assert alone == spread
    assert page == same_page


def test_no_image_is_among_the_best_and_the_worst():
    images = [ImageResult(str(i), {"mIoU": 50.0}) for i in range(5)]
    images.append(ImageResult("unlabelled", {"mIoU": float("nan")}))
    best, worst = choose_examples(images, "mIoU", 3)
    assert (len(best), len(worst)) == (3, 2)
    assert {image.file_name for image in best + worst} == set("01234")
    best, worst = choose_examples(images[:1], "mIoU", 3)
    assert (len(best), len(worst)) == (1, 0)


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    report = make_report(tmp_path, num_examples=2, picture_side=20)
    counts = counts_of(0)
    tracemalloc.start()
    for index in range(40):
        counts[0, 0] += index  # every image is better than the ones before
        label = np.zeros((400, 500), np.int64)
        report.process({"file_name": f"{index}"}, label, label.copy(), counts)
    del label
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 200_000  # one label map has 1,600,000 bytes
    assert len(report.state()) == 40
    report.reset()
    assert report.state() == {}


def test_image_that_cannot_be_read_costs_one_picture_only(tmp_path, caplog):
    names = file_names(tmp_path, 4)
    os.remove(names[0])
    (tmp_path / "image_001.png").write_bytes(b"no image")
    evaluate(make_report(tmp_path / "report"), names)
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert page.count("no image could be read") == 2
    assert page.count('class="photo"') == 2
    assert page.count('class="error"') == 4
    assert "image_000.png" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank_by": "IoU"}, r"`rank_by` must be one of .* is 'IoU'"),
        ({"num_examples": -1}, r"`num_examples` must not be negative, but is -1"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        make_report(tmp_path, **changes)


def test_classes_without_a_colour_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`class_colors` must hold .* 4 classes, but holds 3"):
        EvaluationReport(str(tmp_path), CLASSES, COLORS[:3], IGNORED, run=RunInfo("x"))
