"""A small clean dataset to plant faults into."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.common import write_label

HEIGHT, WIDTH = 24, 32
CLASSES = ("sky", "tree", "road")
NAMES = ("a", "b", "c", "d")
ORIENTATION_TAG = 0x0112


def write_folder(root: Path, split: str = "train", names: tuple[str, ...] = NAMES) -> None:
    """Write ``folder:ROOT:SPLIT``: JPEG images and label maps of all classes and ignored pixels."""
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    (root / "images" / split).mkdir(parents=True)
    for index, name in enumerate(names):
        (root / "images" / split / f"{name}.jpg").write_bytes(jpeg(index))
        labels = np.random.RandomState(index).randint(0, len(CLASSES), (HEIGHT, WIDTH))
        labels[:2] = 255
        write_label(root / "annotations" / split / f"{name}.png", labels, palette=False)


def jpeg(seed: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT), **options: object) -> bytes:
    """A JPEG file of noise; ``size`` is (width, height)."""
    pixels = np.random.RandomState(seed).randint(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def turned_jpeg(orientation: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> bytes:
    """A JPEG file that EXIF turns."""
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    return jpeg(9, size, exif=exif.tobytes())


def halve(path: Path) -> None:
    """Cut a file in the middle."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def save(path: Path, pixels: np.ndarray, kind: str = "PNG") -> None:
    """Write an array as an image of the given format, whatever the suffix."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    path.write_bytes(buffer.getvalue())


def _zero_tail(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))


def _flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 10] ^= 4
    path.write_bytes(bytes(content))


def _replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _set_id(path: Path, value: int) -> None:
    labels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    labels[3, 4:6] = value
    save(path, labels)


_ZEROS = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
# name -> (kind of fault, file that is named, what the message says, how to plant it)
Plant = tuple[str, str, str, Callable[[Path], object]]
PLANTS: dict[str, Plant] = {
    "missing label": ("missing_label", "b.png", r"is not there.*b\.jpg", Path.unlink),
    "missing image": ("missing_image", "b.jpg", r"is not there.*b\.png", Path.unlink),
    "truncated JPEG": ("truncated", "b.jpg", "end-of-image marker", halve),
    "JPEG whose end is zeros": ("truncated", "b.jpg", "end-of-image marker", _zero_tail),
    "truncated PNG": ("truncated", "b.png", "end chunk is missing", halve),
    "flipped bit in a PNG": ("corrupt", "b.png", "checksum in b'IDAT'", _flip_bit),
    "empty image": ("empty", "b.jpg", "no content", lambda path: path.write_bytes(b"")),
    "empty label": ("empty", "b.png", "no content", lambda path: path.write_bytes(b"")),
    "image that is none": (
        "unreadable",
        "b.jpg",
        "is no image: it begins with b'<html>",
        lambda path: path.write_bytes(b"<html>404</html>"),
    ),
    "label that is none": (
        "unreadable",
        "b.png",
        "is no image",
        lambda path: path.write_bytes(b"version https://"),
    ),
    "folder instead of an image": ("unreadable", "b.jpg", "directory", _replace_by_folder),
    "size": (
        "size",
        "b.png",
        "is 24x32, but its image .* is 32x24",
        lambda path: save(path, _ZEROS.T.copy()),
    ),
    "EXIF turns the image": (
        "turned",
        "b.jpg",
        r"is 24x32 once its EXIF orientation 6 is applied, but '.*b\.png' is 32x24",
        lambda path: path.write_bytes(turned_jpeg(6)),
    ),
    "unknown id": ("unknown_ids", "b.png", r"holds 7 \(2 pixels\)", lambda path: _set_id(path, 7)),
    "RGB label": (
        "label_format",
        "b.png",
        "mode 'RGB'",
        lambda path: save(path, np.stack([_ZEROS, _ZEROS, _ZEROS + 9], axis=-1)),
    ),
    "16-bit label": (
        "label_format",
        "b.png",
        "mode 'I;16'",
        lambda path: save(path, _ZEROS.astype(np.uint16) + 300),
    ),
    "JPEG label": (
        "label_format",
        "b.png",
        "is a JPEG",
        lambda path: save(path, _ZEROS, "JPEG"),
    ),
    "all ignored": (
        "all_ignored",
        "b.png",
        "ignored ids only: 255",
        lambda path: save(path, _ZEROS + 255),
    ),
}


def plant(root: Path, name: str, pair: str = "b", split: str = "train") -> Path:
    """Plant a fault of :data:`PLANTS` into a pair; returns the file that it is in."""
    _, file, _, change = PLANTS[name]
    suffix = Path(file).suffix
    folder = root / ("images" if suffix == ".jpg" else "annotations") / split
    path = folder / f"{pair}{suffix}"
    change(path)
    return path
