"""16-bit values and bands become colours as the configuration says, wherever images are read."""

import logging

import cv2
import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from PIL import Image

from offseg_d2.config import ConfigError, load_config
from offseg_d2.data import (
    DataFileError,
    ImageReader,
    ImageSettings,
    build_mapper,
    build_test_loader,
    build_train_loader,
    read_image,
)
from offseg_d2.data.datasets.own_data import ensure_registered
from offseg_d2.data.inspection import check_datasets
from offseg_d2.evaluation import read_photograph
from offseg_d2.inference.segmenter import _read
from tests.data.test_user_files import make_folder
from tests.data.tiff_files import write_tiff

TWELVE = ImageSettings(max_value=4095)


def random_values(most: int, shape: tuple[int, ...] = (8, 9, 3)) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, most + 1, shape).astype(np.uint16)
    values.flat[:2] = 0, most
    return values


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize(("most", "shift"), [(1023, 2), (4095, 4), (16383, 6), (65535, 8)])
def test_values_of_16_bit_files_are_their_upper_8_bits(tmp_path, suffix, most, shift):
    values = random_values(most)
    cv2.imwrite(str(tmp_path / f"a{suffix}"), values)
    read = read_image(str(tmp_path / f"a{suffix}"), ImageSettings(max_value=most))
    assert np.array_equal(read, values >> shift)
    assert read.max() == 255


def test_values_above_the_largest_become_white():
    assert ImageSettings(max_value=1000).to_bytes(np.array([0, 500, 1000, 1001])).tolist() == [
        *(0, 500 * 256 // 1001, 255, 255),
    ]


@pytest.mark.parametrize(("most", "bits"), [(255, 8), (900, 10), (4095, 12), (16000, 14)])
def test_values_that_become_dark_are_reported_with_range_and_key(most, bits):
    text = ImageSettings().range_warning("It", 3, most)
    assert text.startswith(f"It holds 16-bit values of 3 to {most},")
    assert "`INPUT.MAX_VALUE_16_BIT`" in text and f"such as {2**bits - 1} for" in text


@pytest.mark.parametrize(("settings", "most"), [(ImageSettings(), 16384), (TWELVE, 4095)])
def test_values_that_fit_are_not_reported(settings, most):
    assert settings.range_warning("It", 0, most) is None
    assert ImageSettings().range_warning("It", 0, 0) is None  # black is black at any depth


def test_reader_warns_of_its_first_image_only(tmp_path, caplog):
    paths = [str(tmp_path / f"{name}.png") for name in "ab"]
    for path in paths:
        cv2.imwrite(path, random_values(4000))
    reader = ImageReader()
    with caplog.at_level(logging.WARNING):
        for path in paths:
            reader(path)
    (record,) = caplog.records
    assert "a.png' holds 16-bit values of 0 to 4000," in record.getMessage()


def twelve_bit_folder(root):
    """Three images of 12 bits and their label maps."""
    make_folder(root)
    for split in ("train", "val"):
        for name in "abc":
            cv2.imwrite(str(root / f"images/{split}/{name}.png"), random_values(4000))
            label = (root / f"annotations/{split}/a.png").read_bytes()
            (root / f"annotations/{split}/{name}.png").write_bytes(label)
    return [f"folder:{root}:train", f"folder:{root}:val"]


def folder_cfg(names, *opts):
    return load_config(
        "",
        [
            *("DATASETS.TRAIN", (names[0],), "DATASETS.TEST", (names[1],)),
            *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3, "SOLVER.IMS_PER_BATCH", 3, "SEED", 1),
            *("DATALOADER.NUM_WORKERS", 2, "INPUT.RESIZE.SCALE_TEST", [9, 8]),
            *("MODEL.DEVICE", "cpu", *opts),
        ],
    )


def test_loaders_warn_once_for_each_data_set(tmp_path, caplog):
    names = twelve_bit_folder(tmp_path / "own")
    ensure_registered(names)
    for opts, expected in (((), 2), (("INPUT.MAX_VALUE_16_BIT", 4095), 0)):
        cfg = folder_cfg(names, *opts)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            batches = [next(iter(build_train_loader(cfg))), *build_test_loader(cfg, names[1])]
        found = [r.getMessage() for r in caplog.records if "16-bit" in r.getMessage()]
        assert len(found) == expected
        assert all("0 to 4000" in text and "`INPUT.MAX_VALUE_16_BIT`" in text for text in found)
        assert not any("warning" in sample for batch in batches for sample in batch)


def test_checker_reports_the_range_of_a_data_set_once(tmp_path):
    name, _ = twelve_bit_folder(tmp_path / "own")
    cv2.imwrite(str(tmp_path / "own/images/train/b.png"), random_values(4090))
    (report,) = check_datasets([name])
    (warning,) = [fault for fault in report.warnings if fault.kind == "value_range"]
    assert warning.path == name and "values of 0 to 4090" in warning.message
    (report,) = check_datasets([name], settings=TWELVE)
    assert not [fault for fault in report.warnings if fault.kind == "value_range"]


def test_mapper_pictures_and_segmenter_read_the_same(tmp_path):
    names = twelve_bit_folder(tmp_path / "own")
    path = str(tmp_path / "own/images/train/a.png")
    expected = (random_values(4000) >> 4)[..., ::-1]
    mapper = build_mapper(folder_cfg(names, "INPUT.MAX_VALUE_16_BIT", 4095), is_train=False)
    planes = mapper({"file_name": path})["image"]
    assert np.array_equal(planes.numpy().transpose(1, 2, 0), expected)
    assert np.array_equal(read_photograph(path, TWELVE), expected)
    assert np.array_equal(_read(path, ImageReader(TWELVE))[1], expected)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("settings", [ImageSettings(), TWELVE])
