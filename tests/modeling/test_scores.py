"""Streams of scores against whole score maps: the same values, in less memory."""

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from offseg_d2.layers import bilinear
from offseg_d2.modeling.meta_arch import scores as scores_module
from offseg_d2.modeling.meta_arch.inference import InferenceSettings, predict, score_bands
from offseg_d2.modeling.meta_arch.mask_segmentor import QueryScores
from offseg_d2.modeling.meta_arch.scores import (
    MapScores,
    ScoreBands,
    Scores,
    label_map,
    resized_blocks,
)
from tests.common import assert_close

SIZES = [(24, 36), (24, 100), (77, 50), (11, 9), (1, 1), (23, 36)]


def interpolate(scores: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]


def collect(scores: ScoreBands, size: tuple[int, int]) -> Tensor:
    """All resized blocks side by side; checks that none overlaps another or is missing."""
    blocks = list(resized_blocks(scores, size))
    tops = [first for first, _ in blocks]
    heights = [block.shape[1] for _, block in blocks]
    assert tops == [sum(heights[:i]) for i in range(len(heights))]
    return torch.cat([block for _, block in blocks], dim=1)


def split(scores: Tensor, heights: list[int]) -> list[Tensor]:
    assert sum(heights) == scores.shape[1]
    return list(scores.split(heights, dim=1))


@pytest.fixture
def small_bands(monkeypatch):
    """Bands of a few rows, so that small images have several."""
    monkeypatch.setattr("offseg_d2.modeling.meta_arch.scores.BAND_BYTES", 4 * 7 * 36 * 3)


# ------------------------------------------------------------ streams


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("heights", [[24], [1] * 24, [5, 1, 17, 1], [23, 1]])
def test_how_the_stream_is_cut_into_bands_changes_nothing(size, heights):
    scores = torch.randn(7, 24, 36, dtype=torch.float64)
    expected = interpolate(scores, size)
    assert_close(collect(ScoreBands((24, 36), split(scores, heights)), size), expected, 1e-12)
    labels = label_map(ScoreBands((24, 36), split(scores, heights)), size)
    assert torch.equal(labels, expected.argmax(0).byte())


def test_rows_that_no_result_needs_are_not_asked_for():
    def bands():
        yield torch.randn(3, 10, 8)
        raise AssertionError("the padding was read")

    assert label_map(ScoreBands((10, 8), bands()), (20, 16)).shape == (20, 16)


@pytest.mark.parametrize("size", SIZES)
def test_a_map_is_resized_cut_and_resized_again(size, small_bands):
    logits = torch.randn(7, 8, 10, dtype=torch.float64)
    full = interpolate(logits, (32, 40))[:, :24, :36]
    scores = MapScores(logits, (32, 40), (24, 36))
    assert_close(collect(scores.as_bands((24, 36)), size), interpolate(full, size), 1e-12)
    labels = label_map(scores.as_bands((24, 36)), size)
    assert torch.equal(labels, interpolate(full, size).argmax(0).byte())
    smaller = interpolate(full[:, :20, :30], size)
    assert_close(collect(scores.as_bands((20, 30)), size), smaller, 1e-12)


def test_a_map_gives_any_rows():
    logits = torch.randn(7, 8, 10)
    full = interpolate(logits, (32, 40))[:, :24, :36]
    scores = MapScores(logits, (32, 40), (24, 36))
    for first, end in ((0, 24), (0, 1), (5, 9), (23, 24)):
        assert_close(scores.rows(first, end), full[:, first:end], 1e-6)


def test_computed_scores_are_computed_once_from_top_to_bottom(small_bands):
    full, asked = torch.randn(7, 24, 40), []

    class Computed(Scores):
        def rows(self, first: int, end: int) -> Tensor:
            asked.append((first, end))
            return full[:, first:end]

    scores = Computed(7, (24, 40))
    assert torch.equal(label_map(scores.as_bands((22, 36)), (22, 36)), full[:, :22, :36].argmax(0))
    assert len(asked) > 3 and asked[0][0] == 0 and asked[-1][1] == 22
    assert [end for _, end in asked[:-1]] == [first for first, _ in asked[1:]]


def test_half_precision_scores_are_interpolated_in_float32():
    logits = torch.randn(7, 8, 10).bfloat16()
    expected = interpolate(logits.float(), (32, 40))
    scores = MapScores(logits, (32, 40))
    assert_close(scores.rows(3, 9), expected[:, 3:9], 1e-6)
    assert_close(collect(scores.as_bands((32, 40)), (32, 40)), expected, 1e-6)


# ------------------------------------------------------------ sliding window


