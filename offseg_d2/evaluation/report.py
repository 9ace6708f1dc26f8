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
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

import numpy as np
from detectron2.data import Metadata
from detectron2.utils.file_io import PathManager

from offseg_d2.data import ImageSettings
from offseg_d2.data.image_settings import DEFAULT_SETTINGS
from offseg_d2.utils.io import write_atomically
from offseg_d2.visualization.classes import class_colors

from .confusion import metrics_from_confusion
from .observers import EvaluatedImage, EvaluationObserver
from .report_page import render_page
from .report_pictures import draw_example, example_labels

logger = logging.getLogger(__name__)

FORMAT = 1
NUM_CONFUSIONS = 20
NUM_EXAMPLES = 5  # best images, and as many worst ones


@dataclass(frozen=True)
class RunInfo:
    """The evaluated model and data, as the report names them.

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


@dataclass(frozen=True)
class ImageResult:
    """Scores of one image.

    Attributes:
        scores: "mIoU" and "pACC" of this image alone, percent; NaN if it has no labelled pixel.
        picture: JPEG of the image, its labels and its errors; only of the best and worst images
            of each process.
    """

    scores: Mapping[str, float]
    picture: bytes | None = None


class EvaluationReport(EvaluationObserver):
    """Writes ``metrics.json`` and ``report.html`` into a folder when an evaluation ends.

    Memory does not grow with the images but by two scores each: of the best and worst images small
    label maps are stored. Images are ranked by their own mIoU, over the classes of ground truth
    and prediction, or of the ground truth alone if ``absent_classes`` is "skip".

    Args:
        output_dir: the folder. Not a run's ``OUTPUT_DIR``: its ``metrics.json`` is another file.
        metadata: names and colours of the K classes.
        ignore_value: label of pixels that do not count.
        run: the evaluated model and data.
        absent_classes: the evaluator's rule, see :mod:`.confusion`.
        settings: how the values of image files become colours.
    """

    def __init__(
        self,
        output_dir: str,
        metadata: Metadata,
        ignore_value: int,
        *,
        run: RunInfo,
        absent_classes: str = "zero",
        settings: ImageSettings = DEFAULT_SETTINGS,
    ) -> None:
        self.settings = settings
        self.output_dir = output_dir
        self.metadata = metadata
        self.ignore_value = ignore_value
        self.run = run
        self.absent_classes = absent_classes
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._scores: dict[str, dict[str, float]] = {}
        self._examples: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def process(self, image: EvaluatedImage) -> None:
        """Score one image, see :meth:`EvaluationObserver.process`."""
        metrics = metrics_from_confusion(image.counts, self.absent_classes)
        self._scores[image.file_name] = {"mIoU": 100 * metrics.miou, "pACC": 100 * metrics.pacc}
        maps = example_labels(image.label), example_labels(image.prediction)
        self._examples[image.file_name] = maps
        best, worst = rank_images({name: self._scores[name] for name in self._examples})
        self._examples = {name: self._examples[name] for name in (*best, *worst)}

    def state(self) -> dict[str, ImageResult]:
        """Scores of this process's images, with pictures of its best and worst ones."""
        results = {name: ImageResult(scores) for name, scores in self._scores.items()}
        for name, (label, prediction) in self._examples.items():
            picture = draw_example(
                name, label, prediction, self.metadata, self.ignore_value, self.settings
            )
            results[name] = ImageResult(self._scores[name], picture)
        return results

    def finish(
        self,
        results: Mapping[str, float],
        confusion_matrix: np.ndarray,
        images: Mapping[str, ImageResult],
    ) -> None:
        """Write both files, each atomically."""
        best, worst = rank_images({name: image.scores for name, image in images.items()})
        ranked = [image.scores["mIoU"] for image in images.values()]
        ranked = [score for score in ranked if not math.isnan(score)]
        document = self._document(results, confusion_matrix, len(images))
        document["images"] = {
            "rank_by": "mIoU",
            "mean": float(np.mean(ranked)) if ranked else None,
            "num_ranked": len(ranked),
            "best": [{"file_name": name, **images[name].scores} for name in best],
            "worst": [{"file_name": name, **images[name].scores} for name in worst],
        }
        document = _without_nan(document)
        page = render_page(document, {name: images[name].picture for name in (*best, *worst)})
        PathManager.mkdirs(self.output_dir)
        path = os.path.join(self.output_dir, "report.html")
        write_atomically(os.path.join(self.output_dir, "metrics.json"), _to_json(document).encode())
        write_atomically(path, page.encode())
        logger.info("Wrote the report %s and the metrics.json beside it", path)

    def _document(
        self, results: Mapping[str, float], matrix: np.ndarray, num_images: int
    ) -> dict[str, Any]:
        """The content of ``metrics.json`` without the images."""
        class_names, colors = self.metadata.stuff_classes, class_colors(self.metadata)
        summary, per_class = _split_results(results, class_names)
        labelled, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
        classes = []
        for index, name in enumerate(class_names):
            entry = {"id": index, "name": name, "color": colors[index].tolist()}
            entry |= {key: values[index] for key, values in per_class.items()}
            entry["precision"] = _percent(matrix[index, index], predicted[index])
            entry["label_share"] = _percent(labelled[index], labelled[:-1].sum())
            classes.append(entry)
        return {
            "format": FORMAT,
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "run": asdict(self.run),
            "num_images": num_images,
            "num_pixels": int(labelled.sum()),
            "absent_classes": self.absent_classes,
            "summary": summary,
            "classes": classes,
            "confusions": top_confusions(matrix, class_names, NUM_CONFUSIONS),
            "confusion_matrix": matrix.tolist(),
        }


