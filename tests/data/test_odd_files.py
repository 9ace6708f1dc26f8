"""Files that are not what their name says, or rarely so: read rightly, or refused in a sentence."""

import codecs
import io
import os
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from offseg_d2.config import load_config
from offseg_d2.config.yaml_chain import read_yaml_chain
from offseg_d2.data import DataFileError, ImageReader, read_image, read_label_map
from offseg_d2.data.datasets.class_file import read_class_file
from offseg_d2.data.inspection import check_datasets, format_report
from offseg_d2.inference.segmenter import _read
from tests.data.test_user_files import IDS, make_folder
from tests.data.tiff_files import write_tiff

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8)
RGB = Image.fromarray(PIXELS)


def grey(image: Image.Image) -> np.ndarray:
    return np.repeat(np.asarray(image.convert("L"))[..., None], 3, axis=2)


def with_opacity() -> Image.Image:
    image = RGB.convert("RGBA")
    image.putalpha(40)
    return image


PALETTE = RGB.quantize(9)
# Name, image, options of `save`, and the colours (H, W, 3) RGB that it means.
IMAGES = {
    "grey and opacity.png": (RGB.convert("LA"), {}, grey(RGB)),
    "opacity.png": (with_opacity(), {}, PIXELS),
    "palette.png": (PALETTE, {"transparency": 0}, np.asarray(PALETTE.convert("RGB"))),
    "one bit.png": (RGB.convert("1"), {}, grey(RGB.convert("1"))),
    "one bit.tif": (RGB.convert("1"), {}, grey(RGB.convert("1"))),
    "animated.png": (RGB, {"save_all": True, "append_images": [RGB.rotate(180)]}, PIXELS),
    "animated.webp": (
        RGB,
        {"save_all": True, "append_images": [RGB.rotate(180)], "lossless": True},
        PIXELS,
    ),
    "CAPITALS.PNG": (RGB, {}, PIXELS),
    "100%20 'ü\n$(x).png": (RGB, {}, PIXELS),
    "no png.png": (RGB, {"format": "BMP"}, PIXELS),
    "deflated.tif": (RGB, {"compression": "tiff_adobe_deflate"}, PIXELS),
}


@pytest.mark.parametrize("name", IMAGES)
def test_unusual_images_are_read_by_path_and_by_pillow(tmp_path, name):
    image, options, expected = IMAGES[name]
    image.save(tmp_path / name, **options)
    assert np.array_equal(read_image(str(tmp_path / name))[..., ::-1], expected)
    with Image.open(tmp_path / name) as opened:
        assert np.array_equal(_read(opened, ImageReader())[1], expected)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    RGB.save(path, exif=exif)
    with Image.open(path) as opened:
        stored = np.asarray(opened)
        steps = {2: "h", 3: "hv", 4: "v", 5: "t", 6: "th", 7: "thv", 8: "tv"}.get(orientation, "")
        for step in steps:
            stored = {
                "h": lambda a: a[:, ::-1],
                "v": lambda a: a[::-1],
                "t": lambda a: a.transpose(1, 0, 2),
            }[step](stored)
        assert np.array_equal(read_image(str(path))[..., ::-1], stored)
        assert np.array_equal(_read(opened, ImageReader())[1], stored)


@pytest.mark.parametrize("options", [{"progressive": True}, {"quality": 30}, {"format": "MPO"}])
def test_kinds_of_jpeg_are_decoded_as_pillow_does(tmp_path, options):
    RGB.save(tmp_path / "a.jpg", **options)
    with Image.open(tmp_path / "a.jpg") as opened:
        read = read_image(str(tmp_path / "a.jpg"))[..., ::-1].astype(int)
        assert np.abs(read - np.asarray(opened.convert("RGB"))).max() <= 2


@pytest.mark.parametrize(
    ("dtype", "reason"),
    [("float32", "32-bit fractions"), ("int16", "16-bit numbers with a sign"), ("float64", "64")],
)
def test_tiff_of_other_numbers_is_refused_with_its_kind(tmp_path, dtype, reason):
    cv2.imwrite(str(tmp_path / "a.tif"), np.zeros((4, 5, 3), dtype))
    with pytest.raises(DataFileError, match=rf"a\.tif' must hold grey .* but holds {reason}"):
        read_image(str(tmp_path / "a.tif"))


def test_tiff_of_another_colour_space_is_refused(tmp_path):
    RGB.convert("LAB").save(tmp_path / "a.tif")
    with pytest.raises(DataFileError, match=r"a\.tif' must hold .* but holds CIE L\*a\*b\*\.$"):
        read_image(str(tmp_path / "a.tif"))


def test_wide_planes_of_other_colours_are_refused(tmp_path):
    write_tiff(tmp_path / "a.tif", np.zeros((4, 5, 4), np.uint16), planar=True, photometric=5)
    with pytest.raises(DataFileError, match=r"a\.tif' must .* holds separate bands of 16 bits"):
        read_image(str(tmp_path / "a.tif"))


