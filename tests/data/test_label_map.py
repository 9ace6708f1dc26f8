import numpy as np
import pytest
from detectron2.data import MetadataCatalog

from offseg_d2.data import DataFileError, build_lut, describe_label_map, read_label_map
from offseg_d2.data.label_map import count_ids, joint_metadata, label_map_of
from tests.data.common import write_label


@pytest.fixture
def metadata():
    """Make metadata that is gone after the test."""
    names = []

    def make(name, **values):
        names.append(name)
        return MetadataCatalog.get(name).set(**values)

    yield make
    for name in names:
        MetadataCatalog.pop(name)


def test_lut_holds_the_map_and_marks_everything_else_invalid():
    lut = build_lut({0: 255, 7: 0, 255: 255})
    assert lut.values[[0, 7, 255]].tolist() == [255, 0, 255]
    assert np.flatnonzero(lut.valid).tolist() == [0, 7, 255]


@pytest.mark.parametrize("label_map", [{-1: 0}, {256: 0}, {0: 256}, {0: 1.5}])
def test_ids_that_do_not_fit_a_byte_are_refused(label_map):
    with pytest.raises(ValueError, match=r"`label_map` must map integers in 0\.\.255"):
        build_lut(label_map)


@pytest.mark.parametrize("palette", [True, False])
@pytest.mark.parametrize(
    "label_map",
    [
        {0: 255, 7: 0, 8: 1, 255: 255},
        {0: 255, 255: 255, **{v: v - 1 for v in range(1, 151)}},  # "reduce zero label"
        {i: 255 - i for i in range(256)},
    ],
)
def test_raw_values_are_mapped_whatever_the_palette_shows(tmp_path, palette, label_map):
    raw = np.resize(list(label_map), (16, 16))
    write_label(tmp_path / "a.png", raw, palette)
    label = read_label_map(str(tmp_path / "a.png"), label_map)
    assert label.dtype == np.uint8
    assert label.tolist() == np.vectorize(label_map.get)(raw).tolist()


def test_unmapped_ids_are_listed_up_to_five(tmp_path):
    write_label(tmp_path / "bad.png", np.array([[0, 1, 40, 33]]))
    with pytest.raises(DataFileError, match=r"bad\.png.*\(0-1\), but holds 33, 40\.$"):
        read_label_map(str(tmp_path / "bad.png"), {0: 0, 1: 1})
    write_label(tmp_path / "bad.png", np.arange(20).reshape(4, 5))
    with pytest.raises(DataFileError, match=r"but holds 2, 3, 4, 5, 6, \.\.\.\.$"):
        read_label_map(str(tmp_path / "bad.png"), {0: 0, 1: 1})


@pytest.mark.parametrize("keep", [0, 20, 60])
def test_broken_label_file_is_named(tmp_path, keep):
    path = tmp_path / "cut.png"
    write_label(path, np.random.RandomState(0).randint(0, 9, (64, 64)), palette=False)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataFileError, match=r"cut\.png"):
        read_label_map(str(path), {i: i for i in range(9)})


def test_dataset_without_label_map_stores_train_ids_of_its_classes(metadata):
    plain = metadata("lm_plain", stuff_classes=["a", "b"], ignore_label=9)
    assert label_map_of(plain) == {0: 0, 1: 1, 9: 255}
    with pytest.raises(ValueError, match="'lm_empty' must have `stuff_classes`"):
        label_map_of(metadata("lm_empty"))


def test_datasets_trained_on_together_must_agree(metadata):
    metadata("lm_1", stuff_classes=["a", "b"], label_map={0: 0, 1: 1})
    metadata("lm_2", stuff_classes=["a", "b"], label_map={0: 1, 1: 0})
    metadata("lm_3", stuff_classes=["a", "b"], label_map={0: 0, 1: 1})
    assert joint_metadata(["lm_1", "lm_3"]).name == "lm_1"
    with pytest.raises(ValueError, match="'lm_2' differs from 'lm_1'"):
        joint_metadata(["lm_1", "lm_2"])
    with pytest.raises(ValueError, match=r"`DATASETS\.TRAIN` must name at least one"):
        joint_metadata([])


def test_label_map_is_described_in_one_line(metadata):
    city = metadata(
        "lm_city",
        stuff_classes=["a", "b", "c"],
        label_map={0: 255, 1: 255, 7: 0, 8: 1, 11: 2, 255: 255},
    )
    assert describe_label_map(city) == (
        "3 classes; raw ids 0-1 -> ignored, 7-8 -> 0-1, 11 -> 2, 255 -> ignored"
    )


def test_unmapped_id_is_found_whatever_train_ids_are_used(tmp_path):
    write_label(tmp_path / "a.png", np.array([[0, 9]]))
    for train_ids in (range(8), range(248, 256), [0] * 8, [255] * 8):
        label_map = dict(enumerate(train_ids))
        with pytest.raises(DataFileError, match=r"\(0-7\), but holds 9\.$"):
            read_label_map(str(tmp_path / "a.png"), label_map)


@pytest.mark.parametrize("shape", [(30, 40), (4100, 4100)])
def test_ids_are_counted_exactly_beyond_the_precision_of_float32(shape):
    labels = np.full(shape, 7, np.uint8)
    labels[::3, 1] = 200
    counts = count_ids(labels[:, 1:])
    height, width = shape
    ones = -(-height // 3)
    assert counts[200] == ones and counts[7] == height * (width - 1) - ones
    assert counts.sum() == height * (width - 1)