def test_grey_pil_image_of_16_bits_is_read_as_its_file(tmp_path, suffix, settings):
    cv2.imwrite(str(tmp_path / f"a{suffix}"), random_values(4000, (8, 9)))
    reader = ImageReader(settings)
    with Image.open(tmp_path / f"a{suffix}") as opened:
        expected = _read(tmp_path / f"a{suffix}", reader)[1]
        assert np.array_equal(_read(opened, reader)[1], expected)


def test_pil_images_that_lost_what_a_key_needs_are_refused(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), random_values(4000))
    with (
        Image.open(tmp_path / "a.png") as opened,
        pytest.raises(ValueError, match=r"by its path for `INPUT\.MAX_VALUE_16_BIT`"),
    ):
        _read(opened, ImageReader(TWELVE))
    write_tiff(tmp_path / "a.tif", np.zeros((4, 5, 3), np.uint8))
    with (
        Image.open(tmp_path / "a.tif") as opened,
        pytest.raises(ValueError, match=r"by its path for `INPUT\.BANDS`"),
    ):
        _read(opened, ImageReader(ImageSettings(bands=(3, 2, 1))))


# ------------------------------------------------------------------ bands


@pytest.mark.parametrize("bands", [3, 4, 5, 13])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize(("dtype", "order"), [(np.uint8, "<"), (np.uint16, "<"), (np.uint16, ">")])
def test_chosen_bands_are_red_green_and_blue(tmp_path, bands, planar, dtype, order):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 7, bands)).astype(dtype)
    factor = 257 if dtype == np.uint16 else 1
    stored = pixels * dtype(factor)
    extra = 2 if bands > 3 else None
    write_tiff(tmp_path / "a.tif", stored, planar=planar, order=order, extra=extra)
    read = read_image(str(tmp_path / "a.tif"), ImageSettings(bands=(bands, 1, 2)))
    assert np.array_equal(read[..., ::-1], pixels[..., [bands - 1, 0, 1]])


@pytest.mark.parametrize("predictor", [None, 2])
def test_bands_of_compressed_strips(tmp_path, predictor):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 7, 5)).astype(np.uint8)
    write_tiff(tmp_path / "a.tif", pixels, extra=0, predictor=predictor)
    read = read_image(str(tmp_path / "a.tif"), ImageSettings(bands=(3, 2, 5)))
    assert np.array_equal(read[..., ::-1], pixels[..., [2, 1, 4]])


def test_bands_that_a_file_lacks_and_damaged_files_are_named(tmp_path):
    path = tmp_path / "a.tif"
    write_tiff(path, np.zeros((4, 5, 6), np.uint8), extra=0)
    with pytest.raises(DataFileError, match=r"a\.tif' .* \[7, 2, 1\] .*`INPUT\.BANDS`.*has 6\.$"):
        read_image(str(path), ImageSettings(bands=(7, 2, 1)))
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataFileError, match=r"a\.tif'"):
        read_image(str(path), ImageSettings(bands=(3, 2, 1)))
    cv2.imwrite(str(path), np.zeros((4, 5, 3), np.float32))
    with pytest.raises(DataFileError, match=r"a\.tif' must hold whole numbers.*`INPUT\.BANDS`"):
        read_image(str(path), ImageSettings(bands=(3, 2, 1)))


def test_bands_leave_other_formats_alone(tmp_path):
    pixels = random_values(65535).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    settings = ImageSettings(bands=(3, 2, 1))
    assert np.array_equal(read_image(str(tmp_path / "a.png"), settings), pixels)


def test_checker_reads_the_bands_that_training_does(tmp_path):
    root = make_folder(tmp_path / "own")
    (root / "images/train/a.png").unlink()
    write_tiff(root / "images/train/a.tif", np.zeros((8, 9, 6), np.uint8), extra=0)
    name = f"folder:{root}:train"
    (report,) = check_datasets([name])
    (fault,) = report.faults
    assert "at most 4 bands" in fault.message and "`INPUT.BANDS`" in fault.message
    (report,) = check_datasets([name], settings=ImageSettings(bands=(3, 2, 1)))
    assert report.is_clean and MetadataCatalog.get(name).stuff_classes == ["a", "b", "c"]


@pytest.mark.parametrize("value", [0, 254, 65536, -1])
def test_largest_value_outside_16_bits_is_refused(value):
    cfg = load_config("", ["INPUT.MAX_VALUE_16_BIT", value])
    with pytest.raises(ConfigError, match=rf"`INPUT\.MAX_VALUE_16_BIT` must .* but is {value}\.$"):
        ImageSettings.from_config(cfg)


@pytest.mark.parametrize("value", [[1], [1, 2], [0, 1, 2], [1, 2, 3, 4], [1.5, 2, 3], ["r", 1, 2]])
def test_bands_that_are_not_three_numbers_are_refused(value):
    with pytest.raises(ConfigError, match=r"`INPUT\.BANDS` must be empty or .*, but is \["):
        build_mapper(load_config("", ["INPUT.BANDS", value]), is_train=False)


# ------------------------------------------------------------------ size


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".webp"])
def test_images_above_the_limit_are_refused_before_they_are_decoded(tmp_path, monkeypatch, suffix):
    path = str(tmp_path / f"a{suffix}")
    cv2.imwrite(path, np.zeros((30, 40, 3), np.uint8))
    assert read_image(path, ImageSettings(max_pixels=1200)).shape == (30, 40, 3)
    monkeypatch.setattr(cv2, "imdecode", None)
    with pytest.raises(DataFileError, match=r"a\.\w+' must have .*--max-pixels.*\(40 x 30\)\.$"):
        read_image(path, ImageSettings(max_pixels=1199))
