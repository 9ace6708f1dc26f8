"""Whether an encoded image is whole.

Decoders are lenient: a JPEG that ends too early, or whose end an aborted download left as zeros,
often gives a picture with grey at the bottom and no error. So the structure of the file is checked
as well (JPEG: ITU-T T.81, annex B; PNG: W3C recommendation, third edition, section 5), and what
the decoders' C libraries have to say is listened to.
"""

import contextlib
import os
import re
import tempfile
import zlib
from collections.abc import Iterator

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_SIGNATURE = b"\xff\xd8\xff"
# A marker that neither stuffs (00, FF) nor restarts (D0-D7) entropy-coded data.
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")
_JPEG_END, _JPEG_WITHOUT_LENGTH = 0xD9, {0x01, 0xD8}
# What libjpeg prints about data that it could repair or skip; other messages are harmless.
_COMPLAINTS = ("Corrupt JPEG data", "Premature end of JPEG")


def truncation(encoded: bytes) -> str | None:
    """Say where a JPEG or PNG file breaks off; None for whole files and for other formats.

    Args:
        encoded: content of the file.
    """
    if encoded.startswith(_JPEG_SIGNATURE):
        return _jpeg_truncation(encoded)
    if encoded.startswith(_PNG_SIGNATURE):
        return _png_truncation(encoded)
    return None


def checksum_error(encoded: bytes) -> str | None:
    """Name the first chunk of a PNG whose checksum is wrong; None otherwise."""
    if not encoded.startswith(_PNG_SIGNATURE):
        return None
    for kind, start, end in _png_chunks(encoded):
        stored = encoded[end : end + 4]
        if len(stored) == 4 and zlib.crc32(encoded[start - 4 : end]) != int.from_bytes(
            stored, "big"
        ):
            return f"the checksum of its {_readable(kind)} chunk at byte {start - 8} is wrong"
    return None


def _jpeg_truncation(encoded: bytes) -> str | None:
    """Follow the segments: an end marker inside one (of a thumbnail) is not the image's."""
    position = 2
    while marker := _JPEG_MARKER.search(encoded, position):
        code, position = marker.group(1)[0], marker.end()
        if code == _JPEG_END:
            return None
        if code not in _JPEG_WITHOUT_LENGTH:
            position += max(int.from_bytes(encoded[position : position + 2], "big"), 2)
    return f"the end-of-image marker is missing after {len(encoded)} bytes"


def _png_truncation(encoded: bytes) -> str | None:
    for kind, start, end in _png_chunks(encoded):
        if end + 4 > len(encoded):
            return (
                f"its {_readable(kind)} chunk needs {end + 4 - start} bytes, "
                f"but {len(encoded) - start} are left"
            )
        if kind == b"IEND":
            return None
    return f"the end chunk is missing after {len(encoded)} bytes"


def _png_chunks(encoded: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield type, start and end of the data of each chunk, until the end of image or file."""
    position = len(_PNG_SIGNATURE)
    while position + 8 <= len(encoded):
        kind = encoded[position + 4 : position + 8]
        start = position + 8
        end = start + int.from_bytes(encoded[position : position + 4], "big")
        yield kind, start, end
        if kind == b"IEND":
            return
        position = end + 4


def _readable(kind: bytes) -> str:
    return kind.decode("ascii", errors="backslashreplace")


@contextlib.contextmanager
def decoder_complaints() -> Iterator[list[str]]:
    """Collect what image libraries write to the error stream while decoding.

    Yields:
        a list that on leaving receives libjpeg's sentences about damaged data.
    """
    complaints: list[str] = []
    with tempfile.TemporaryFile() as file:
        # The C libraries know file descriptors, not sys.stderr.
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield complaints
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            lines = file.read().decode(errors="replace").splitlines()
            complaints += [line for line in lines if line.startswith(_COMPLAINTS)]
