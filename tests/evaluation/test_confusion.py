"""The confusion matrix and its metrics: by hand, by a slow loop, and the authors' numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch

from offseg_d2.evaluation import confusion, count_confusion, metrics_from_confusion
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


@pytest.mark.parametrize(
    ("num_classes", "dtype", "ignore_value"),
    [
        (4, np.uint8, 255),
        (4, np.int64, 255),
        (4, np.int16, -1),
        (4, np.int64, 2**40),
        (4, np.int32, 0),  # the ignored id may be one of the classes'
        (253, np.uint8, 255),
        (254, np.int64, 254),
        (255, np.uint8, 255),
        (300, np.int32, 65535),
    ],
)
def test_matrix_equals_a_loop_over_pixels(num_classes, dtype, ignore_value):
    rng = np.random.default_rng(0)
    extremes = [0, 1, num_classes - 1, num_classes, num_classes + 1, 255, -1, 70000, ignore_value]
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    extremes = [value for value in extremes if low <= value <= high]
    label = rng.choice(extremes, (13, 17)).astype(dtype)
    prediction = rng.choice(extremes, (13, 17)).astype(dtype)
    expected = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    for row, column in zip(label.ravel().tolist(), prediction.ravel().tolist(), strict=True):
        if row != ignore_value:
            row = row if 0 <= row < num_classes else num_classes
            expected[row, column if 0 <= column < num_classes else num_classes] += 1
    before = label.copy(), prediction.copy()
    matrix = count(label, prediction, num_classes, ignore_value)
    assert matrix.dtype == np.int64
    np.testing.assert_array_equal(matrix, expected)
    np.testing.assert_array_equal((label, prediction), before)  # inputs are left alone


def test_large_images_are_counted_exactly_in_parts(monkeypatch):
    label = torch.from_numpy(np.random.default_rng(0).integers(0, 5, (50, 7)))
    prediction = label.flip(0)
    expected = count(label, prediction, 5)
    monkeypatch.setattr(confusion, "_EXACT_IN_FLOAT32", 30)  # four rows at a time
    np.testing.assert_array_equal(count(label, prediction, 5), expected)
    assert expected.sum() == 350


def test_more_pixels_of_a_kind_than_32_bit_floats_can_count():
    side = 4100  # 16 810 000 pixels, 2^24 are 16 777 216
    same = torch.zeros(side, side, dtype=torch.uint8)
    assert count(same, same, 2)[0, 0] == side * side


def test_image_without_pixels_counts_nothing():
    for shape in ((0, 0), (0, 5), (5, 0)):
        assert count(np.zeros(shape, np.uint8), np.zeros(shape, np.int64), 3).sum() == 0


def test_maps_may_be_views_of_larger_ones():
    label = np.random.default_rng(0).integers(0, 3, (20, 30)).astype(np.uint8)
    prediction = torch.from_numpy(label.astype(np.int64)).T
    view = label.T[::2, 3:9]
    matrix = count_confusion(view, prediction[::2, 3:9], 3, 255)
    assert np.diagonal(matrix).tolist() == [*np.bincount(view.ravel(), minlength=3), 0]


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
