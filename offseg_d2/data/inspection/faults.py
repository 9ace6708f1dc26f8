"""Faults of a dataset: their kinds, order and titles."""

from typing import NamedTuple


class Fault(NamedTuple):
    """One thing that is wrong with one file, or with the dataset as a whole."""

    kind: str  # key of FAULTS or WARNINGS
    path: str  # of the file; the dataset's name if it is none of a single file
    message: str  # continues a sentence that begins with the path


# Training or evaluation would fail or go wrong, silently at worst.
FAULTS = {
    "definition": "names, colours and label map that do not fit together",
    "missing_image": "images that are not there",
    "missing_label": "label maps that are not there",
    "empty": "empty files",
    "truncated": "truncated files",
    "corrupt": "corrupt files",
    "unreadable": "files that cannot be read",
    "label_format": "label maps of a wrong format",
    "turned": "images that EXIF turns, though not their label maps",
    "size": "sizes that do not agree",
    "unknown_ids": "label maps with ids outside the dataset's label map",
    "all_ignored": "label maps with ignored pixels only",
    "duplicate": "names and files that occur twice",
    "crash": "files that stop the program which reads them",
}
# Worth a look; by themselves they stop nothing.
WARNINGS = {
    "damaged": "images that decode, but with complaints",
    "mirrored": "images that EXIF turns within the same size: do their label maps fit?",
    "image_format": "images of an unusual format",
    "value_range": "16-bit values that become too dark or too light",
    "same_content": "images with the same content",
    "unlisted": "files that the dataset does not use",
    "absent_class": "classes that never occur",
}
