import numpy as np
import pytest
import torch

from offseg_d2.data import DataFileError, SemSegDatasetMapper, build_lut, build_mapper
from offseg_d2.data.augmentation import CvResizeTransform, KeepRatioResize
from tests.data.common import camvid_cfg, write_image, write_label

LUT = build_lut({0: 0, 1: 1, 11: 255})


@pytest.fixture
def record(tmp_path):
    write_image(tmp_path / "a.png", 6, 8)
    write_label(tmp_path / "l.png", np.arange(48).reshape(6, 8) % 2)
    return {
        "file_name": str(tmp_path / "a.png"),
        "sem_seg_file_name": str(tmp_path / "l.png"),
        "image_id": "a",
    }


def test_sample_holds_rgb_planes_train_ids_and_the_original_size(record, tmp_path):
    pixels = write_image(tmp_path / "a.png", 6, 8, seed=1)
    write_label(tmp_path / "l.png", np.array([[0, 1, 11, 0]] * 3).repeat(2, 0).repeat(2, 1))
    mapper = SemSegDatasetMapper(True, augmentations=[KeepRatioResize((4, 3))], label_lut=LUT)
    sample = mapper(record)
    half = CvResizeTransform(6, 8, 3, 4).apply_image(pixels)
    assert sample["image"].dtype == torch.uint8 and sample["image"].is_contiguous()
    assert np.array_equal(sample["image"].numpy(), half[..., ::-1].transpose(2, 0, 1))
    assert sample["sem_seg"].dtype == torch.int64
    assert sample["sem_seg"].tolist() == [[0, 1, 255, 0]] * 3
    assert (sample["height"], sample["width"], sample["image_id"]) == (6, 8, "a")


def test_bgr_is_kept_on_demand(record):
    rgb = SemSegDatasetMapper(False, augmentations=[], image_format="RGB")(record)["image"]
    bgr = SemSegDatasetMapper(False, augmentations=[], image_format="BGR")(record)["image"]
    assert torch.equal(rgb, bgr.flip(0)) and not torch.equal(rgb, bgr)


def test_test_sample_has_no_labels_and_needs_no_label_file(record):
    del record["sem_seg_file_name"]
    sample = SemSegDatasetMapper(False, augmentations=[KeepRatioResize((4, 3))])(record)
    assert "sem_seg" not in sample and sample["image"].shape == (3, 3, 4)


def test_record_is_not_changed(record):
    before = dict(record)
    SemSegDatasetMapper(True, augmentations=[], label_lut=LUT)(record)
    assert record == before


def test_label_of_another_size_is_named_with_both_sizes(record, tmp_path):
    write_label(tmp_path / "l.png", np.zeros((7, 9)))
    mapper = SemSegDatasetMapper(True, augmentations=[], label_lut=LUT)
    with pytest.raises(DataFileError, match=r"l\.png.* has 9x7 and .*a\.png' has 8x6"):
        mapper(record)


def test_label_outside_the_map_is_named(record, tmp_path):
    write_label(tmp_path / "l.png", np.full((6, 8), 5))
    mapper = SemSegDatasetMapper(True, augmentations=[], label_lut=LUT)
    with pytest.raises(DataFileError, match=r"l\.png.*\(0-1, 11\), but holds 5"):
        mapper(record)


def test_training_record_without_label_is_named(record):
    del record["sem_seg_file_name"]
    mapper = SemSegDatasetMapper(True, augmentations=[], label_lut=LUT)
    with pytest.raises(DataFileError, match=r"a\.png' has no label file"):
        mapper(record)


def test_image_of_another_size_than_recorded_is_named(record):
    mapper = SemSegDatasetMapper(False, augmentations=[])
    assert mapper({**record, "height": 6, "width": 8})["width"] == 8
    with pytest.raises(DataFileError, match=r"a\.png' must be 9x6 .* but is 8x6"):
        mapper({**record, "height": 6, "width": 9})


def test_mapper_is_built_from_the_config(record):
    mapper = build_mapper(camvid_cfg(), is_train=True)
    assert mapper.label_lut.values[11] == 255 and mapper.label_lut.values[10] == 10
    sample = mapper(record)
    assert sample["image"].shape[1:] == sample["sem_seg"].shape
    assert sample["image"].shape[1] <= 20 and sample["image"].shape[2] <= 24


def test_unknown_names_are_refused_with_the_choices():
    cfg = camvid_cfg()
    cfg.INPUT.DATASET_MAPPER_NAME = "semseg"
    with pytest.raises(ValueError, match=r"must be one of \['sem_seg'\], but is 'semseg'"):
        build_mapper(cfg, is_train=True)
    with pytest.raises(ValueError, match=r"`INPUT\.FORMAT` must be one of .* but is 'YUV'"):
        SemSegDatasetMapper(False, augmentations=[], image_format="YUV")
    with pytest.raises(ValueError, match="`label_lut` must be given"):
        SemSegDatasetMapper(True, augmentations=[])
