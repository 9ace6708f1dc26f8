"""Drawn images with labels and predictions of every quality, and reports of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from offseg_d2.evaluation import EvaluationReport, RunInfo, SemSegEvaluator

IGNORED = 255
# Names that a page has to escape, and one class that no image holds.
CLASSES = ("road", 'sky "<b>"', "tree & </script>", "unseen")
COLORS = ((128, 64, 128), (70, 130, 180), (107, 142, 35), (220, 20, 60))
SIZE = (30, 40)
NUM_IMAGES = 14


def label_of(index: int) -> np.ndarray:
    """(30, 40) uint8: blocks of the first three classes, with an ignored rim."""
    blocks = np.random.default_rng([1, index]).integers(0, 3, (3, 4)).astype(np.uint8)
    label = np.kron(blocks, np.ones((10, 10), np.uint8))
    label[:2] = IGNORED
    return label


def prediction_of(index: int, num_images: int) -> np.ndarray:
    """(30, 40) uint8, the more wrong the higher the index."""
    prediction = label_of(index)
    prediction[prediction == IGNORED] = 0
    wrong = np.random.default_rng([2, index]).random(SIZE) < index / num_images
    prediction[wrong] = (prediction[wrong] + 1) % 3
    return prediction


def file_names(folder: Path, num_images: int) -> list[str]:
    """Draw the images; returns their names, which end with their index."""
    paths = [folder / f"image_{index:03d}.png" for index in range(num_images)]
    for index, path in enumerate(paths):
        pixels = np.random.default_rng([3, index]).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return [str(path) for path in paths]


def index_of(file_name: str) -> int:
    return int(Path(file_name).stem[-3:])


def make_report(folder: Path, **kwargs: Any) -> EvaluationReport:
    run = RunInfo(
        "drawn_val", "drawn.yaml", "model_final.pth", {"inference": "whole"}, {"torch": "2.x"}
    )
    return EvaluationReport(str(folder), CLASSES, COLORS, IGNORED, run=run, **kwargs)


def evaluate(report: EvaluationReport, names: list[str], **kwargs: Any) -> dict[str, float]:
    """Evaluate with the report as observer; returns the evaluator's results."""
    evaluator = SemSegEvaluator(
        CLASSES,
        IGNORED,
        lambda record: label_of(index_of(record["file_name"])),
        observers=[report],
        distributed=False,
        **kwargs,
    )
    for name in names:
        prediction = torch.from_numpy(prediction_of(index_of(name), len(names)))
        evaluator.process([{"file_name": name}], [{"sem_seg": prediction}])
    return evaluator.evaluate()["sem_seg"]


def write_small_report(folder: Path) -> tuple[Path, dict[str, float], list[str]]:
    """Evaluate some images; returns the report's folder, the results and the images' names."""
    names = file_names(folder, NUM_IMAGES)
    results = evaluate(make_report(folder / "report", num_examples=3), names, boundary=True)
    return folder / "report", results, names


def refuse_constant(text: str) -> None:
    raise AssertionError(f"not strict JSON: {text}")


def read_metrics(folder: Path) -> dict[str, Any]:
    """``metrics.json``, read as strictly as can be."""
    text = (folder / "metrics.json").read_text(encoding="utf-8")
    return json.loads(text, parse_constant=refuse_constant)


def write_large_report(folder: Path, num_classes: int, num_images: int = 12) -> None:
    """A report with so many classes and images of 300x400 pixels."""
    rng = np.random.default_rng(4)
    names = [f"class {index}, with a name that is rather long" for index in range(num_classes)]
    colors = rng.integers(0, 256, (num_classes, 3))
    report = EvaluationReport(
        str(folder / "report"), names, colors, IGNORED, run=RunInfo("large_val")
    )
    total = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    for index in range(num_images):
        path = folder / f"large_{index}.jpg"
        coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        coarse.resize((400, 300), Image.Resampling.BICUBIC).save(path)
        label, prediction = (
            np.kron(rng.integers(0, num_classes, (15, 20)), np.ones((20, 20), np.int64))
            for _ in range(2)
        )
        kept = np.kron(rng.random((15, 20)) < 0.7, np.ones((20, 20), bool))
        prediction[kept] = label[kept]
        counts = np.zeros_like(total)
        np.add.at(counts, (label, prediction), 1)
        report.process({"file_name": str(path)}, label, prediction, counts)
        total += counts
    results = {"mIoU": 50.0} | {f"IoU-{name}": float(i % 7) for i, name in enumerate(names)}
    report.finish(results, total, report.state())
