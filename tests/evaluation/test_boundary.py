"""Boundary IoU: against the paper's procedure, one class at a time, and by hand."""

import math

import cv2
import numpy as np
import pytest
import torch
from detectron2.evaluation import SemSegEvaluator as Detectron2Evaluator

from offseg_d2.evaluation import SemSegEvaluator, boundary_iou, boundary_pixels, count_boundaries

IGNORED = 255


def rim_of_mask(mask: np.ndarray, ratio: float) -> np.ndarray:
    """The procedure of the paper for one binary mask: pad with zeros, erode, subtract."""
    distance = max(1, round(ratio * math.hypot(*mask.shape)))
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=distance)[1:-1, 1:-1]
    return mask & (eroded == 0)


def counts_of_one_class_at_a_time(label, prediction, num_classes, ratio) -> np.ndarray:
    counts = []
    for class_id in range(num_classes):
        of_label = rim_of_mask(label == class_id, ratio)
        of_prediction = rim_of_mask((prediction == class_id) & (label != IGNORED), ratio)
        counts.append([(of_label & of_prediction).sum(), of_label.sum(), of_prediction.sum()])
    return np.array(counts).T


def blobs(rng, height, width, num_classes, ignored=True) -> np.ndarray:
    """Regions of several sizes, with a few specks."""
    coarse = rng.integers(0, num_classes, (5, 6)).astype(np.uint8)
    ids = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)
    specks = rng.random(ids.shape) < 0.002
    ids[specks] = rng.integers(0, num_classes, specks.sum())
    if ignored:
        ids[rng.random(ids.shape) < 0.001] = IGNORED
        ids[height // 3 : height // 2, : width // 4] = IGNORED
    return ids


@pytest.mark.parametrize(
    ("height", "width", "num_classes", "ratio"),
    [(96, 128, 7, 0.02), (128, 96, 150, 0.02), (61, 83, 3, 0.1), (9, 7, 4, 0.02), (5, 4, 2, 1.0)],
)
def test_counts_equal_the_procedure_of_the_paper_for_each_class(height, width, num_classes, ratio):
    rng = np.random.default_rng(height)
    label = blobs(rng, height, width, num_classes)
    prediction = np.where(rng.random(label.shape) < 0.98, np.roll(label, 2, axis=1), 1)
    prediction = prediction.astype(np.uint8) % num_classes
    counts = count_boundaries(label, prediction, num_classes, IGNORED, ratio)
    expected = counts_of_one_class_at_a_time(label, prediction, num_classes, ratio)
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, expected)
    assert counts.sum() > 0


def test_rim_is_what_lies_within_the_distance_of_another_class_or_of_the_outside():
    rng = np.random.default_rng(3)
    ids = blobs(rng, 20, 24, 4, ignored=False)
    for distance in (1, 3, 30):
        expected = np.zeros(ids.shape, bool)
        for y, x in np.ndindex(*ids.shape):
            rows = range(y - distance, y + distance + 1)
            columns = range(x - distance, x + distance + 1)
            inside = rows[0] >= 0 and columns[0] >= 0 and rows[-1] < 20 and columns[-1] < 24
            square = ids[max(rows[0], 0) : rows[-1] + 1, max(columns[0], 0) : columns[-1] + 1]
            expected[y, x] = not inside or (square != ids[y, x]).any()
        np.testing.assert_array_equal(boundary_pixels(ids, distance), expected)


def test_boundary_between_classes_3_and_5_belongs_to_no_other_class():
    ids = np.full((100, 100), 3, np.uint8)
    ids[:, 50:] = 5
    counts = count_boundaries(ids, ids, 8, IGNORED)
    assert np.flatnonzero(counts.sum(axis=0)).tolist() == [3, 5]
    # Detectron2 subtracts eroded ids from ids, and sees class 2 there.
    theirs = Detectron2Evaluator._mask_to_boundary(None, ids)
    assert 2 in theirs


def test_value_by_hand():
    label, prediction = np.zeros((2, 100, 100), np.int64)
    label[:, 50:] = 1
    prediction[:, 60:] = 1
    counts = count_boundaries(label, prediction, 2, IGNORED)
    # d = 3; class 0 is 100x50 in the label and 100x60 in the prediction: frames 3 wide.
    frame = {width: 100 * width - 94 * (width - 6) for width in (40, 50, 60)}
    assert counts[1].tolist() == [frame[50], frame[50]]
    assert counts[2].tolist() == [frame[60], frame[40]]
    # Both frames share the rims at the image's border: three sides of the smaller region, of
    # which the columns at its inner side (3 wide) belong to the other's inside for 94 rows.
    shared = [100 * 50 - 94 * 47, 100 * 40 - 94 * 37]
    assert counts[0].tolist() == shared
    iou = boundary_iou(counts)
    expected = [shared[0] / (frame[50] + frame[60] - shared[0])]
    expected.append(shared[1] / (frame[50] + frame[40] - shared[1]))
    np.testing.assert_allclose(iou, expected)


def test_prediction_right_on_all_labelled_pixels_has_boundary_iou_one():
    rng = np.random.default_rng(5)
    label = blobs(rng, 80, 90, 5)
    prediction = np.where(label == IGNORED, rng.integers(0, 5, label.shape), label)
    iou = boundary_iou(count_boundaries(label, prediction, 5, IGNORED))
    assert (iou == 1).all()


def test_class_absent_from_the_labels_counts_as_the_rule_says():
    counts = np.array([[4, 0, 0], [8, 0, 0], [6, 5, 0]])
    np.testing.assert_array_equal(boundary_iou(counts, "zero"), [0.4, 0.0, np.nan])
    np.testing.assert_array_equal(boundary_iou(counts, "skip"), [0.4, np.nan, np.nan])


@pytest.mark.parametrize(("num_classes", "dtype"), [(5, np.int64), (300, np.int32), (254, "u1")])
def test_type_of_the_ids_and_number_of_classes_do_not_matter(num_classes, dtype):
    rng = np.random.default_rng(6)
    label, prediction = (blobs(rng, 40, 50, 5, ignored=False) for _ in range(2))
    expected = count_boundaries(label, prediction, 5, IGNORED)
    counts = count_boundaries(label.astype(dtype), prediction.astype(dtype), num_classes, -1)
    np.testing.assert_array_equal(counts[:, :5], expected)
    assert counts[:, 5:].sum() == 0


def test_evaluator_sums_over_images_and_reports_it_only_if_asked():
    rng = np.random.default_rng(7)
    labels = {f"{index}.png": blobs(rng, 64, 64 + index, 3) for index in range(3)}
    predictions = {name: np.roll(ids, 3, axis=0) % 3 for name, ids in labels.items()}
    expected = sum(
        counts_of_one_class_at_a_time(labels[name], predictions[name], 3, 0.02) for name in labels
    )
    results = {}
    for boundary in (False, True):
        evaluator = SemSegEvaluator(
            ["a", "b", "c"], IGNORED, lambda sample: labels[sample["file_name"]], boundary=boundary
        )
        for name, ids in predictions.items():
            evaluator.process([{"file_name": name}], [{"sem_seg": torch.from_numpy(ids)}])
        results[boundary] = evaluator.evaluate()["sem_seg"]
    added = {key: v for key, v in results[True].items() if key not in results[False]}
    iou = 100 * expected[0] / (expected[1] + expected[2] - expected[0])
    names = ["mBIoU", "BIoU-a", "BIoU-b", "BIoU-c"]
    assert added == pytest.approx(dict(zip(names, [iou.mean(), *iou], strict=True)))
    assert results[False].items() <= results[True].items()
