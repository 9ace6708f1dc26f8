import numpy as np
import pytest
import torch

from offseg_d2.data import DataFileError, SemSegDatasetMapper, build_lut, build_mapper
from offseg_d2.data.augmentation import CvResizeTransform, KeepRatioResize
from offseg_d2.data.dataset_mapper import class_instances
from tests.data.common import camvid_cfg, write_image, write_label

LUT = build_lut({0: 0, 1: 1, 11: 255})


@pytest.fixture
def sample(tmp_path):
    write_image(tmp_path / "a.png", 6, 8)
    write_label(tmp_path / "l.png", np.arange(48).reshape(6, 8) % 2)
    return {
        "file_name": str(tmp_path / "a.png"),
        "sem_seg_file_name": str(tmp_path / "l.png"),
        "image_id": "a",
    }


@pytest.mark.parametrize("with_instances", [False, True])
def test_sample_holds_rgb_planes_train_ids_and_the_original_size(sample, tmp_path, with_instances):
    pixels = write_image(tmp_path / "a.png", 6, 8, seed=1)
    write_label(tmp_path / "l.png", np.array([[0, 1, 11, 0]] * 3).repeat(2, 0).repeat(2, 1))
    mapper = SemSegDatasetMapper(
        True,
        augmentations=[KeepRatioResize((4, 3))],
        label_lut=LUT,
        with_instances=with_instances,
    )
    before = dict(sample)
    mapped = mapper(sample)
    assert sample == before
    half = CvResizeTransform(6, 8, 3, 4).apply_image(pixels)
    assert mapped["image"].dtype == torch.uint8 and mapped["image"].is_contiguous()
    assert np.array_equal(mapped["image"].numpy(), half[..., ::-1].transpose(2, 0, 1))
    assert mapped["sem_seg"].dtype == torch.uint8
    assert mapped["sem_seg"].tolist() == [[0, 1, 255, 0]] * 3
    assert (mapped["height"], mapped["width"], mapped["image_id"]) == (6, 8, "a")
    assert ("instances" in mapped) is with_instances
    if with_instances:
        assert mapped["instances"].image_size == (3, 4)
        assert mapped["instances"].gt_classes.tolist() == [0, 1]
        assert mapped["instances"].gt_masks.sum(dim=(1, 2)).tolist() == [6, 3]


def test_bgr_stays_on_demand(sample):
    rgb = SemSegDatasetMapper(False, augmentations=[], image_format="RGB")(sample)["image"]
    bgr = SemSegDatasetMapper(False, augmentations=[], image_format="BGR")(sample)["image"]
    assert torch.equal(rgb, bgr.flip(0)) and not torch.equal(rgb, bgr)


def test_test_sample_has_no_labels_and_needs_no_label_file(sample):
    del sample["sem_seg_file_name"]
    mapped = SemSegDatasetMapper(False, augmentations=[KeepRatioResize((4, 3))])(sample)
    assert "sem_seg" not in mapped and mapped["image"].shape == (3, 3, 4)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((7, 9)), r"l\.png.* has 9x7 and .*a\.png' has 8x6"),
        (np.full((6, 8), 5), r"l\.png.*\(0-1, 11\), but holds 5"),
        (None, r"a\.png' has no label file"),
    ],
)
def test_unusable_labels_are_named(sample, tmp_path, labels, message):
    if labels is None:
        del sample["sem_seg_file_name"]
    else:
        write_label(tmp_path / "l.png", labels)
    mapper = SemSegDatasetMapper(True, augmentations=[], label_lut=LUT)
    with pytest.raises(DataFileError, match=message):
        mapper(sample)


def test_image_of_another_size_than_given_is_named(sample):
    mapper = SemSegDatasetMapper(False, augmentations=[])
    assert mapper({**sample, "height": 6, "width": 8})["width"] == 8
    with pytest.raises(DataFileError, match=r"a\.png' must be 9x6 .* but is 8x6"):
        mapper({**sample, "height": 6, "width": 9})


def test_mapper_is_built_from_the_config(sample):
    mapper = build_mapper(camvid_cfg(), is_train=True)
    assert mapper.label_lut.values[11] == 255 and mapper.label_lut.values[10] == 10
    mapped = mapper(sample)
    assert mapped["image"].shape[1:] == mapped["sem_seg"].shape
    assert mapped["image"].shape[1] <= 20 and mapped["image"].shape[2] <= 24


def test_unknown_names_are_refused_with_the_choices():
    cfg = camvid_cfg()
    cfg.INPUT.DATASET_MAPPER_NAME = "semseg"
    with pytest.raises(ValueError, match=r"must be one of \['instances', 'sem_seg'\], but is"):
        build_mapper(cfg, is_train=True)
    with pytest.raises(ValueError, match=r"`INPUT\.FORMAT` must be one of .* but is 'YUV'"):
        SemSegDatasetMapper(False, augmentations=[], image_format="YUV")
    with pytest.raises(ValueError, match="`label_lut` must be given"):
        SemSegDatasetMapper(True, augmentations=[])


# ---------------------------------------------------------------- masks of the classes


def test_each_class_that_is_present_has_one_mask_and_ignored_pixels_are_in_none():
    sem_seg = torch.tensor([[7, 7, 255], [3, 255, 3], [0, 3, 255]])
    instances = class_instances(sem_seg)
    assert instances.image_size == (3, 3) and len(instances) == 3
    assert instances.gt_classes.dtype == torch.int64
    assert instances.gt_classes.tolist() == [0, 3, 7]
    assert instances.gt_masks.dtype == torch.bool
    for index, mask in zip(instances.gt_classes.tolist(), instances.gt_masks, strict=True):
        assert torch.equal(mask, sem_seg == index)


def test_label_map_without_a_labelled_pixel_has_no_masks():
    instances = class_instances(torch.full((4, 6), 255))
    assert len(instances) == 0
    assert instances.gt_classes.shape == (0,) and instances.gt_classes.dtype == torch.int64
    assert instances.gt_masks.shape == (0, 4, 6) and instances.gt_masks.dtype == torch.bool


@pytest.mark.parametrize("name", ["sem_seg", "instances"])
def test_configuration_says_whether_there_are_instances_and_changes_nothing_else(sample, name):
    cfg = camvid_cfg()
    cfg.INPUT.DATASET_MAPPER_NAME = name
    np.random.seed(0)
    mapped = build_mapper(cfg, is_train=True)(sample)
    assert ("instances" in mapped) is (name == "instances")
    cfg.INPUT.DATASET_MAPPER_NAME = "sem_seg"
    np.random.seed(0)
    other = build_mapper(cfg, is_train=True)(sample)
    assert torch.equal(mapped["image"], other["image"])
    assert torch.equal(mapped["sem_seg"], other["sem_seg"])
    assert "instances" not in build_mapper(cfg, is_train=False)(sample)