def rank_images(scores: Mapping[str, Mapping[str, float]]) -> tuple[list[str], list[str]]:
    """The images of highest and lowest mIoU, :data:`NUM_EXAMPLES` of each at most; none is both.

    Args:
        scores: file name -> "mIoU", ...; NaN is not ranked.

    Returns:
        file names of the best images, best first, and of the worst, worst first.
    """
    ranked = [(values["mIoU"], name) for name, values in scores.items()]
    order = [name for score, name in sorted(ranked) if not math.isnan(score)]
    worst = order[: min(NUM_EXAMPLES, len(order) // 2)]
    return order[len(worst) :][::-1][:NUM_EXAMPLES], worst


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
    return [
        {
            "label": class_names[label],
            "prediction": class_names[prediction],
            "pixels": int(wrong[label, prediction]),
            "share": _percent(wrong[label, prediction], matrix[label].sum()),
        }
        for label, prediction in zip(*np.unravel_index(order, wrong.shape), strict=True)
    ]


def _split_results(
    results: Mapping[str, float], class_names: Sequence[str]
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Separate scores of all classes from ``<score>-<class>``, whatever scores there are."""
    end = f"-{class_names[0]}"
    prefixes = [key.removesuffix(end) for key in results if key.endswith(end)]
    # Of the classes "road" and "rail-road" the key IoU-rail-road ends with both.
    prefixes = [p for p in prefixes if all(f"{p}-{name}" in results for name in class_names)]
    per_class = {p: [float(results[f"{p}-{name}"]) for name in class_names] for p in prefixes}
    used = {f"{p}-{name}" for p in prefixes for name in class_names}
    return {k: float(v) for k, v in results.items() if k not in used}, per_class


def _percent(part: float, whole: float) -> float:
    return 100 * float(part) / float(whole) if whole else float("nan")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _to_json(document: Mapping[str, Any]) -> str:
    """Strict JSON with one key a line."""
    values = {k: json.dumps(v, allow_nan=False, ensure_ascii=False) for k, v in document.items()}
    return "{\n" + ",\n".join(f'"{key}": {value}' for key, value in values.items()) + "\n}\n"
