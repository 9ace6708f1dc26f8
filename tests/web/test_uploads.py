"""Uploads that are read, and messages for the others."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from offseg_d2.data import DataFileError, read_image
from offseg_d2.web.uploads import Limits, UploadError, read_upload
from tests.web.common import drawn

RGB = Image.fromarray(drawn())


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    content = io.BytesIO()
    image.save(content, format=kind, **options)
    return content.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(RGB, "JPEG", exif=exif)


def announcing(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header announces a huge image."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    data = zlib.compress(b"\0" * 100)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def test_image_that_announces_too_much_for_opencv_is_an_error_that_names_it(tmp_path):
    path = write(tmp_path, announcing(60_000, 60_000))
    with pytest.raises(DataFileError, match=r"secret_folder_image\.jpg.*far too many pixels"):
        read_image(path)


def write(tmp_path, content: bytes, name: str = "secret_folder_image.jpg") -> str:
    path = tmp_path / name
    path.write_bytes(content)
    return str(path)


GOOD = {
    "jpeg": encoded(RGB, "JPEG"),
    "cmyk": encoded(RGB.convert("CMYK"), "JPEG"),
    "grey": encoded(RGB.convert("L"), "PNG"),
    "palette": encoded(RGB.convert("P"), "PNG"),
    "one bit": encoded(RGB.convert("1"), "PNG"),
    "webp": encoded(RGB, "WEBP"),
    "tiff": encoded(RGB, "TIFF"),
    "bmp": encoded(RGB, "BMP"),
    "turned": turned(),
}


@pytest.mark.parametrize("name", GOOD)
def test_pixels_are_those_that_the_model_was_trained_with(name, tmp_path):
    path = write(tmp_path, GOOD[name])
    upload = read_upload(path, Limits())
    assert np.array_equal(upload.image[..., ::-1], read_image(path))
    assert upload.image.shape == ((128, 96, 3) if name == "turned" else (96, 128, 3))
    assert upload.stem == "secret_folder_image"
    assert upload.notes == ()


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (encoded(RGB, "GIF", save_all=True, append_images=[RGB.rotate(90)]), "Of 2 pictures"),
        (encoded(Image.fromarray(drawn()[..., 0].astype(np.uint16) * 256), "PNG"), "16-bit"),
        (encoded(RGB.convert("RGBA"), "PNG"), "transparency"),
    ],
)
def test_what_is_not_used_is_noted(content, note, tmp_path):
    upload = read_upload(write(tmp_path, content), Limits())
    assert upload.image.shape == (96, 128, 3)
    assert len(upload.notes) == 1 and note in upload.notes[0]


BAD = {
    "text": (b"This is a letter.", "must be an image .*another kind"),
    "empty": (b"", "but is empty"),
    "script": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "another kind"),
    "half a jpeg": (GOOD["jpeg"][: len(GOOD["jpeg"]) // 2], "damaged or truncated"),
    "half a png": (encoded(RGB, "PNG")[:9000], "damaged or truncated"),
    "header alone": (GOOD["jpeg"][:100], "damaged"),
    "float tiff": (encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"), "damaged"),
    "bomb": (announcing(60000, 60000), "far too many pixels"),
    "large": (announcing(6000, 4000), r"at most 16 megapixels, but has 24.0 \(6000 × 4000\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_give_a_sentence_without_a_path(name, tmp_path):
    content, message = BAD[name]
    path = write(tmp_path, content)
    with pytest.raises(UploadError, match=message) as caught:
        read_upload(path, Limits())
    assert "secret_folder" not in str(caught.value) and str(tmp_path) not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_size_is_refused_before_anything_is_decoded(tmp_path, monkeypatch):
    def decode(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr(cv2, "imdecode", decode)
    for content in (BAD["large"][0], BAD["bomb"][0]):
        with pytest.raises(UploadError):
            read_upload(write(tmp_path, content), Limits())
    with pytest.raises(UploadError, match=r"at most 0\.001 MB, but has"):
        read_upload(write(tmp_path, GOOD["bmp"]), Limits(max_bytes=1000))


def test_absent_file_is_reported(tmp_path):
    with pytest.raises(UploadError, match="upload it again"):
        read_upload(str(tmp_path / "gone.png"), Limits())
