"""Small label maps and predictions, and an evaluator of them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from offseg_d2.evaluation import EvaluatedImage, EvaluationObserver, SemSegEvaluator

CLASSES = ("road", "sky", "tree")
IGNORED = 255


def label_of(name: str) -> np.ndarray:
    """(6, 8) uint8 label map that the file name determines."""
    rng = np.random.default_rng([1, *name.encode()])
    label = rng.integers(0, 4, (6, 8)).astype(np.uint8)
    label[label == 3] = IGNORED
    return label


def prediction_of(name: str) -> torch.Tensor:
    """(6, 8) int64 prediction that the file name determines."""
    rng = np.random.default_rng([2, *name.encode()])
    return torch.from_numpy(rng.integers(0, 3, (6, 8)))


def make_evaluator(**kwargs: Any) -> SemSegEvaluator:
    return SemSegEvaluator(CLASSES, IGNORED, lambda sample: label_of(sample["file_name"]), **kwargs)


def process(
    evaluator: SemSegEvaluator,
    names: list[str],
    convert: Callable[[torch.Tensor], torch.Tensor] = lambda prediction: prediction,
) -> None:
    for name in names:
        evaluator.process([{"file_name": name}], [{"sem_seg": convert(prediction_of(name))}])


class Recorder(EvaluationObserver):
    """Remembers what it is called with."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.pixels: dict[str, int] = {}
        self.images: dict[str, int] = {}
        self.results: dict[str, float] = {}
        self.total = 0

    def reset(self) -> None:
        self.calls.append("reset")
        self.pixels = {}

    def process(self, image: EvaluatedImage) -> None:
        self.calls.append(image.file_name)
        np.testing.assert_array_equal(image.label, label_of(image.file_name))
        np.testing.assert_array_equal(image.prediction, prediction_of(image.file_name))
        self.pixels[image.file_name] = int(image.counts.sum())

    def state(self) -> dict[str, int]:
        self.calls.append("state")
        return self.pixels

    def finish(self, results, confusion_matrix, images) -> None:
        self.calls.append("finish")
        self.results, self.total = dict(results), int(confusion_matrix.sum())
        self.images = dict(images)
