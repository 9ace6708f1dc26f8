"""Whole-image and sliding-window inference with networks whose results are known."""

import pytest
import torch
from torch import Tensor

from offseg_d2.modeling.meta_arch import InferenceSettings, predict, window_origins
from offseg_d2.modeling.meta_arch.inference import pad_to_multiple, resize_logits
from tests.common import assert_close, offseg_config


class Recorder:
    """A network that returns its input's first two channels and remembers the crops."""

    def __init__(self) -> None:
        self.crops: list[Tensor] = []
        self.batches: list[int] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.crops.extend(images)
        self.batches.append(len(images))
        return images[:, :2].clone()


def slide(crop: tuple[int, int], stride: tuple[int, int], **kwargs) -> InferenceSettings:
    return InferenceSettings("slide", crop, stride, **kwargs)


@pytest.mark.parametrize(
    ("length", "window", "stride", "expected"),
    [
        (2048, 1024, 768, [0, 768, 1024]),  # Cityscapes: the last is moved back
        (1024, 1024, 768, [0]),
        (1025, 1024, 768, [0, 1]),
        (683, 512, 480, [0, 171]),
        (992, 512, 480, [0, 480]),  # fits exactly
        (993, 512, 480, [0, 480, 481]),
        (300, 512, 480, [0]),  # smaller than the window
        (10, 4, 4, [0, 4, 6]),
        (7, 3, 1, [0, 1, 2, 3, 4]),
        (1, 1, 1, [0]),
    ],
)
def test_window_origins(length, window, stride, expected):
    assert window_origins(length, window, stride) == expected


def test_windows_cover_everything_and_stay_inside():
    for length in range(1, 60):
        for window in (1, 5, 8, 16):
            for stride in range(1, window + 1):
                covered = set()
                origins = window_origins(length, window, stride)
                assert origins == sorted(set(origins))
                for start in origins:
                    end = min(start + window, length)
                    assert start >= 0 and (end - start == window or length < window)
                    covered |= set(range(start, end))
                assert covered == set(range(length))


def test_windows_go_row_by_row_and_hold_the_right_pixels():
    network = Recorder()
    image = torch.arange(3.0 * 6 * 10).view(1, 3, 6, 10)
    predict(network, image, slide((4, 6), (3, 4), window_batch=100))
    expected = [image[0, :, y : y + 4, x : x + 6] for y in (0, 2) for x in (0, 4)]
    assert len(network.crops) == 4
    for crop, piece in zip(network.crops, expected, strict=True):
        assert torch.equal(crop, piece)


def test_overlapping_windows_are_averaged():
    # Three windows on a row of 6 pixels: [0, 4), [2, 6) ... with values that name the window.
    calls = iter([1.0, 2.0, 4.0])

    def network(images: Tensor) -> Tensor:
        return torch.full((1, 1, *images.shape[-2:]), next(calls))

    logits = predict(network, torch.zeros(1, 3, 1, 7), slide((1, 4), (1, 2), window_batch=1))
    # windows start at 0, 2, 3
    expected = torch.tensor([1, 1, 3 / 2, 7 / 3, 3, 3, 4]).view(1, 1, 1, 7)
    assert_close(logits, expected)


def test_averaging_in_both_directions():
    calls = iter([1.0, 2.0, 3.0, 6.0])

    def network(images: Tensor) -> Tensor:
        return torch.full((1, 1, *images.shape[-2:]), next(calls))

    logits = predict(network, torch.zeros(1, 3, 3, 3), slide((2, 2), (1, 1), window_batch=1))
    expected = torch.tensor([[1, 1.5, 2], [2, 3, 4], [3, 4.5, 6]]).view(1, 1, 3, 3)
    assert_close(logits, expected)


@pytest.mark.parametrize("window_batch", [1, 2, 3, 5, 100])
def test_number_of_windows_at_once_changes_nothing_but_the_calls(window_batch):
    network, images = Recorder(), torch.randn(2, 3, 6, 10)
    settings = slide((4, 6), (3, 4), window_batch=window_batch)
    assert_close(predict(network, images, settings), images[:, :2])  # averages of equal values
    assert sum(network.batches) == 8 and max(network.batches) == min(window_batch, 8)