class Shrinking:
    """A network with logits at stride 2 that depend on the whole window."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.alive: list[weakref.ref] = []
        self.most_alive = 0

    def dense(self, images: Tensor) -> Tensor:
        logits = torch.stack([interpolate(x, images.shape[-2:]) for x in self.logits(images)])
        return logits

    def logits(self, images: Tensor) -> Tensor:
        pooled = F.avg_pool2d(images, 2, ceil_mode=True)
        pooled = torch.cat([pooled, 0.7 * pooled.flip(1)], 1)
        return pooled - pooled.mean((1, 2, 3), keepdim=True)

    def scores(self, images: Tensor) -> list[Scores]:
        self.batches.append(len(images))
        size = (images.shape[-2], images.shape[-1])
        results = [MapScores(x, size) for x in self.logits(images)]
        self.alive += [weakref.ref(x) for x in results]
        self.most_alive = max(self.most_alive, sum(x() is not None for x in self.alive))
        return results


@pytest.mark.parametrize("window_batch", [1, 3, 5, 100])
@pytest.mark.parametrize(
    ("size", "stride"),
    [((26, 38), (8, 10)), ((50, 20), (3, 12)), ((26, 38), (12, 12)), ((7, 9), (8, 8))],
)
def test_streamed_windows_are_the_average_of_all_windows(window_batch, size, stride, small_bands):
    images = torch.randn(3, 3, *size, dtype=torch.float64)
    settings = InferenceSettings("slide", (12, 12), stride, window_batch, size_divisibility=4)
    network = Shrinking()
    expected = predict(network.dense, images, settings)
    streams = score_bands(network.scores, images, settings)
    for scores, logits in zip(streams, expected, strict=True):
        assert_close(collect(scores, size), logits, 1e-12)
    # Batches of windows are filled up with those of the next image.
    assert all(number == window_batch for number in network.batches[:-1])
    for scores, logits in zip(score_bands(network.scores, images, settings), expected, strict=True):
        labels = label_map(scores, (31, 45))
        assert torch.equal(labels, interpolate(logits, (31, 45)).argmax(0).byte())


def test_no_more_than_two_rows_of_windows_are_kept():
    network, images = Shrinking(), torch.randn(1, 3, 400, 30)
    settings = InferenceSettings("slide", (12, 12), (8, 9), window_batch=1)
    for scores in score_bands(network.scores, images, settings):
        label_map(scores, (400, 30))
    assert sum(network.batches) == 50 * 3
    assert network.most_alive <= 2 * 3 + 1


def test_a_whole_image_that_is_padded_is_cut_again():
    network, images = Shrinking(), torch.randn(2, 3, 21, 30, dtype=torch.float64)
    settings = InferenceSettings("whole", size_divisibility=16)
    expected = predict(network.dense, images, settings)
    for scores, logits in zip(score_bands(network.scores, images, settings), expected, strict=True):
        assert_close(collect(scores, (40, 50)), interpolate(logits, (40, 50)), 1e-12)


def test_bilinear_of_a_map_at_full_size_is_recognised():
    assert bilinear(5, 5, dtype=torch.float32, device=torch.device("cpu")).is_identity
    full = torch.randn(4, 9, 9)
    assert MapScores(full, (9, 9)).rows(2, 5).data_ptr() == full[:, 2:].data_ptr()


@pytest.mark.parametrize("mode", ["whole", "slide"])
@pytest.mark.parametrize("kind", ["map", "queries"])
def test_the_form_for_other_devices_gives_the_same(kind, mode, monkeypatch):
    mix, classes = torch.randn(5, 3), torch.eye(5)[:, :4]

    def network(crops: Tensor) -> list[Scores]:
        maps = torch.einsum("kc,bchw->bkhw", mix, F.avg_pool2d(crops, 4))
        size = tuple(crops.shape[-2:])
        if kind == "map":
            return [MapScores(m, size) for m in maps]
        return [QueryScores(classes, m, size) for m in maps]

    images, settings = torch.randn(1, 3, 40, 64) * 4, InferenceSettings(mode, (24, 40), (16, 24))

    def results() -> tuple[Tensor, Tensor]:
        bands = next(iter(score_bands(network, images, settings)))
        labels = label_map(bands, (50, 81))
        bands = next(iter(score_bands(network, images, settings)))
        return labels, torch.cat([block for _, block in resized_blocks(bands, (50, 81))], dim=1)

    labels, resized = results()
    monkeypatch.setattr(scores_module, "works_by_rows", lambda scores: False)
    monkeypatch.setattr(scores_module, "DEVICE_BYTES", 4 * 2 * 50 * 81)  # two classes at a time
    other_labels, other_resized = results()
    assert other_labels.dtype == labels.dtype and labels.unique().numel() > 1
    assert (other_labels != labels).float().mean() < 1e-3  # ties within rounding
    assert_close(other_resized, resized)


def reference_argmax(scores, height, width, rows, columns, dtype):
    """What the kernel computes, in PyTorch."""
    resized = F.interpolate(scores, (height, width), mode="bilinear")
    return resized.argmax(1)[:, :rows, :columns].to(dtype)


# Size of the map's resize or None, what counts of it, size of the result, whether by the kernel.
RESIZES = {
    "none before": (None, (9, 12), (20, 31), True),
    "none at all": (None, (9, 12), (9, 12), True),
    "cut": ((36, 48), (33, 47), (33, 47), True),
    "cut, then again": ((36, 48), (33, 47), (50, 60), False),
    "twice": ((36, 48), (36, 48), (50, 60), False),
}


@pytest.mark.parametrize("case", RESIZES)
def test_scores_that_are_resized_once_go_to_the_kernel(case, monkeypatch):
    resized, counted, size, by_kernel = RESIZES[case]
    calls = []

    def argmax(*args):
        calls.append(args)
        return reference_argmax(*args)

    monkeypatch.setattr(scores_module, "works_by_rows", lambda scores: False)
    bands = ScoreBands(counted, [torch.randn(5, 9, 12)], resized=resized)
    expected = label_map(bands, size)
    monkeypatch.setattr(scores_module, "kernels_apply", lambda scores: True)
    monkeypatch.setattr(scores_module, "argmax_kernel", argmax)
    found = label_map(bands, size)
    assert torch.equal(found, expected) and found.dtype == torch.uint8
    assert len(calls) == by_kernel
