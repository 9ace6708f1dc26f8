"""The page of a report: one HTML file with everything in it, which loads nothing from anywhere.

The layout and its style stand in ``report_template.html.j2``. Names of classes and files are
escaped, and the page's content security policy forbids whatever is not in the page itself.
"""

import base64
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .report_pictures import draw_confusion

_TEMPLATE = Path(__file__).with_name("report_template.html.j2")

_RULES = {
    "zero": "A class that is predicted but absent from the ground truth counts as IoU 0; "
    "a class absent from both does not count.",
    "skip": "A class absent from the ground truth does not count, predicted or not.",
}
# Score -> its meaning, for all classes and for one.
_MEANINGS = {
    "mIoU": "mean intersection over union of the classes",
    "fwIoU": "IoU weighted by the classes' shares of the labels",
    "mACC": "mean share of each class's pixels that are found",
    "pACC": "share of all labelled pixels that are right",
    "mBIoU": "mean IoU of the classes' boundaries",
    "IoU": "intersection over union",
    "ACC": "share of the class's labelled pixels that are found",
    "precision": "share of the pixels predicted as the class that are right",
    "label_share": "share of the class in all labelled pixels",
    "BIoU": "IoU of the class's boundaries",
}


def render_page(document: Mapping[str, Any], pictures: Mapping[str, bytes | None]) -> str:
    """Render the page.

    Args:
        document: content of ``metrics.json``, see :mod:`.report`.
        pictures: file name -> JPEG file, of all best and worst images.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode("ascii")
    matrix = np.array(document["confusion_matrix"])
    classes = document["classes"]
    columns = [key for key in classes[0] if key not in ("id", "name", "color")]
    return environment.get_template(_TEMPLATE.name).render(
        document=document,
        time=datetime.fromisoformat(document["time"]).strftime("%Y-%m-%d %H:%M UTC"),
        rule=_RULES[document["absent_classes"]],
        meanings=_MEANINGS,
        columns=columns,
        rows=sorted(classes, key=lambda row: -1 if row["IoU"] is None else row["IoU"])[::-1],
        num_counted=sum(row["IoU"] is not None for row in classes),
        matrix=draw_confusion(matrix, [row["name"] for row in classes]),
        num_unpredicted=int(matrix[:-1, -1].sum()),
        num_unlabelled=int(matrix[-1].sum()),
        pictures=pictures,
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
