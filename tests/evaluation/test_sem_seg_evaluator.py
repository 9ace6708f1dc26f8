"""The evaluator: result keys, sizes, forms of predictions, and that nothing is written unasked."""

import json
import os
from functools import partial

import numpy as np
import pytest
import torch
from detectron2.evaluation import print_csv_format
from pycocotools import mask as mask_utils

from tests.evaluation.samples import (
    CLASSES,
    Recorder,
    label_of,
    make_evaluator,
    prediction_of,
    process,
)

NAMES = [f"{index}.png" for index in range(4)]


def to_scores(prediction: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(prediction, 3).permute(2, 0, 1).float()


def test_results_have_the_keys_of_detectron2_in_percent(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    evaluator = make_evaluator()
    process(evaluator, NAMES)
    with caplog.at_level("INFO"):
        results = evaluator.evaluate()
    assert os.listdir(tmp_path) == []  # nothing is written unless asked for
    assert "Evaluation of 4 images" in caplog.text
    assert all(name in caplog.text for name in CLASSES)
    assert list(results) == ["sem_seg"]
    expected = {"mIoU", "fwIoU", "mACC", "pACC"}
    expected |= {f"{kind}-{name}" for kind in ("IoU", "ACC") for name in CLASSES}
    assert results["sem_seg"].keys() == expected
    label = np.concatenate([label_of(name).ravel() for name in NAMES])
    prediction = np.concatenate([prediction_of(name).numpy().ravel() for name in NAMES])
    right = (label == prediction)[label != 255].mean()
    assert results["sem_seg"]["pACC"] == pytest.approx(100 * right)
    print_csv_format(results)  # Detectron2's own printer takes them


@pytest.mark.parametrize(
    "convert",
    [to_scores, *(partial(torch.Tensor.to, dtype=dtype) for dtype in (torch.uint8, torch.int32))],
)
@pytest.mark.parametrize("names", [NAMES, NAMES[::-1]])
def test_form_of_the_predictions_and_order_of_the_images_do_not_matter(convert, names):
    first, second = make_evaluator(), make_evaluator()
    process(first, NAMES)
    process(second, names, convert)
    assert first.evaluate() == second.evaluate()


def test_equal_scores_go_to_the_first_class():
    evaluator = make_evaluator()
    evaluator.process([{"file_name": "0.png"}], [{"sem_seg": torch.zeros(3, 6, 8)}])
    evaluator.evaluate()
    assert evaluator.confusion_matrix[:, 1:].sum() == 0


def test_evaluating_twice_counts_once_and_reset_forgets():
    evaluator = make_evaluator()
    process(evaluator, NAMES)
    assert evaluator.evaluate() == evaluator.evaluate()
    assert evaluator.confusion_matrix.sum() == sum((label_of(n) != 255).sum() for n in NAMES)
    evaluator.reset()
    with pytest.raises(ValueError, match="none was counted"):
        evaluator.evaluate()


@pytest.mark.parametrize(
    ("sem_seg", "message"),
    [
        (torch.zeros(3, 8, dtype=torch.int64), r"`0.png` must have .* \(6, 8\), but has \(3, 8\)"),
        (torch.zeros(4, 6, 8), r"`0.png` must be \(3, H, W\) scores"),
        (torch.zeros(6, 8), r"`0.png` must be \(3, H, W\) scores"),
    ],
)
def test_prediction_of_another_size_or_form_is_refused_naming_the_file(sem_seg, message):
    with pytest.raises(ValueError, match=message):
        make_evaluator().process([{"file_name": "0.png"}], [{"sem_seg": sem_seg}])


def test_written_predictions_decode_to_what_was_predicted(tmp_path):
    evaluator = make_evaluator(output_dir=str(tmp_path))
    process(evaluator, ["0.png"], to_scores)
    evaluator.evaluate()
    segments = json.loads((tmp_path / "sem_seg_predictions.json").read_text())
    decoded = np.full((6, 8), -1)
    for segment in segments:
        assert segment["file_name"] == "0.png"
        decoded[mask_utils.decode(segment["segmentation"]) == 1] = segment["category_id"]
    np.testing.assert_array_equal(decoded, prediction_of("0.png").numpy())


def test_repeated_image_counts_once_with_a_warning(caplog):
    once, twice = make_evaluator(), make_evaluator(observers=[recorder := Recorder()])
    process(once, NAMES)
    process(twice, [*NAMES, NAMES[2], NAMES[0]])
    assert twice.evaluate() == once.evaluate()
    assert "delivered again 2 times" in caplog.text
    assert recorder.calls == ["reset", *NAMES, "state", "finish"]


def test_observers_get_the_results_and_their_states_of_all_images():
    recorder = Recorder()
    evaluator = make_evaluator(observers=[recorder])
    process(evaluator, NAMES[::-1])
    results = evaluator.evaluate()["sem_seg"]
    assert recorder.results == results
    assert recorder.images == {name: int((label_of(name) != 255).sum()) for name in NAMES}
    assert list(recorder.images) == sorted(NAMES)
    assert recorder.total == evaluator.confusion_matrix.sum()
    evaluator.reset()
    assert recorder.pixels == {}
