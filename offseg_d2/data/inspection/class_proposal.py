"""The ``classes.json`` that the label files of a folder without one suggest."""

import collections
import json
import os
from collections.abc import Iterator

import numpy as np

from ..datasets.class_file import CLASS_FILES
from ..datasets.coco_folder import find_coco_files
from ..datasets.own_data import PREFIX, parse_name
from ..datasets.own_layout import LABELS
from ..label_files import color_codes, count_ids, read_samples

_IGNORED = 255
_MAX_CLASSES = 255
_MAX_SHOWN = 300  # values in the table


def propose_class_file(name: str) -> str | None:
    """Describe the values or colours in the label files of a folder that does not name its classes.

    Args:
        name: of a dataset.

    Returns:
        a table of them with their pixels, and a ``classes.json`` with placeholders for the names;
        None for other datasets, and where there are classes or no label files.

    Raises:
        DataFileError: a label file cannot be read.
        ValueError: there are more colours than classes can be.
    """
    if not name.startswith(PREFIX):
        return None
    root, _ = parse_name(name)
    has_classes = any(os.path.isfile(os.path.join(root, file)) for file in CLASS_FILES)
    if has_classes or not os.path.isdir(root) or find_coco_files(root):
        return None
    ids = np.zeros(256, dtype=np.int64)
    colors: collections.Counter[int] = collections.Counter()
    for path in _label_files(root):
        samples, _ = read_samples(path)
        if samples.ndim == 2 or (samples == samples[..., :1]).all():
            ids += count_ids(
                samples if samples.ndim == 2 else np.ascontiguousarray(samples[..., 0])
            )
        else:
            codes, counts = np.unique(color_codes(samples), return_counts=True)
            colors.update(dict(zip(codes.tolist(), counts.tolist(), strict=True)))
    if colors:  # then equal channels are colours, too
        colors.update({value * 0x010101: int(ids[value]) for value in np.flatnonzero(ids)})
        return _describe_colors(root, colors)
    return _describe_ids(root, ids) if ids.any() else None


def _label_files(root: str) -> Iterator[str]:
    for folder, _, files in sorted(os.walk(os.path.join(root, LABELS))):
        for file in sorted(files):
            if file.lower().endswith(".png") and not file.startswith("."):
                yield os.path.join(folder, file)


def _describe_colors(root: str, colors: collections.Counter[int]) -> str:
    if len(colors) > _MAX_CLASSES:
        raise ValueError(
            f"The label files in '{root}/{LABELS}' must hold at most {_MAX_CLASSES} colours, but "
            f"hold {len(colors)}; were they resized smoothly, or saved as JPEG?"
        )
    rows = [([code >> 16, code >> 8 & 255, code & 255], n) for code, n in colors.most_common()]
    content = {
        "classes": [f"class {index}" for index in range(len(rows))],
        "palette": [color for color, _ in rows],
    }
    table = [
        (name, str(color), n) for name, (color, n) in zip(content["classes"], rows, strict=True)
    ]
    text = _describe(root, "colour", table, content)
    rarest, black = rows[-1][0], [0, 0, 0]
    example = black if black in content["palette"] else rarest
    entry = json.dumps({"ignore_label": [example]})[1:-1]
    return (
        f"{text}\nA colour that is no class, such as that of unlabelled pixels, is ignored if it "
        f"moves\nfrom 'palette' to an entry of its own, without a name: {entry}"
    )


def _describe_ids(root: str, ids: np.ndarray) -> str:
    found = [int(value) for value in np.flatnonzero(ids)]
    values = [value for value in found if value != _IGNORED] or found
    names = {value: f"class {index}" for index, value in enumerate(values)}
    content: dict[str, object] = {"classes": list(names.values())}
    if values != list(range(len(values))):
        content["label_map"] = {str(value): index for index, value in enumerate(values)}
    rows = [(names.get(value, "ignored"), str(value), int(ids[value])) for value in found]
    text = _describe(root, "value", rows, content)
    return f"{text}\n255 is ignored." if _IGNORED in found and len(found) > 1 else text


def _describe(
    root: str, kind: str, rows: list[tuple[str, str, int]], content: dict[str, object]
) -> str:
    total = sum(number for _, _, number in rows)
    table = [f"{'':<9} {kind:>16} {'pixels':>14} {'share':>8}"]
    table += [
        f"{name:<9} {value:>16} {number:>14} {number / total:>8.2%}" for name, value, number in rows
    ]
    entries = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items()]
    return "\n".join(
        [
            f"'{root}' has no classes.json. Its label files hold:",
            *table[:_MAX_SHOWN],
            f"Name the classes and save this as '{os.path.join(root, CLASS_FILES[0])}':",
            "{",
            ",\n".join(entries),
            "}",
        ]
    )
