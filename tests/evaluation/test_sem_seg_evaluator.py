"""The evaluator: result keys, sizes, forms of predictions, and that nothing is written unasked."""

import json
import os

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


def test_results_have_the_keys_of_detectron2_in_percent():
    evaluator = make_evaluator()
    process(evaluator, NAMES)
    results = evaluator.evaluate()
    assert list(results) == ["sem_seg"]
    expected = {"mIoU", "fwIoU", "mACC", "pACC"}
    expected |= {f"{kind}-{name}" for kind in ("IoU", "ACC") for name in CLASSES}
    assert results["sem_seg"].keys() == expected
    label = np.concatenate([label_of(name).ravel() for name in NAMES])
    prediction = np.concatenate([prediction_of(name).numpy().ravel() for name in NAMES])
    right = (label == prediction)[label != 255].mean()
    assert results["sem_seg"]["pACC"] == pytest.approx(100 * right)
    print_csv_format(results)  # Detectron2's own printer takes them


def test_scores_and_label_maps_give_the_same_result():
    by_scores, by_ids = make_evaluator(), make_evaluator()
    process(by_scores, NAMES, to_scores)
    process(by_ids, NAMES, lambda prediction: prediction.to(torch.uint8))
    assert by_scores.evaluate() == by_ids.evaluate()


def test_equal_scores_go_to_the_first_class():
    evaluator = make_evaluator()
    evaluator.process([{"file_name": "0.png"}], [{"sem_seg": torch.zeros(3, 6, 8)}])
    evaluator.evaluate()
    assert evaluator.confusion_matrix[:, 1:].sum() == 0


def test_result_does_not_depend_on_the_order_of_images():
    forward, backward = make_evaluator(), make_evaluator()
    process(forward, sorted(NAMES))
    process(backward, sorted(NAMES, reverse=True))
    assert forward.evaluate() == backward.evaluate()


def test_evaluating_twice_counts_once_and_reset_forgets():
    evaluator = make_evaluator()
    process(evaluator, NAMES)
    assert evaluator.evaluate() == evaluator.evaluate()
    assert evaluator.confusion_matrix.sum() == sum((label_of(n) != 255).sum() for n in NAMES)
    evaluator.reset()
    with pytest.raises(ValueError, match="none was counted"):
        evaluator.evaluate()


def test_prediction_of_another_size_is_refused_naming_the_file():
    evaluator = make_evaluator()
    with pytest.raises(ValueError, match=r"`0.png` must have .* \(6, 8\), but has \(3, 8\)"):
        evaluator.process(
            [{"file_name": "0.png"}], [{"sem_seg": torch.zeros(3, 8, dtype=torch.int64)}]
        )


@pytest.mark.parametrize("sem_seg", [torch.zeros(4, 6, 8), torch.zeros(6, 8)])
def test_prediction_of_another_form_is_refused_naming_the_file(sem_seg):
    with pytest.raises(ValueError, match=r"`0.png` must be \(3, H, W\) scores"):
        make_evaluator().process([{"file_name": "0.png"}], [{"sem_seg": sem_seg}])


def test_nothing_is_written_unless_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluator = make_evaluator()
    process(evaluator, NAMES)
    evaluator.evaluate()
    assert os.listdir(tmp_path) == []


def test_written_predictions_decode_to_what_was_predicted(tmp_path):
    evaluator = make_evaluator(output_dir=str(tmp_path), dataset_ids=[7, 8, 9])
    process(evaluator, ["0.png"], to_scores)
    evaluator.evaluate()
    segments = json.loads((tmp_path / "sem_seg_predictions.json").read_text())
    decoded = np.zeros((6, 8), np.int64)
    for segment in segments:
        assert segment["file_name"] == "0.png"
        decoded[mask_utils.decode(segment["segmentation"]) == 1] = segment["category_id"]
    np.testing.assert_array_equal(decoded - 7, prediction_of("0.png").numpy())


def test_table_of_classes_is_logged(caplog):
    evaluator = make_evaluator()
    process(evaluator, NAMES)
    with caplog.at_level("INFO"):
        evaluator.evaluate()
    assert "Evaluation of 4 images" in caplog.text
    assert all(name in caplog.text for name in CLASSES)


def test_repeated_image_counts_once_with_a_warning(caplog):
    once, twice = make_evaluator(), make_evaluator(observers=[recorder := Recorder()])
    process(once, NAMES)
    process(twice, [*NAMES, NAMES[2], NAMES[0]])
    assert twice.evaluate() == once.evaluate()
    assert "delivered again 2 times" in caplog.text
    assert recorder.calls == ["reset", *NAMES, "state", "finish"]


def test_observers_get_the_results_and_what_they_have_kept_of_each_image():
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


def test_class_ids_may_be_of_any_integer_type():
    expected = make_evaluator()
    process(expected, NAMES)
    expected = expected.evaluate()
    for dtype in (torch.uint8, torch.int16, torch.int32):
        evaluator = make_evaluator()
        process(evaluator, NAMES, lambda prediction, dtype=dtype: prediction.to(dtype))
        assert evaluator.evaluate() == expected
