"""Images, masks and lists as users have them are read as they are meant, or refused by name."""

import codecs
import json
import struct
import zlib

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from offseg_d2.data import (
    DataFileError,
    build_lut,
    label_lut_of,
    read_image,
    read_label_map,
    register_folder,
)
from offseg_d2.data.datasets.class_file import class_table
from offseg_d2.data.datasets.own_data import ensure_registered
from offseg_d2.data.inspection import check_datasets
from offseg_d2.data.label_map import read_raw_labels
from tests.data.tiff_files import write_tiff

IDS = np.array([[0, 1, 2], [2, 1, 0]], dtype=np.uint8)
PALETTE = [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
COLORS = np.array(PALETTE, dtype=np.uint8)[IDS]

# ------------------------------------------------------------------ images


@pytest.mark.parametrize("extra", [None, 0, 1, 2])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize(("dtype", "order"), [(np.uint8, "<"), (np.uint8, ">"), (np.uint16, "<")])
def test_first_three_bands_of_a_tiff_are_its_colours(tmp_path, extra, planar, dtype, order):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 7, 4)).astype(np.uint8)
    factor = 1 if dtype == np.uint8 else 257
    stored = pixels.astype(dtype) * dtype(factor)
    write_tiff(tmp_path / "a.tif", stored, extra=extra, planar=planar, order=order)
    assert np.array_equal(read_image(str(tmp_path / "a.tif"))[..., ::-1], pixels[..., :3])


@pytest.mark.parametrize("bands", [5, 8])
def test_more_bands_than_four_are_refused(tmp_path, bands):
    write_tiff(tmp_path / "a.tif", np.zeros((4, 5, bands), np.uint8), extra=0)
    with pytest.raises(DataFileError, match=rf"a\.tif' must have at most 4 bands.*has {bands}\.$"):
        read_image(str(tmp_path / "a.tif"))


def test_cut_tiff_is_named(tmp_path):
    write_tiff(tmp_path / "a.tif", np.zeros((4, 5, 4), np.uint8), extra=2)
    content = (tmp_path / "a.tif").read_bytes()
    for length in (6, 20, len(content) - 30):
        (tmp_path / "a.tif").write_bytes(content[:length])
        with pytest.raises(DataFileError, match=r"a\.tif"):
            read_image(str(tmp_path / "a.tif"))


@pytest.mark.parametrize("size", [(400_000_001, 1), (33_000, 33_000)])
def test_too_many_pixels_are_refused_in_one_sentence(tmp_path, size):
    _write_grey_png(tmp_path / "a.png", np.zeros((1, 8), np.uint8), 8, size=size)
    with pytest.raises(DataFileError, match=r"a\.png"):
        read_raw_labels(str(tmp_path / "a.png"))
    with pytest.raises(DataFileError, match=r"a\.png"):
        read_image(str(tmp_path / "a.png"))


def test_label_file_above_pillows_limit_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)
    Image.fromarray(IDS).save(tmp_path / "a.png")
    assert np.array_equal(read_raw_labels(str(tmp_path / "a.png")), IDS)
    assert Image.MAX_IMAGE_PIXELS == 2


# ------------------------------------------------------------------ masks


def _write_grey_png(path, samples, bits, size=None):
    """A grey PNG of 1, 2, 4, 8 or 16 bits, samples stored as they are."""
    rows = b""
    for row in samples:
        shifts = range(bits - 1, -1, -1)
        flags = np.array([[value >> shift & 1 for shift in shifts] for value in row], np.uint8)
        rows += b"\0" + np.packbits(flags.ravel()).tobytes()
    width, height = size or samples.shape[::-1]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0))
        + _chunk(b"IDAT", zlib.compress(rows))
        + _chunk(b"IEND", b"")
    )


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_label_png_of_any_depth_gives_its_stored_values(tmp_path, bits):
    samples = np.arange(40).reshape(4, 10) % min(2**bits, 37)
    _write_grey_png(tmp_path / "a.png", samples, bits)
    assert np.array_equal(read_raw_labels(str(tmp_path / "a.png")), samples)