def test_images_of_a_batch_are_kept_apart():
    images = torch.randn(3, 3, 5, 9)
    settings = slide((3, 4), (2, 3), window_batch=4)

    def network(crops: Tensor) -> Tensor:
        return crops[:, :1] - crops.mean((1, 2, 3), keepdim=True)  # depends on the whole window

    together = predict(network, images, settings)
    alone = torch.cat([predict(network, image[None], settings) for image in images])
    assert_close(together, alone)


@pytest.mark.parametrize("size", [(6, 10), (6, 4), (3, 10), (2, 2)])
def test_sliding_window_equals_whole_image_when_window_covers_it(size):
    images = torch.randn(2, 3, *size)

    def network(crops: Tensor) -> Tensor:
        return crops.softmax(-1) + crops.mean((2, 3), keepdim=True)

    whole = predict(network, images, InferenceSettings("whole"))
    assert_close(predict(network, images, slide((6, 10), (5, 7))), whole)


@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_padding_is_zero_at_right_and_bottom_and_is_cut_off_again(mode):
    network, images = Recorder(), torch.randn(1, 3, 5, 6) + 10
    settings = InferenceSettings(mode, (8, 8), (8, 8), size_divisibility=8)
    logits = predict(network, images, settings)
    (crop,) = network.crops
    assert crop.shape == (3, 8, 8)
    assert torch.equal(crop[:, :5, :6], images[0])
    assert crop[:, 5:].eq(0).all() and crop[:, :, 6:].eq(0).all()
    assert torch.equal(logits, images[:, :2])


def test_padding_to_a_multiple():
    images = torch.ones(1, 1, 5, 8)
    assert pad_to_multiple(images, 4).shape[-2:] == (8, 8)
    assert pad_to_multiple(images, 4).sum() == images.sum()
    for multiple in (0, 1, 5 * 8):
        padded = pad_to_multiple(images, multiple)
        assert (padded is images) == (multiple <= 1)
    assert pad_to_multiple(torch.ones(1, 1, 8, 4), 4).shape[-2:] == (8, 4)


def test_resizing_uses_half_pixel_centres_without_antialiasing():
    logits = torch.tensor([0.0, 4.0]).view(1, 1, 1, 2)
    wider = resize_logits(logits, (1, 4)).flatten()
    assert_close(wider, torch.tensor([0.0, 1.0, 3.0, 4.0]))
    narrower = resize_logits(torch.tensor([0.0, 0.0, 9.0, 9.0]).view(1, 1, 1, 4), (1, 2))
    assert_close(narrower.flatten(), torch.tensor([0.0, 9.0]))
    assert resize_logits(logits, (1, 2)) is logits


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"mode": "window"}, r"`TEST.SEM_SEG.MODE` must be one of .*, but is 'window'"),
        ({"crop_size": (0, 5)}, r"`TEST.SEM_SEG.CROP_SIZE` must be two positive sizes, but is"),
        ({"crop_size": (512,)}, r"`TEST.SEM_SEG.CROP_SIZE` must be two positive sizes, but is"),
        ({"stride": (480, -1)}, r"`TEST.SEM_SEG.STRIDE` must be two positive sizes, but is"),
        (
            {"mode": "slide", "crop_size": (512, 512), "stride": (513, 480)},
            r"`TEST.SEM_SEG.STRIDE` must not exceed CROP_SIZE \(512, 512\).* but is \(513, 480\)",
        ),
        ({"window_batch": 0}, r"`TEST.SEM_SEG.WINDOW_BATCH` must be at least 1, but is 0"),
        (
            {"size_divisibility": -1},
            r"`TEST.SEM_SEG.SIZE_DIVISIBILITY` must not be negative, but is -1",
        ),
    ],
)
def test_unusable_settings_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        InferenceSettings(**kwargs)


def test_settings_are_read_from_the_configuration():
    cfg = offseg_config(
        *("TEST.SEM_SEG.MODE", "slide"),
        *("TEST.SEM_SEG.CROP_SIZE", [100, 200]),
        *("TEST.SEM_SEG.STRIDE", [50, 150]),
        *("TEST.SEM_SEG.WINDOW_BATCH", 3),
        *("TEST.SEM_SEG.SIZE_DIVISIBILITY", 32),
    )
    expected = InferenceSettings("slide", (100, 200), (50, 150), 3, 32)
    assert InferenceSettings.from_config(cfg) == expected
