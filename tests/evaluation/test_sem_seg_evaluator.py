"""The evaluator: result keys, sizes, forms of predictions, and that nothing is written unasked."""

import json
import os

import numpy as np
import pytest
import torch
from detectron2.evaluation import print_csv_format
from pycocotools import mask as mask_utils

from offseg_d2.evaluation import SemSegEvaluator

CLASSES = ("road", "sky", "tree")


def make_labels(num_images: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, (num_images, 6, 8)).astype(np.uint8)
    labels[labels == 3] = 255
    return {f"{index}.png": label for index, label in enumerate(labels)}


LABELS = make_labels(4)
RNG = np.random.default_rng(2)
PREDICTIONS = {name: torch.from_numpy(RNG.integers(0, 3, (6, 8))) for name in LABELS}


def make_evaluator(**kwargs) -> SemSegEvaluator:
    return SemSegEvaluator(CLASSES, 255, lambda record: LABELS[record["file_name"]], **kwargs)


def process(evaluator: SemSegEvaluator, names, convert=lambda prediction: prediction) -> None:
    for name in names:
        evaluator.process([{"file_name": name}], [{"sem_seg": convert(PREDICTIONS[name])}])


def to_scores(prediction: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(prediction, 3).permute(2, 0, 1).float()


def test_results_have_the_keys_of_detectron2_in_percent():
    evaluator = make_evaluator()
    process(evaluator, LABELS)
    results = evaluator.evaluate()
    assert list(results) == ["sem_seg"]
    expected = {"mIoU", "fwIoU", "mACC", "pACC"}
    expected |= {f"{kind}-{name}" for kind in ("IoU", "ACC") for name in CLASSES}
    assert results["sem_seg"].keys() == expected
    label = np.concatenate([LABELS[name].ravel() for name in LABELS])
    prediction = np.concatenate([PREDICTIONS[name].numpy().ravel() for name in LABELS])
    right = (label == prediction)[label != 255].mean()
    assert results["sem_seg"]["pACC"] == pytest.approx(100 * right)
    print_csv_format(results)  # Detectron2's own printer takes them


def test_scores_and_label_maps_give_the_same_result():
    by_scores, by_ids = make_evaluator(), make_evaluator()
    process(by_scores, LABELS, to_scores)
    process(by_ids, LABELS, lambda prediction: prediction.to(torch.uint8))
    assert by_scores.evaluate() == by_ids.evaluate()


def test_equal_scores_go_to_the_first_class():
    evaluator = make_evaluator()
    evaluator.process([{"file_name": "0.png"}], [{"sem_seg": torch.zeros(3, 6, 8)}])
    evaluator.evaluate()
    assert evaluator.confusion_matrix[:, 1:].sum() == 0


def test_result_does_not_depend_on_the_order_of_images():
    forward, backward = make_evaluator(), make_evaluator()
    process(forward, sorted(LABELS))
    process(backward, sorted(LABELS, reverse=True))
    assert forward.evaluate() == backward.evaluate()


def test_evaluating_twice_counts_once_and_reset_forgets():
    evaluator = make_evaluator()
    process(evaluator, LABELS)
    assert evaluator.evaluate() == evaluator.evaluate()
    assert evaluator.confusion_matrix.sum() == sum((v != 255).sum() for v in LABELS.values())
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
    process(evaluator, LABELS)
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
    np.testing.assert_array_equal(decoded - 7, PREDICTIONS["0.png"].numpy())


def test_table_of_classes_is_logged(caplog):
    evaluator = make_evaluator()
    process(evaluator, LABELS)
    with caplog.at_level("INFO"):
        evaluator.evaluate()
    assert "Evaluation of 4 images" in caplog.text
    assert all(name in caplog.text for name in CLASSES)
