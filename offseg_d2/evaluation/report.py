"""A report of each evaluation: ``metrics.json`` and the page ``report.html``.

Keys of ``metrics.json``, which is strict JSON: what cannot be measured (NaN) is null, shares and
scores are percent.

| key | meaning |
|---|---|
| format | ``FORMAT``; another number if keys change their meaning |
| time | when the evaluation ended: ISO 8601, UTC |
| run | dataset, config, weights, settings and versions, as given by :class:`RunInfo` |
| num_images, num_pixels | images; pixels that are labelled, that is not ignored |
| absent_classes | rule for classes absent from the ground truth, "zero" or "skip" |
| summary | mIoU, fwIoU, mACC, pACC, and whatever else the evaluator returned for all classes |
| classes | one object a class, in the order of ids: id, name, color (RGB), IoU, ACC (share of the |
| | label's pixels that are found), precision (share of the predicted pixels that are right), |
| | label_share (in all labelled pixels), and whatever else the evaluator returned for the class |
| confusions | most frequent mistakes: label, prediction, pixels, share (of the label's pixels) |
| confusion_matrix | pixels: rows labels, columns predictions; last of each: ids of no class |
| images | rank_by (score of one image that ranks them), mean of that score, num_ranked, best and |
| | worst: file_name, mIoU, pACC, both of that image alone |
"""

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import numpy as np
from detectron2.utils.file_io import PathManager

from offseg_d2.utils.io import write_atomically

from .confusion import metrics_from_confusion
from .observers import EvaluationObserver
from .report_examples import (
    ExampleKeeper,
    ImageReader,
    ImageResult,
    choose_examples,
    read_photograph,
)
from .report_page import render_page

logger = logging.getLogger(__name__)

FORMAT = 1
RANKINGS = ("mIoU", "pACC")
NUM_CONFUSIONS = 20


@dataclass(frozen=True)
class RunInfo:
    """What was evaluated, as the report tells it.

    Attributes:
        dataset: name in the catalogs.
        config: name of the configuration file, "" if there is none.
        weights: file or address of the weights, "" if there is none.
        settings: further lines, such as {"inference": "sliding window, 512 x 512"}.
        versions: of the software.
    """

    dataset: str
    config: str = ""
    weights: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