@pytest.mark.parametrize(
    ("pixels", "mode"),
    [
        (IDS, "L"),
        (IDS.astype(np.uint16), None),
        (IDS.astype(np.int32), None),
        (np.repeat(IDS[..., None], 3, axis=2), "RGB"),
        (np.dstack([IDS, IDS, IDS, np.full_like(IDS, 255)]), "RGBA"),
        (np.dstack([IDS, np.full_like(IDS, 255)]), "LA"),
    ],
)
def test_masks_of_one_or_equal_channels_hold_ids(tmp_path, pixels, mode):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert mode is None or Image.open(tmp_path / "a.png").mode == mode
    assert np.array_equal(read_label_map(str(tmp_path / "a.png"), {0: 0, 1: 1, 2: 2}), IDS)


def test_ids_above_255_are_refused_with_their_range(tmp_path):
    Image.fromarray(np.array([[3, 300]], np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(DataFileError, match=r"a\.png' must hold ids in 0\.\.255.*holds 3 to 300"):
        read_raw_labels(str(tmp_path / "a.png"))


@pytest.mark.parametrize("alpha", [False, True])
def test_masks_in_the_colours_of_the_palette_are_read(tmp_path, alpha):
    opaque = np.full((*IDS.shape, 1), 255, np.uint8)
    Image.fromarray(np.dstack([COLORS, opaque]) if alpha else COLORS).save(tmp_path / "a.png")
    lut = build_lut({0: 0, 1: 1, 2: 2}, PALETTE)
    assert np.array_equal(read_label_map(str(tmp_path / "a.png"), lut), IDS)
    with pytest.raises(DataFileError, match=r"a\.png' must hold class ids.*give .* a 'palette'"):
        read_label_map(str(tmp_path / "a.png"), {0: 0})


def test_colours_that_the_palette_lacks_are_counted(tmp_path):
    colors = COLORS.copy()
    colors[0, :2] = (1, 2, 3)
    Image.fromarray(colors).save(tmp_path / "a.png")
    with pytest.raises(DataFileError, match=r"a\.png'.*holds \[1, 2, 3\] in 2 pixels; 'ignore_l"):
        read_label_map(str(tmp_path / "a.png"), build_lut({0: 0, 1: 1, 2: 2}, PALETTE))


def test_indexed_mask_of_another_order_is_read_by_its_colours(tmp_path):
    image = Image.fromarray(IDS, mode="P")
    image.putpalette(np.array(PALETTE[::-1], np.uint8).tobytes())
    image.save(tmp_path / "a.png")
    path, identity = str(tmp_path / "a.png"), {0: 0, 1: 1, 2: 2}
    assert np.array_equal(read_label_map(path, identity), IDS)
    assert np.array_equal(read_label_map(path, build_lut(identity, PALETTE)), 2 - IDS)
    other = build_lut(identity, [[9, 9, 9], [8, 8, 8], [7, 7, 7]])  # colours for display only
    assert np.array_equal(read_label_map(path, other), IDS)


def write_indexed(path, ids, colors):
    image = Image.fromarray(np.array(ids, np.uint8), mode="P")
    image.putpalette(np.array(colors, np.uint8).tobytes())
    image.save(path)
    return str(path)


def test_ignored_ids_do_not_change_what_an_indexed_mask_means(tmp_path):
    red_green, swapped = [[255, 0, 0], [0, 255, 0]], [[0, 255, 0], [255, 0, 0], [9, 9, 9]]
    lut = build_lut({0: 0, 1: 1, 2: 255}, red_green)
    for ids, expected in (([[0, 1]], [[1, 0]]), ([[0, 2], [1, 2]], [[1, 255], [0, 255]])):
        path = write_indexed(tmp_path / "a.png", ids, swapped)
        assert read_label_map(path, lut).tolist() == expected
    path = write_indexed(tmp_path / "a.png", [[0, 1]], [[0, 255, 0], [7, 7, 7]])
    with pytest.raises(DataFileError, match=r"a\.png' must have the classes' colours.*id 1 has"):
        read_label_map(path, lut)


@pytest.mark.parametrize(
    ("palette", "colors", "expected"),
    [
        ([[0, 0, 0], [255, 255, 255]], [[0, 0, 0], [255, 255, 255]], [0, 1]),
        ([[128, 64, 128], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]], [1, 1]),
        ([[128, 64, 128], [70, 70, 70]], [[70, 70, 70], [128, 64, 128]], [1, 0]),
        ([[128, 64, 128], [70, 70, 70]], [[1, 1, 1], [0, 0, 0]], [1, 0]),  # ids
    ],
)
def test_grey_colours_of_the_palette_are_colours(tmp_path, palette, colors, expected):
    Image.fromarray(np.array([colors], np.uint8)).save(tmp_path / "a.png")
    lut = build_lut({0: 0, 1: 1}, palette)
    assert read_label_map(str(tmp_path / "a.png"), lut).tolist() == [expected]


def test_ignored_colours_of_masks(tmp_path):
    table = class_table(
        {"classes": ["a", "b"], "palette": PALETTE[1:], "ignore_label": [PALETTE[0], [9, 9, 9]]},
        "x",
    )
    assert table.label_map == {0: 0, 1: 1, 255: 255}
    lut = build_lut(table.label_map, PALETTE[1:], table.ignored_colors)
    expected = [[255, 0, 1], [1, 0, 255]]
    Image.fromarray(COLORS).save(tmp_path / "a.png")
    assert read_label_map(str(tmp_path / "a.png"), lut).tolist() == expected
    Image.fromarray(np.full((2, 3, 3), 9, np.uint8)).save(tmp_path / "a.png")  # greys are colours
    assert (read_label_map(str(tmp_path / "a.png"), lut) == 255).all()
    path = write_indexed(tmp_path / "a.png", IDS, PALETTE)  # in another order than the classes
    assert read_label_map(path, lut).tolist() == expected
    path = write_indexed(tmp_path / "a.png", [[0, 1, 2]], [*PALETTE[1:], PALETTE[0]])
    assert read_label_map(path, lut).tolist() == [[0, 1, 255]]
    path = write_indexed(tmp_path / "a.png", [[0, 1, 2]], [*PALETTE[1:], [7, 7, 7]])
    with pytest.raises(DataFileError, match=r"a\.png' must hold ids of the label map"):
        read_label_map(path, lut)


def test_two_files_of_one_name_are_refused(tmp_path):
    root = make_folder(tmp_path / "own")
    Image.new("RGB", (9, 8)).save(root / "images/train/a.PNG")
    register_folder("twice", str(root))
    with pytest.raises(ValueError, match=r"one file of each name, but holds 'a\.\w+' and"):
        DatasetCatalog.get("twice_train")


@pytest.mark.parametrize(
    ("content", "value", "expected"),
    [
        ({"classes": ["a", "b"], "label_map": {"0": 0, "255": 1}}, 255, 1),
        ({"classes": ["a", "b"], "label_map": {"0": 0, "1": 1}}, 255, 255),
        ({"classes": [f"c{i}" for i in range(255)], "reduce_zero_label": True}, 255, 254),
        ({"classes": ["a", "b"]}, 255, 255),
    ],
)
def test_255_is_ignored_only_where_nobody_mapped_it(content, value, expected):
    assert class_table(content, "x").label_map[value] == expected


# ------------------------------------------------------------------ folders and lists


def make_folder(root, splits=("train", "val"), **classes):
    for split in splits:
        for part, pixels in (("images", np.zeros((8, 9, 3), np.uint8)), ("annotations", IDS)):
            (root / part / split).mkdir(parents=True)
            pixels = np.resize(pixels, (8, 9, *pixels.shape[2:]))
            Image.fromarray(pixels).save(root / part / split / "a.png")
    content = {"classes": ["a", "b", "c"], **classes}
    (root / "classes.json").write_text(json.dumps(content))
    return root


JUNK = (".ipynb_checkpoints", "@eaDir", "__MACOSX", "lost+found", "$RECYCLE.BIN")


def test_hidden_and_system_entries_are_left_out(tmp_path):
    root = make_folder(tmp_path / "own")
    for entry in JUNK:
        (root / "images" / entry).mkdir()
        (root / "images/train" / entry).mkdir()
        (root / "images/train" / entry / "b.png").write_bytes(b"")
    for entry in ("._a.png", "Thumbs.db", "desktop.ini", ".DS_Store"):
        (root / "images/train" / entry).write_bytes(b"\0\5\x16\7")
        (root / "annotations/train" / entry).write_bytes(b"\0\5\x16\7")
    assert register_folder("junk", str(root)) == ["junk_train", "junk_val"]
    assert [s["image_id"] for s in DatasetCatalog.get("junk_train")] == ["a"]


def test_split_without_labels_is_registered_and_has_none(tmp_path):
    root = make_folder(tmp_path / "own")
    (root / "images/test").mkdir()
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(root / "images/test/z.png")
    assert "plain_test" in register_folder("plain", str(root))
    (sample,) = DatasetCatalog.get("plain_test")
    assert sample["image_id"] == "z" and "sem_seg_file_name" not in sample


def test_palette_of_the_class_file_reads_coloured_masks(tmp_path):
    root = make_folder(tmp_path / "own", palette=PALETTE)
    Image.fromarray(COLORS).save(root / "annotations/train/a.png")
    name = f"folder:{root}:train"
    ensure_registered([name])
    lut = label_lut_of(MetadataCatalog.get(name))
    assert np.array_equal(read_label_map(str(root / "annotations/train/a.png"), lut), IDS)


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: codecs.BOM_UTF8 + text.encode(),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.encode("utf-16"),
        lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    ],
    ids=["mark", "windows", "utf-16", "utf-16-be"],
)
def test_lists_of_all_editors_are_read(tmp_path, monkeypatch, encode):
    for part, suffix in (("images", "jpg"), ("annotations", "png")):
        (tmp_path / "camvid" / part / "val").mkdir(parents=True)
        for name in ("a", "b"):
            (tmp_path / "camvid" / part / "val" / f"{name}.{suffix}").write_bytes(b"")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "camvid/val.txt").write_bytes(encode("b\na\n"))
    assert [sample["image_id"] for sample in DatasetCatalog.get("camvid_val")] == ["b", "a"]
    (tmp_path / "camvid/val.txt").write_bytes(b"\xff\xff\xff")
    with pytest.raises(ValueError, match=r"val\.txt' must be UTF-8 text"):
        DatasetCatalog.get("camvid_val")


def test_checker_reads_coloured_masks_as_training_does(tmp_path):
    root = make_folder(tmp_path / "own", palette=PALETTE)
    Image.fromarray(np.resize(COLORS, (8, 9, 3))).save(root / "annotations/train/a.png")
    Image.fromarray(np.full((8, 9, 3), 7, np.uint8) * np.array([1, 2, 3], np.uint8)).save(
        root / "annotations/val/a.png"
    )
    good, bad = check_datasets([f"folder:{root}:train", f"folder:{root}:val"])
    assert good.is_clean and good.classes.pixels.sum() == 72
    (fault,) = bad.faults
    assert fault.kind == "label_format" and "[7, 14, 21] in 72 pixels" in fault.message


def test_control_characters_of_class_names_are_escaped():
    classes = class_table({"classes": ["road\x1b[2J", "sky\u009b1m"]}, "x").classes
    assert [name for name, _ in classes] == ["road\\x1b[2J", "sky\\x9b1m"]
