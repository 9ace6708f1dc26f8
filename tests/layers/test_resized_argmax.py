"""The best class of each pixel against the plain way: resize all scores, then argmax."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from offseg_d2.layers import bilinear, interpolated_argmax, label_dtype
from tests.common import seed_all

CPU = torch.device("cpu")


def resize(scores: Tensor, *sizes: tuple[int, int]) -> Tensor:
    for size in sizes:
        scores = F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]
    return scores


def labels_of(scores: Tensor, size: tuple[int, int]) -> Tensor:
    dtype = torch.promote_types(scores.dtype, torch.float32)
    rows, columns = (
        bilinear(before, after, dtype=dtype, device=CPU)
        for before, after in zip(scores.shape[1:], size, strict=True)
    )
    return interpolated_argmax(scores, rows, columns)


def agreement(labels: Tensor, scores: Tensor) -> float:
    """Share of pixels with the best class, up to ties within rounding."""
    best, chosen = scores.amax(0), scores.gather(0, labels.long()[None])[0]
    return float((best - chosen <= 1e-6 * best.abs().clamp(min=1)).double().mean())


def regions(num_classes: int, height: int, width: int, cell: int = 8) -> Tensor:
    """Scores with smooth regions, as of a trained network."""
    coarse = torch.randn(1, num_classes, height // cell + 2, width // cell + 2)
    smooth = F.interpolate(coarse, size=(height, width), mode="bicubic")[0]
    return 3 * smooth + 0.1 * torch.randn(num_classes, height, width)


@pytest.mark.parametrize("make", [torch.randn, regions])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_labels_are_those_of_resizing_everything(make, memory_format):
    seed_all()
    scores = make(150, 40, 57)[None].contiguous(memory_format=memory_format)[0]
    expected = resize(scores, (160, 227))
    labels = labels_of(scores, (160, 227))
    assert labels.dtype == torch.uint8 and labels.shape == (160, 227)
    assert agreement(labels, expected) == 1
    assert (labels == expected.argmax(0)).float().mean() >= 0.99999


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((3, 1, 1), (5, 7)),
        ((3, 5, 7), (1, 1)),
        ((4, 9, 1), (30, 4)),
        ((19, 20, 30), (20, 30)),  # nothing to resize
        ((19, 20, 30), (13, 11)),
        ((19, 20, 30), (20, 61)),
        ((7, 12, 15), (300, 411)),
        ((1, 4, 4), (9, 9)),
    ],
)
@pytest.mark.parametrize("make", [torch.randn, regions])
def test_any_sizes(make, shape, size):
    scores = make(*shape)
    expected = resize(scores, size)
    labels = labels_of(scores, size)
    assert labels.shape == size
    assert agreement(labels, expected) == 1
    assert (labels != expected.argmax(0)).sum() <= 1


def test_two_resizes_with_a_cut_between_are_one_step():
    scores = regions(20, 24, 32).double()
    rows, columns = (
        bilinear(before, 4 * before, dtype=torch.float64, device=CPU)
        .cut(0, kept)
        .then(bilinear(kept, after, dtype=torch.float64, device=CPU))
        for before, kept, after in ((24, 93, 210), (32, 120, 77))
    )
    expected = resize(resize(scores, (96, 128))[:, :93, :120], (210, 77))
    assert torch.equal(interpolated_argmax(scores, rows, columns), expected.argmax(0).byte())


@pytest.mark.parametrize("name", ["_MAP_BYTES", "_BLOCK_BYTES", "_BLOCK_PIXELS", "_CHUNK_PIXELS"])
@pytest.mark.parametrize("size", [(61, 83), (20, 26), (9, 11)])
def test_the_sizes_of_the_blocks_change_nothing(monkeypatch, name, size):
    scores = regions(9, 20, 26, cell=5)
    expected = labels_of(scores, size)
    for value in (1, 3000, 20000):
        monkeypatch.setattr(f"offseg_d2.layers.resized_argmax.{name}", value)
        assert torch.equal(labels_of(scores, size), expected)


def test_only_pixels_between_different_classes_are_interpolated(monkeypatch):
    counted = []

    def weighted_sums(vectors: Tensor, positions: Tensor, weights: Tensor) -> Tensor:
        counted.append(len(positions))
        return F.embedding_bag(positions, vectors, mode="sum", per_sample_weights=weights)

    module = "offseg_d2.layers.resized_argmax"
    monkeypatch.setattr(f"{module}.weighted_sums", weighted_sums)
    scores = torch.zeros(5, 16, 16)
    scores[3, :, :10], scores[1, :, 10:] = 1, 1
    labels = labels_of(scores, (64, 64))
    assert torch.equal(labels, resize(scores, (64, 64)).argmax(0).byte())
    assert sum(counted) == 64 * 4 + 64  # four columns of pixels, from 64 rows of the map
    counted.clear()
    labels_of(torch.ones(5, 16, 16), (64, 64))
    assert not counted


def test_the_first_of_equal_classes_wins():
    scores = torch.zeros(6, 5, 5)
    assert labels_of(scores, (17, 13)).eq(0).all()
    scores[2:5] = 1  # three times the same
    assert labels_of(scores, (17, 13)).eq(2).all()
    scores[4, 2, 2] = 2  # the others are equal everywhere else
    expected = resize(scores, (17, 13)).argmax(0)
    assert set(expected.unique().tolist()) == {2, 4}
    assert torch.equal(labels_of(scores, (17, 13)), expected.byte())


def test_undefined_scores_give_the_class_that_argmax_gives():
    scores = regions(6, 12, 12, cell=4)
    scores[4, 3:7, 2:9] = torch.nan
    expected = resize(scores, (48, 48))
    assert torch.equal(labels_of(scores, (48, 48)), expected.argmax(0).byte())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_number_types(dtype):
    scores = regions(12, 20, 20).to(dtype)
    expected = resize(scores.to(torch.promote_types(dtype, torch.float32)), (80, 60))
    assert agreement(labels_of(scores, (80, 60)), expected) == 1


@pytest.mark.parametrize(
    ("num_classes", "dtype"),
    [(1, torch.uint8), (256, torch.uint8), (257, torch.int16), (40000, torch.int32)],
)
def test_labels_have_the_smallest_common_type_that_holds_them(num_classes, dtype):
    assert label_dtype(num_classes) == dtype
    scores = torch.zeros(num_classes, 2, 2)
    scores[-1] = 1
    labels = labels_of(scores, (3, 3))
    assert labels.dtype == dtype and labels.eq(num_classes - 1).all()


def test_scores_are_left_as_they_are_and_may_require_gradients():
    scores = regions(5, 10, 10).requires_grad_()
    before = scores.detach().clone()
    assert not labels_of(scores, (30, 30)).requires_grad
    assert torch.equal(scores, before)


def test_the_number_of_threads_is_left_as_it_was():
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            labels_of(regions(5, 10, 10), (30, 30))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
