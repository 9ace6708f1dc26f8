"""The confusion matrix and its metrics: by hand, by a slow loop, and the authors' numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch

from offseg_d2.evaluation import count_confusion, metrics_from_confusion
from tests.golden import parity_rules

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "J_iou_metric.npz"


def count(label, prediction, num_classes, ignore_value=255):
    return count_confusion(
        torch.as_tensor(label), torch.as_tensor(prediction), num_classes, ignore_value
    )


def test_matrix_of_a_hand_made_image():
    label = [[0, 0, 1], [1, 255, 2]]
    prediction = [[0, 1, 1], [1, 0, 0]]
    expected = [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    matrix = count(label, prediction, 3)
    assert matrix.dtype == np.int64
    assert matrix.tolist() == expected


def test_ids_outside_the_classes_count_for_the_other_side_only():
    matrix = count([[0, 7, 1, -1]], [[9, 1, 1, 0]], 2)
    assert matrix.tolist() == [[0, 0, 1], [0, 1, 0], [1, 1, 0]]
    metrics = metrics_from_confusion(matrix)
    # class 0: found 0 of 1 pixel, predicted once elsewhere; class 1: one hit, predicted twice
    assert metrics.iou.tolist() == [0.0, 0.5]
    assert metrics.pacc == 0.5


def test_matrix_equals_a_loop_over_pixels():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 6, (13, 17))
    label[label == 5] = 255
    prediction = rng.integers(0, 4, (13, 17))
    expected = np.zeros((5, 5), np.int64)
    for row, column in zip(label.ravel(), prediction.ravel(), strict=True):
        if row != 255:
            expected[row, column] += 1
    np.testing.assert_array_equal(count(label, prediction, 4), expected)


def test_prediction_may_be_of_any_integer_type():
    label = np.array([[0, 1, 2]], np.uint8)
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64):
        matrix = count(label, torch.tensor([[0, 1, 1]], dtype=dtype), 200)
        assert matrix[2, 1] == 1
        assert matrix.sum() == 3


# rows: labels. Class 2 is predicted once but never labelled, class 3 is in neither.
ABSENT = np.array(
    [[6, 0, 1, 0, 0], [1, 2, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
)


@pytest.mark.parametrize(("rule", "counted"), [("zero", 3), ("skip", 2)])
def test_class_absent_from_the_labels_counts_as_the_rule_says(rule, counted):
    metrics = metrics_from_confusion(ABSENT, rule)
    assert metrics.miou == pytest.approx((6 / 8 + 2 / 3) / counted)
    assert metrics.macc == pytest.approx((6 / 7 + 2 / 3) / 2)
    assert metrics.pacc == pytest.approx(8 / 10)
    assert metrics.fwiou == pytest.approx(0.7 * 6 / 8 + 0.3 * 2 / 3)
    assert np.isnan(metrics.iou[3])
    assert np.isnan(metrics.acc[2:]).all()
    assert np.isnan(metrics.iou[2]) == (rule == "skip")


def test_data_without_any_label_has_no_metrics():
    metrics = metrics_from_confusion(np.zeros((4, 4), np.int64))
    assert all(np.isnan(v) for v in (metrics.miou, metrics.fwiou, metrics.macc, metrics.pacc))


def test_unknown_rule_for_absent_classes_is_refused():
    with pytest.raises(ValueError, match=r"`TEST.SEM_SEG.ABSENT_CLASSES` must be .* 'drop'"):
        metrics_from_confusion(ABSENT, "drop")


@pytest.mark.parametrize("name", ["j150", "j19", "jmissing"])
def test_metrics_equal_the_authors_library(name):
    golden = np.load(GOLDEN)
    num_classes, num_images = (int(value) for value in golden[f"{name}_params"][:2])
    matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    for index in range(num_images):
        label, prediction = parity_rules.iou_pair(name, index)
        crcs = [parity_rules.crc(label), parity_rules.crc(prediction)]
        assert crcs == golden[f"{name}_crc_{index}"].tolist()
        matrix += count(label, prediction, num_classes)
    metrics = metrics_from_confusion(matrix)
    hits = np.diagonal(matrix)[:-1]
    np.testing.assert_array_equal(hits, golden[f"{name}_area_intersect"])
    np.testing.assert_array_equal(matrix[:-1].sum(1), golden[f"{name}_area_label"])
    np.testing.assert_array_equal(matrix[:, :-1].sum(0), golden[f"{name}_area_pred"])
    # the authors' fractions are float32
    np.testing.assert_allclose(metrics.iou, golden[f"{name}_IoU"], rtol=1e-6)
    np.testing.assert_allclose(metrics.acc, golden[f"{name}_Acc"], rtol=1e-6)
    summary = {"aAcc": metrics.pacc, "mIoU": metrics.miou, "mAcc": metrics.macc}
    for key, value in summary.items():
        assert round(100 * value, 2) == pytest.approx(float(golden[f"{name}_summary_{key}"]))
