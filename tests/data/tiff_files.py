"""A writer of TIFF files with any bands, tags and layouts."""

import struct
import zlib
from pathlib import Path

import numpy as np


def write_tiff(
    path: Path,
    pixels: np.ndarray,
    *,
    extra: int | None = None,
    planar: bool = False,
    order: str = "<",
    predictor: int | None = None,
    photometric: int = 2,
) -> None:
    """Write (H, W, C) uint8 or uint16 as an RGB file, compressed if there is a predictor.

    Args:
        path: of the file.
        pixels: the first three bands are red, green and blue.
        extra: what the tag ExtraSamples says of the other bands; None leaves the tag out.
        planar: store band after band instead of pixel after pixel.
        order: "<" or ">", of the bytes.
        predictor: 2 stores each pixel's difference from the one before it, deflated.
        photometric: 2 for RGB, 5 for CMYK.
    """
    height, width, bands = pixels.shape
    stored = pixels.astype(pixels.dtype.newbyteorder(order))
    parts = np.moveaxis(stored, -1, 0) if planar else [stored]
    if predictor:
        parts = [np.diff(part, axis=1, prepend=part[:, :1] * 0) for part in parts]
    strips = [np.ascontiguousarray(part).tobytes() for part in parts]
    strips = [zlib.compress(strip) for strip in strips] if predictor else strips
    offsets = [8 + sum(map(len, strips[:i])) for i in range(len(strips))]
    entries = [
        *((256, "I", [width]), (257, "I", [height]), (258, "H", [8 * pixels.itemsize] * bands)),
        *(
            (259, "H", [8 if predictor else 1]),
            (262, "H", [photometric]),
            (273, "I", offsets),
            (277, "H", [bands]),
        ),
        *((278, "I", [height]), (279, "I", [len(strip) for strip in strips])),
        (284, "H", [2 if planar else 1]),
    ]
    if predictor:
        entries.append((317, "H", [predictor]))
    if extra is not None:
        entries.append((338, "H", [extra] * (bands - 3)))
    body = b"".join(strips)
    start = 8 + len(body)
    behind = start + 2 + 12 * len(entries) + 4
    table, values = b"", b""
    for tag, kind, numbers in entries:
        raw = struct.pack(f"{order}{len(numbers)}{kind}", *numbers)
        table += struct.pack(f"{order}HHI", tag, {"H": 3, "I": 4}[kind], len(numbers))
        if len(raw) <= 4:
            table += raw.ljust(4, b"\0")
        else:
            table += struct.pack(f"{order}I", behind + len(values))
            values += raw
    magic = b"II*\0" if order == "<" else b"MM\0*"
    head = magic + struct.pack(f"{order}I", start) + body
    path.write_bytes(head + struct.pack(f"{order}H", len(entries)) + table + b"\0" * 4 + values)