class EvaluationReport(EvaluationObserver):
    """Writes ``metrics.json`` and ``report.html`` into a folder when an evaluation ends.

    Of each image two scores are kept; of the best and worst images small label maps as well.

    Args:
        output_dir: the folder. Not a run's ``OUTPUT_DIR``: its ``metrics.json`` is another file.
        class_names: names of the K classes, in the order of their ids.
        class_colors: (K, 3) RGB, 0..255.
        ignore_value: label of pixels that do not count.
        run: what was evaluated.
        absent_classes: the evaluator's rule, see :mod:`.confusion`.
        num_examples: so many best and so many worst images are shown.
        rank_by: score of one image that ranks them, "mIoU" (over the classes of its ground truth
            and its prediction, or of its ground truth alone if ``absent_classes`` is "skip") or
            "pACC".
        picture_side: largest height and width of a picture in the page, in pixels.
        read_image: returns (H, W, 3) uint8 RGB for a record's "file_name".

    Raises:
        ValueError: ``rank_by``, ``num_examples`` or the number of colours cannot be used.
    """

    def __init__(
        self,
        output_dir: str,
        class_names: Sequence[str],
        class_colors: Sequence[Sequence[int]] | np.ndarray,
        ignore_value: int,
        *,
        run: RunInfo,
        absent_classes: str = "zero",
        num_examples: int = 5,
        rank_by: str = "mIoU",
        picture_side: int = 440,
        read_image: ImageReader = read_photograph,
    ) -> None:
        if rank_by not in RANKINGS:
            raise ValueError(f"`rank_by` must be one of {list(RANKINGS)}, but is {rank_by!r}.")
        if num_examples < 0:
            raise ValueError(f"`num_examples` must not be negative, but is {num_examples!r}.")
        self.class_colors = np.asarray(class_colors, dtype=np.uint8).reshape(-1, 3)
        if len(self.class_colors) != len(class_names):
            raise ValueError(
                f"`class_colors` must hold a colour for each of the {len(class_names)} classes, "
                f"but holds {len(self.class_colors)}."
            )
        self.output_dir = output_dir
        self.class_names = list(class_names)
        self.run = run
        self.absent_classes = absent_classes
        self.num_examples = num_examples
        self.rank_by = rank_by
        self._keeper = ExampleKeeper(
            num_examples, picture_side, self.class_colors, ignore_value, read_image
        )
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._scores: dict[str, dict[str, float]] = {}
        self._keeper.reset()

    def process(
        self,
        record: Mapping[str, Any],
        label: np.ndarray,
        prediction: np.ndarray,
        counts: np.ndarray,
    ) -> None:
        """Score one image, see :meth:`EvaluationObserver.process`."""
        metrics = metrics_from_confusion(counts, self.absent_classes)
        scores = {"mIoU": 100 * metrics.miou, "pACC": 100 * metrics.pacc}
        self._scores[record["file_name"]] = scores
        self._keeper.offer(record["file_name"], scores[self.rank_by], label, prediction)

    def state(self) -> dict[str, ImageResult]:
        """Scores of this process's images, with pictures of its best and worst ones."""
        return {name: self._keeper.result(name, scores) for name, scores in self._scores.items()}

    def finish(
        self,
        results: Mapping[str, float],
        confusion_matrix: np.ndarray,
        images: Mapping[str, ImageResult],
    ) -> None:
        """Write both files, each atomically."""
        values = list(images.values())
        best, worst = choose_examples(values, self.rank_by, self.num_examples)
        ranked = [image.scores[self.rank_by] for image in values]
        ranked = [score for score in ranked if not math.isnan(score)]
        document = self._document(results, confusion_matrix, len(values))
        document["images"] = {
            "rank_by": self.rank_by,
            "mean": float(np.mean(ranked)) if ranked else None,
            "num_ranked": len(ranked),
            "best": [_image_entry(image) for image in best],
            "worst": [_image_entry(image) for image in worst],
        }
        document = _without_nan(document)
        PathManager.mkdirs(self.output_dir)
        _write(os.path.join(self.output_dir, "metrics.json"), _to_json(document))
        path = os.path.join(self.output_dir, "report.html")
        _write(path, render_page(document, ranked, best, worst))
        logger.info("Wrote the report %s and the metrics.json beside it", path)

    def _document(
        self, results: Mapping[str, float], matrix: np.ndarray, num_images: int
    ) -> dict[str, Any]:
        """The content of ``metrics.json`` without the images."""
        summary, per_class = _split_results(results, self.class_names)
        labelled, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
        classes = []
        for index, name in enumerate(self.class_names):
            hits = int(matrix[index, index])
            scores = {key: values[index] for key, values in per_class.items()}
            shares = {
                "precision": _percent(hits, predicted[index]),
                "label_share": _percent(labelled[index], labelled[:-1].sum()),
            }
            color = self.class_colors[index].tolist()
            classes.append({"id": index, "name": name, "color": color, **scores, **shares})
        return {
            "format": FORMAT,
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "run": {
                "dataset": self.run.dataset,
                "config": self.run.config,
                "weights": self.run.weights,
                "settings": dict(self.run.settings),
                "versions": dict(self.run.versions),
            },
            "num_images": num_images,
            "num_pixels": int(labelled.sum()),
            "absent_classes": self.absent_classes,
            "summary": summary,
            "classes": classes,
            "confusions": top_confusions(matrix, self.class_names, NUM_CONFUSIONS),
            "confusion_matrix": matrix.tolist(),
        }


def top_confusions(
    matrix: np.ndarray, class_names: Sequence[str], number: int
) -> list[dict[str, Any]]:
    """The pairs of classes with the most wrong pixels, most first.

    Args:
        matrix: (K + 1, K + 1) counts; the last row and column are left out.
        class_names: K names.
        number: at most so many.
    """
    wrong = matrix[:-1, :-1].copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[: min(number, np.count_nonzero(wrong))]
    pairs = [divmod(int(place), len(class_names)) for place in order]
    return [
        {
            "label": class_names[label],
            "prediction": class_names[prediction],
            "pixels": int(wrong[label, prediction]),
            "share": _percent(wrong[label, prediction], matrix[label].sum()),
        }
        for label, prediction in pairs
    ]


def _split_results(
    results: Mapping[str, float], class_names: Sequence[str]
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Tell ``<score>-<class>`` from scores of all classes, whatever scores there are."""
    end = f"-{class_names[0]}"
    prefixes = [key.removesuffix(end) for key in results if key.endswith(end)]
    # Of the classes "road" and "rail-road" the key IoU-rail-road ends with both.
    prefixes = [p for p in prefixes if all(f"{p}-{name}" in results for name in class_names)]
    per_class = {p: [float(results[f"{p}-{name}"]) for name in class_names] for p in prefixes}
    used = {f"{p}-{name}" for p in prefixes for name in class_names}
    return {k: float(v) for k, v in results.items() if k not in used}, per_class


def _image_entry(image: ImageResult) -> dict[str, Any]:
    return {"file_name": image.file_name, **image.scores}


def _percent(part: float, whole: float) -> float:
    return 100 * float(part) / float(whole) if whole else float("nan")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _to_json(document: Mapping[str, Any]) -> str:
    """Strict JSON with one class, one confusion or one row of the matrix a line."""

    def dump(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False)

    parts = []
    for key, value in document.items():
        if isinstance(value, list):
            text = "[\n  " + ",\n  ".join(dump(item) for item in value) + "\n]"
        else:
            text = dump(value, indent=2)
        parts.append(f"{dump(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _write(path: str, text: str) -> None:
    write_atomically(path, text.encode("utf-8"))
