"""Bands of TIFF files: the first three are the colours, whatever the others are said to be.

libtiff, by which OpenCV decodes, multiplies the colours by a fourth band that is tagged as alpha.
Common writers tag any fourth band so (near infrared, height).
"""

import struct

_EXTRA_SAMPLES, _SAMPLES_PER_PIXEL = 338, 277
_UNSPECIFIED = 0  # of the values of ExtraSamples: a band that is no alpha
# Magic number -> byte order, is it a BigTIFF.
_MAGIC = {
    b"II*\0": ("<", False),
    b"MM\0*": (">", False),
    b"II+\0": ("<", True),
    b"MM\0+": (">", True),
}


def ignore_alpha(content: bytes) -> tuple[bytes, int]:
    """Take the meaning of alpha from the extra bands of the first image of a TIFF file.

    Args:
        content: of any file.

    Returns:
        the content, changed where a TIFF file tags its extra bands, and its number of bands; other
        files as they are, with 0. A damaged directory is left to the decoder.
    """
    order, is_big = _MAGIC.get(content[:4], ("", False))
    if not order:
        return content, 0
    changed, bands = bytearray(content), 1
    try:
        for tag, count, offset in _entries(content, order, is_big):
            if tag == _SAMPLES_PER_PIXEL:
                (bands,) = struct.unpack_from(f"{order}H", content, offset)
            if tag == _EXTRA_SAMPLES:
                for index in range(min(count, 4)):
                    struct.pack_into(f"{order}H", changed, offset + 2 * index, _UNSPECIFIED)
    except (struct.error, OverflowError, IndexError):  # a directory beyond the end of the file
        return content, 0
    return bytes(changed), bands


def _entries(content: bytes, order: str, is_big: bool) -> list[tuple[int, int, int]]:
    """Tag, number of values and position of the values (16-bit ones) of the first directory."""
    if is_big:
        start, number, size, form, inline = 8, "Q", 20, "HHQQ", 8
    else:
        start, number, size, form, inline = 4, "H", 12, "HHII", 4
    (directory,) = struct.unpack_from(f"{order}{'Q' if is_big else 'I'}", content, start)
    (length,) = struct.unpack_from(f"{order}{number}", content, directory)
    first = directory + struct.calcsize(f"{order}{number}")
    entries = []
    for offset in range(first, first + length * size, size):
        tag, _, count, value = struct.unpack_from(f"{order}{form}", content, offset)
        is_inline = 2 * count <= inline
        entries.append((tag, count, offset + size - inline if is_inline else value))
    return entries