def odd_entries(folder) -> dict[str, str]:
    """Entries called as images that are none -> what is said of them."""
    (folder / "empty.png").write_bytes(b"")
    (folder / "page.png").write_bytes(b"<html>404</html>")
    (folder / "phone.png").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    (folder / "folder.png").mkdir()
    os.symlink(folder / "loop.png", folder / "loop.png")
    os.symlink(folder / "lost", folder / "dangling.png")
    return {
        "empty": "is empty",
        "page": "of another kind",
        "phone": "of another kind",
        "folder": "Is a directory",
        "loop": "Too many levels",
        "dangling": "No such file",
    }


def test_entries_that_are_no_image_are_named(tmp_path):
    for name, reason in odd_entries(tmp_path).items():
        with pytest.raises(DataFileError, match=rf"{name}\.png'.*{reason}"):
            read_image(str(tmp_path / f"{name}.png"))


def test_checker_reports_odd_entries_and_newlines_in_one_line_each(tmp_path):
    root = make_folder(tmp_path / "own")
    label = (root / "annotations/train/a.png").read_bytes()
    expected = {*odd_entries(root / "images/train")}
    (root / "images/train/new\nline.png").write_bytes(b"")
    for name in (*expected, "new\nline"):
        (root / f"annotations/train/{name}.png").write_bytes(label)
    (report,) = check_datasets([f"folder:{root}:train"])
    paths = [os.path.basename(fault.path)[:-4] for fault in report.faults]
    assert sorted(paths) == sorted([*expected, "new\nline"])
    assert "new\\x0aline.png: has no content" in format_report(report)


# ------------------------------------------------------------------ masks


def interlaced_png(ids: np.ndarray, extra: bytes = b"") -> bytes:
    """A grey PNG by Adam7 (PNG specification, 8.2)."""
    starts = (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)
    rows = b""
    for x, y, dx, dy in (*starts, (0, 1, 1, 2)):
        part = ids[y::dy, x::dx]
        rows += b"".join(b"\0" + row.tobytes() for row in part if row.size)
    head = struct.pack(">IIBBBBB", ids.shape[1], ids.shape[0], 8, 0, 0, 0, 1)
    parts = [(b"IHDR", head), (b"gAMA", struct.pack(">I", 45455)), (b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (*parts, (b"IEND", b""))
    )


def saved(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


MASKS = {
    "interlaced, with gamma": lambda: interlaced_png(IDS),
    "transparent value": lambda: saved(Image.fromarray(IDS), transparency=0),
    "of 16 bits": lambda: saved(Image.fromarray(IDS.astype(np.uint16))),
    "animated": lambda: saved(
        Image.fromarray(IDS), save_all=True, append_images=[Image.fromarray(2 - IDS)]
    ),
}


@pytest.mark.parametrize("kind", MASKS)
def test_unusual_masks_hold_their_ids(tmp_path, kind):
    (tmp_path / "a.png").write_bytes(MASKS[kind]())
    assert np.array_equal(read_label_map(str(tmp_path / "a.png"), {0: 0, 1: 1, 2: 2}), IDS)


# ------------------------------------------------------------------ text

ENCODINGS = [
    lambda text: codecs.BOM_UTF8 + text.encode(),
    lambda text: text.encode("utf-16"),
    lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    lambda text: text.replace("\n", "\r\n").encode(),
]


@pytest.mark.parametrize("encode", ENCODINGS)
def test_class_files_and_configurations_of_all_editors_are_read(tmp_path, encode):
    (tmp_path / "classes.txt").write_bytes(encode("Straße\n空\n"))
    (tmp_path / "classes.json").write_bytes(encode('{"classes": ["Straße",\n "空"]}\n'))
    for name in ("classes.txt", "classes.json"):
        table = read_class_file(str(tmp_path / name))
        assert [name for name, _ in table.classes] == ["Straße", "空"]
    (tmp_path / "a.yaml").write_bytes(encode("SEED: 5\nOUTPUT_DIR: ü\n"))
    assert read_yaml_chain(str(tmp_path / "a.yaml")) == {"SEED": 5, "OUTPUT_DIR": "ü"}
    assert load_config(str(tmp_path / "a.yaml")).SEED == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('["a", "b", "a"]', r"must name each class once, but names \['a'\] again"),
        (
            str([f"c{i}" for i in range(256)]).replace("'", '"'),
            "must list 1 to 255 class names, but lists 256",
        ),
        ('["a", // road\n "b"]', "cannot be read as text or JSON"),
        ("[" * 100_000, "cannot be read as text or JSON"),
        ('["a", ""]', "must give each class a name"),
        ('{"names": ["a"]}', "must list 1 to 255 class names, but lists None"),
        ("\xff", "cannot be read as text or JSON"),
    ],
)
def test_class_files_that_cannot_be_used_are_named_in_one_sentence(tmp_path, content, message):
    path = tmp_path / "classes.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"classes\.json' {message}") as caught:
        read_class_file(str(path))
    assert len(str(caught.value)) < 400
