"""The file that says which classes a user's own dataset has: ``classes.txt`` or ``classes.json``.

``classes.txt`` holds one name a line; the first line names the value 0 of the label files, the
second the value 1, and so on. The value 255 is ignored unless ``label_map`` makes it a class.

``classes.json`` holds a list of such names, or an object with

- ``classes``: the names, by train id (required);
- ``palette``: a colour [red, green, blue], 0..255, for each class; label files may hold these;
- ``ignore_label``: a value of the label files to ignore besides 255, or a list of values and, with
  a palette, of colours;
- ``reduce_zero_label``: true if the first class is stored as 1, the second as 2, and so on, and 0
  is to be ignored; not together with ``label_map``;
- ``label_map``: an object {value in the label files: train id or 255}, if the values are others
  than these rules give.

Further entries are left alone.
"""

import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from detectron2.utils.file_io import PathManager

from offseg_d2.utils.cli import escape_controls
from offseg_d2.utils.io import decode_text

from .colors import distinct_colors

CLASS_FILES = ("classes.json", "classes.txt")
_IGNORED = 255
_MAX_CLASSES = 255  # train ids 0..254; 255 is ignored


class ClassTable(NamedTuple):
    """Classes of a dataset and what the values in its label files mean."""

    classes: list[tuple[str, list[int]]]  # name and RGB colour, by train id
    label_map: dict[int, int]  # value in the label files -> train id; 255 is ignored
    has_palette: bool  # the colours were given, so that masks may hold them
    ignored_colors: list[list[int]] = []  # that masks may hold besides those


def find_class_file(root: str) -> str:
    """Return ``classes.json`` of a dataset folder, or ``classes.txt`` where there is none.

    Raises:
        FileNotFoundError: there is neither.
    """
    for file_name in CLASS_FILES:
        path = os.path.join(root, file_name)
        if PathManager.isfile(path):
            return path
    raise FileNotFoundError(
        f"Dataset folder '{root}' must hold 'classes.txt' (one name a line) or 'classes.json', "
        f"but holds neither."
    )


def read_class_file(path: str) -> ClassTable:
    """Read ``classes.txt`` or ``classes.json`` (see the module's text).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: its content cannot be used; names the file.
    """
    if not PathManager.isfile(path):
        raise FileNotFoundError(f"The file of classes '{path}' must exist, but there is none.")
    try:
        with PathManager.open(path, "rb") as file:
            text = decode_text(file.read())
        content = json.loads(text) if path.endswith(".json") else text.rstrip().splitlines()
    except (UnicodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"'{path}' cannot be read as text or JSON: {error}.") from None
    return class_table(content if isinstance(content, dict) else {"classes": content}, f"'{path}'")


def class_table(content: Mapping[str, Any], where: str) -> ClassTable:
    """Build the table from an object as in ``classes.json``.

    Args:
        content: the object.
        where: begins the sentence of an error.

    Raises:
        ValueError: an entry cannot be used.
    """
    names = _names(content.get("classes"), where)
    given = content.get("palette", content.get("colors"))
    colors = given or distinct_colors(len(names))
    is_list = isinstance(colors, list | tuple) and len(colors) == len(names)
    if not is_list or not all(_is_color(color) for color in colors):
        raise ValueError(
            f"{where} must give each of its {len(names)} classes a colour [red, green, blue] in "
            f"0..255 in 'palette', but gives {colors!r}."
        )
    ignored_colors = _ignored_colors(content, given, where)
    label_map = _label_map(content, len(names), where)
    classes = list(zip(names, [list(c) for c in colors], strict=True))
    return ClassTable(classes, label_map, bool(given), ignored_colors)


def _names(names: Any, where: str) -> list[str]:
    if not isinstance(names, list) or not 1 <= len(names) <= _MAX_CLASSES:
        lists = len(names) if isinstance(names, list) and names else repr(names)[:100]
        raise ValueError(f"{where} must list 1 to {_MAX_CLASSES} class names, but lists {lists}.")
    if not all(isinstance(name, str) and name.strip() for name in names):
        # A blank line in the middle would shift all classes behind it.
        raise ValueError(f"{where} must give each class a name, but names {names!r}.")
    # Escaped: names are shown in terminals, which obey control characters.
    names = [escape_controls(name.strip()) for name in names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{where} must name each class once, but names {twice} again.")
    return names


def _is_color(color: Any) -> bool:
    return (
        isinstance(color, list | tuple)
        and len(color) == 3
        and all(_is_integer(channel) and 0 <= channel <= 255 for channel in color)
    )


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _ignored_colors(content: Mapping[str, Any], palette: Any, where: str) -> list[list[int]]:
    given = content.get("ignore_label")
    colors = [list(v) for v in given if _is_color(v)] if isinstance(given, list) else []
    taken = [color for color in colors if color in [list(c) for c in palette or ()]]
    if (colors and not palette) or taken:
        reason = f"{taken[0]} is that of a class" if taken else "there is no 'palette'"
        raise ValueError(
            f"{where} must name colours of no class in 'ignore_label', beside a 'palette', but "
            f"{reason}."
        )
    return colors


def _label_map(content: Mapping[str, Any], num_classes: int, where: str) -> dict[int, int]:
    if content.get("reduce_zero_label") and content.get("label_map") is not None:
        raise ValueError(
            f"{where} must have 'reduce_zero_label' or 'label_map', which says all by itself, but "
            f"has both."
        )
    shift = 1 if content.get("reduce_zero_label") else 0
    label_map = {train_id + shift: train_id for train_id in range(num_classes)}
    if content.get("label_map") is not None:
        label_map = _given_label_map(content["label_map"], num_classes, where)
    if shift:
        label_map[0] = _IGNORED
    ignored = content.get("ignore_label")
    for value in ignored if isinstance(ignored, list) else [ignored]:
        if value is None or _is_color(value):
            continue
        if not _is_integer(value) or not 0 <= value <= 255:
            raise ValueError(
                f"{where} must give 'ignore_label' as values in 0..255 or as colours [red, green, "
                f"blue], but gives {ignored!r}."
            )
        if label_map.get(value, _IGNORED) != _IGNORED:
            raise ValueError(
                f"{where} must not ignore a value that is a class, but 'ignore_label' is "
                f"{ignored!r} and {value} is class {label_map[value]}; use 'reduce_zero_label' or "
                f"'label_map' if the classes are stored as other values, and [[0, 0, 0]] for a "
                f"colour."
            )
        label_map[value] = _IGNORED
    return {_IGNORED: _IGNORED, **label_map}


def _given_label_map(given: Any, num_classes: int, where: str) -> dict[int, int]:
    rule = (
        f"{where} must map values in 0..255 to train ids below {num_classes} or {_IGNORED} in "
        f"'label_map'"
    )
    if not isinstance(given, Mapping):
        raise ValueError(f"{rule}, but 'label_map' is {given!r}.")
    label_map = {}
    for value, train_id in given.items():
        # JSON's keys are text.
        raw = int(value) if str(value).isascii() and str(value).isdigit() else -1
        known = _is_integer(train_id) and (0 <= train_id < num_classes or train_id == _IGNORED)
        if not 0 <= raw <= 255 or not known:
            raise ValueError(f"{rule}, but maps {value!r} to {train_id!r}.")
        label_map[raw] = train_id
    return label_map
