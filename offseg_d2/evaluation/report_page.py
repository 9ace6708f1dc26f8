"""The page of a report: one HTML file with everything in it, which loads nothing from anywhere.

The layout, its style and its script stand in ``report_template.html.j2``; here is computed what
they show. Names of classes and files are escaped, and the page's content security policy forbids
whatever is not in the page itself.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .report_examples import ImageResult
from .report_figures import (
    RIGHT_RGB,
    WRONG_RGB,
    draw_histogram,
    draw_matrix,
    matrix_opacity,
)

_TEMPLATE = Path(__file__).with_name("report_template.html.j2")
# A matrix of more classes has no room for numbers in its cells.
MAX_CLASSES_WITH_NUMBERS = 25
_NUM_CONFUSIONS = 12
_NUM_CLASSES_OF_EXAMPLE = 10
_SCALE_MARKS = (1, 5, 25, 100)  # percent

_RULES = {
    "zero": "A class that is predicted but absent from the ground truth counts as IoU 0; "
    "a class absent from both does not count.",
    "skip": "A class absent from the ground truth does not count, predicted or not.",
}
_MEANINGS = {
    "mIoU": "mean intersection over union of the classes",
    "fwIoU": "IoU weighted by the classes' shares of the labels",
    "mACC": "mean share of each class's pixels that are found",
    "pACC": "share of all labelled pixels that are right",
    "mBIoU": "mean IoU of the classes' boundaries",
}
_COLUMN_MEANINGS = {
    "IoU": "intersection over union",
    "ACC": "share of the class's labelled pixels that are found",
    "precision": "share of the pixels predicted as the class that are right",
    "label_share": "share of the class in all labelled pixels",
    "BIoU": "IoU of the class's boundaries",
}
_COLUMN_TITLES = {"label_share": "label share"}


def render_page(
    document: Mapping[str, Any],
    image_scores: Sequence[float],
    best: Sequence[ImageResult],
    worst: Sequence[ImageResult],
) -> str:
    """Render the page.

    Args:
        document: content of ``metrics.json``, see :mod:`.report`.
        image_scores: of each image that is ranked, percent.
        best: images with their pictures, the best first.
        worst: likewise, the worst first.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    images = document["images"]
    histogram = None
    if image_scores:
        histogram = draw_histogram(image_scores, images["rank_by"], images["mean"])
    return environment.get_template(_TEMPLATE.name).render(
        document=document,
        time=datetime.fromisoformat(document["time"]).strftime("%Y-%m-%d %H:%M UTC"),
        rule=_RULES[document["absent_classes"]],
        meanings=_MEANINGS,
        columns=_columns(document["classes"]),
        rows=_rows(document),
        num_counted=sum(entry["IoU"] is not None for entry in document["classes"]),
        matrix=_matrix(document),
        confusions=document["confusions"][:_NUM_CONFUSIONS],
        histogram=histogram,
        groups=[
            ("Worst images", "worst", _examples(worst, document)),
            ("Best images", "best", _examples(best, document)),
        ],
        data=_data(document),
    )


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _columns(classes: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Numbers that the table of classes shows, in its order."""
    keys = [key for key in classes[0] if key not in ("id", "name", "color")]
    return [
        {"key": key, "title": _COLUMN_TITLES.get(key, key), "help": _COLUMN_MEANINGS.get(key, key)}
        for key in keys
    ]


def _rows(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Classes with what they are mistaken for most often, highest IoU first."""
    matrix = np.array(document["confusion_matrix"])
    names = [entry["name"] for entry in document["classes"]]
    rows = []
    for entry in document["classes"]:
        wrong = matrix[entry["id"], :-1].copy()
        wrong[entry["id"]] = 0
        other = int(wrong.argmax())
        mistaken = None
        if wrong[other] > 0:
            share = 100 * wrong[other] / matrix[entry["id"]].sum()
            mistaken = {"id": other, "name": names[other], "share": float(share)}
        rows.append({**entry, "mistaken": mistaken})
    return sorted(rows, key=lambda row: -1.0 if row["IoU"] is None else row["IoU"], reverse=True)


def _matrix(document: Mapping[str, Any]) -> dict[str, Any]:
    """The row-normalised matrix as a picture, and its numbers where they can be read."""
    matrix = np.array(document["confusion_matrix"])
    totals = matrix.sum(axis=1, keepdims=True)[:-1]
    shares = np.full(matrix[:-1, :-1].shape, np.nan)
    np.divide(matrix[:-1, :-1], totals, out=shares, where=totals > 0)
    cells = None
    if len(shares) <= MAX_CLASSES_WITH_NUMBERS:
        opacity = matrix_opacity(shares)
        cells = [
            {"text": _cell_text(shares[row, column]), "strong": bool(opacity[row, column] > 0.8)}
            for row, column in np.ndindex(*shares.shape)
        ]
    return {
        "picture": draw_matrix(shares),
        "cells": cells,
        "marks": [(mark, float(matrix_opacity(np.array(mark / 100)))) for mark in _SCALE_MARKS],
        "right": RIGHT_RGB,
        "wrong": WRONG_RGB,
        "no_class": int(matrix[:-1, -1].sum()),
        "foreign_labels": int(matrix[-1].sum()),
    }


def _cell_text(share: float) -> str:
    """Whole percent; nothing for what would be rounded to 0."""
    return "" if np.isnan(share) or share < 0.005 else f"{100 * share:.0f}"


def _examples(examples: Sequence[ImageResult], document: Mapping[str, Any]) -> list[dict[str, Any]]:
    entries = []
    for example in examples:
        # The best and worst of all processes are among the best and worst of their own.
        assert example.pictures is not None, example.file_name
        entries.append(
            {
                "file_name": example.file_name,
                "name": example.file_name.replace("\\", "/").rsplit("/", 1)[-1],
                "scores": example.scores,
                "pictures": example.pictures,
                "classes": [
                    document["classes"][index]
                    for index in example.class_ids[:_NUM_CLASSES_OF_EXAMPLE]
                ],
                "num_more": max(len(example.class_ids) - _NUM_CLASSES_OF_EXAMPLE, 0),
            }
        )
    return entries


def _data(document: Mapping[str, Any]) -> dict[str, Any]:
    """What the page's script needs."""
    return {
        "names": [entry["name"] for entry in document["classes"]],
        "colors": [entry["color"] for entry in document["classes"]],
        "matrix": document["confusion_matrix"],
    }
