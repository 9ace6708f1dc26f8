"""Signs that an encoded image is not whole.

Decoders are lenient: a JPEG that ends too early often gives a picture with grey at the bottom and
no error. So three signs are looked for: a missing end marker, wrong checksums of PNG files, and
messages of the decoders' C libraries.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator

from PIL import Image

from ..image_io import TooManyPixelsError, open_with_pillow

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"  # an empty chunk, whose checksum is always the same
_JPEG_SIGNATURE = b"\xff\xd8\xff"
# A marker that neither stuffs (00, FF) nor restarts (D0-D7) entropy-coded data.
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")
_JPEG_END, _JPEG_WITHOUT_LENGTH = 0xD9, {0x01, 0xD8}
# What libjpeg prints about data that it could repair or skip; other messages are harmless.
_COMPLAINTS = ("Corrupt JPEG data", "Premature end of JPEG")


def truncation(encoded: bytes) -> str | None:
    """Say that the end of a JPEG or PNG file is missing; None for whole files and other formats.

    Args:
        encoded: content of the file.
    """
    text = f"is missing after {len(encoded)} bytes"
    # ITU-T T.81, annex B. An aborted download may have left zeros in place of the end.
    if encoded.startswith(_JPEG_SIGNATURE) and not _has_jpeg_end(encoded):
        return f"the end-of-image marker {text}"
    if encoded.startswith(_PNG_SIGNATURE) and _PNG_END not in encoded:
        return f"the end chunk {text}"
    return None


def _has_jpeg_end(encoded: bytes) -> bool:
    """Follow the segments: an end marker inside one (of a thumbnail) is not the image's."""
    position = 2
    while marker := _JPEG_MARKER.search(encoded, position):
        code, position = marker.group(1)[0], marker.end()
        if code == _JPEG_END:
            return True
        if code not in _JPEG_WITHOUT_LENGTH:
            position += max(int.from_bytes(encoded[position : position + 2], "big"), 2)
    return False


def checksum_error(encoded: bytes) -> str | None:
    """Say what Pillow finds wrong with the chunks of a PNG; None if nothing is, or elsewhere."""
    if not encoded.startswith(_PNG_SIGNATURE):
        return None
    try:
        with open_with_pillow(encoded, ["PNG"]) as image:
            image.verify()
    except TooManyPixelsError:
        return None  # a matter of size
    except Image.UnidentifiedImageError:
        return "broken PNG file (header)"
    except Exception as error:  # Pillow reports broken files by many types
        return str(error)
    return None


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
