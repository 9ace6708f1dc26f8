"""The Triton kernel of the argmax of resized scores against resizing in float64."""

import torch
import torch.nn.functional as F

from offseg_d2.layers.kernels import argmax_kernel


def compare(scores, size, out_size=None, dtype=torch.uint8) -> torch.Tensor:
    rows, columns = out_size or size
    labels = argmax_kernel(scores, *size, rows, columns, dtype)
    resized = F.interpolate(scores.double(), size=size, mode="bilinear", align_corners=False)
    expected = resized[..., :rows, :columns].argmax(1)
    assert labels.dtype == dtype
    assert torch.equal(labels.long(), expected)
    return labels


def check_labels_of_all_sizes():
    for shape, size, out_size in [
        ((2, 5, 4, 6), (16, 24), (13, 22)),  # padding is cut off
        ((1, 3, 5, 3), (17, 7), None),
        ((1, 3, 1, 2), (1, 9), None),
        ((1, 3, 9, 8), (5, 3), None),  # smaller than the scores
        ((1, 3, 4, 4), (4, 4), None),
    ]:
        compare(torch.randn(shape), size, out_size)


def check_numbers_of_classes_and_types():
    for classes, dtype in (
        (1, torch.uint8), (2, torch.uint8), (19, torch.uint8), (150, torch.int16),
        (171, torch.uint8), (300, torch.int16),
    ):  # fmt: skip
        scores = torch.randn(1, classes, 1, 2)
        scores[:, -1, 0, 0] = 9
        labels = compare(scores, (2, 3), dtype=dtype)
        assert labels[0, 0, 0] == classes - 1


def check_memory_layout_does_not_matter():
    scores = torch.randn(2, 5, 3, 4)
    wide = torch.zeros(2, 5, 6, 4)
    wide[:, :, ::2] = scores
    for own in (scores.contiguous(memory_format=torch.channels_last), wide[:, :, ::2]):
        assert torch.equal(compare(own, (6, 8)), compare(scores, (6, 8)))


def check_half_precision_is_compared_in_float32():
    for dtype in (torch.float16, torch.bfloat16):
        compare(torch.randn(1, 19, 3, 4).to(dtype), (9, 10))


def check_of_equal_scores_the_smaller_class_is_chosen():
    scores = torch.full((1, 11, 2, 2), -3.0)
    scores[:, [9, 2, 6]] = 1.5
    for size in ((3, 3), (4, 4), (5, 7)):
        assert argmax_kernel(scores, *size, *size, torch.uint8).eq(2).all()


def check_operator_is_sound():
    inputs = (torch.randn(1, 3, 2, 2), 4, 4, 3, 4, torch.uint8)
    torch.library.opcheck(argmax_kernel, inputs, test_utils=("test_schema", "test_faketensor"))
