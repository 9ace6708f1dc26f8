"""Files cut or damaged anywhere are recognised, whole ones pass."""

import io
import os

import cv2
import numpy as np
import pytest
from PIL import Image

from offseg_d2.data.inspection.integrity import checksum_error, decoder_complaints, truncation
from tests.data.checked import jpeg


def png(seed: int = 0, **options: object) -> bytes:
    pixels = np.random.RandomState(seed).randint(0, 256, (24, 32), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **options)
    return buffer.getvalue()


def with_thumbnail() -> bytes:
    """A JPEG whose EXIF segment holds a whole JPEG, with an end marker of its own."""
    segment = b"Exif\x00\x00" + jpeg(5, (16, 16))
    head = b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment
    content = jpeg(0)
    return content[:2] + head + content[2:]


def with_restarts() -> bytes:
    pixels = np.random.RandomState(3).randint(0, 256, (24, 32, 3)).astype(np.uint8)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_RST_INTERVAL, 1])[1].tobytes()


WHOLE = {
    "baseline": jpeg(0),
    "progressive": jpeg(1, progressive=True),
    "restarts": with_restarts(),
    "thumbnail": with_thumbnail(),
    "comment": jpeg(2, comment=b"\xff\xd9" * 9),
    "png": png(),
    "png with text": png(1, dpi=(72, 72)),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_file_passes_also_with_something_behind_its_end(name):
    for content in (WHOLE[name], WHOLE[name] + b"\0" * 100, WHOLE[name] + b"trailing"):
        assert truncation(content) is None
        assert checksum_error(content) is None


@pytest.mark.parametrize("name", WHOLE)
def test_cut_is_noticed_wherever_it_is(name):
    content = WHOLE[name]
    missed = [end for end in range(9, len(content)) if truncation(content[:end]) is None]
    assert not missed


@pytest.mark.parametrize("name", ["baseline", "progressive", "restarts", "thumbnail"])
def test_end_that_was_never_downloaded_is_noticed(name):
    content = WHOLE[name]
    for start in range(len(content) // 2, len(content) - 2, 7):
        assert truncation(content[:start] + bytes(len(content) - start))


def test_bit_flipped_in_any_chunk_is_noticed():
    content = WHOLE["png with text"]
    for position in range(16, len(content) - 12):
        damaged = bytearray(content)
        damaged[position] ^= 1
        assert checksum_error(bytes(damaged)) or truncation(bytes(damaged)), position


def test_other_formats_are_left_to_their_decoders():
    for content in (b"", b"\xff\xd8", b"BM" + bytes(20), b"GIF89a"):
        assert truncation(content) is None and checksum_error(content) is None


def test_complaints_are_collected_and_the_error_stream_is_given_back(capfd):
    with decoder_complaints() as complaints:
        os.write(2, b"Corrupt JPEG data: bad Huffman code\nlibpng warning: iCCP\n")
        assert complaints == []
    assert complaints == ["Corrupt JPEG data: bad Huffman code"]
    os.write(2, b"later\n")
    assert capfd.readouterr().err == "later\n"
    with pytest.raises(RuntimeError), decoder_complaints() as complaints:
        raise RuntimeError
    os.write(2, b"after an error\n")
    assert capfd.readouterr().err == "after an error\n"
