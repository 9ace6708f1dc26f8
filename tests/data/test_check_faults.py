"""Each fault that is planted into a clean dataset is found, and nothing else."""

import re

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from offseg_d2.data.inspection import FAULTS, check_datasets
from tests.data.checked import (
    CLASSES,
    HEIGHT,
    NAMES,
    PLANTS,
    WIDTH,
    jpeg,
    plant,
    save,
    turned_jpeg,
    write_folder,
)
from tests.data.common import write_camvid, write_label


@pytest.fixture
def root(tmp_path):
    write_folder(tmp_path)
    return tmp_path


@pytest.fixture
def check(root):
    """Checks the dataset below ``root``, which is forgotten afterwards."""
    name = f"folder:{root}:train"
    yield lambda workers=0: check_datasets([name], workers)[0]
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def register():
    """Registers samples by a name, which is forgotten afterwards."""
    names = []

    def add(name, samples, **metadata):
        names.append(name)
        DatasetCatalog.register(name, lambda: samples)
        given = {"stuff_classes": list(CLASSES), "label_map": {0: 0, 1: 1, 2: 2, 255: 255}}
        MetadataCatalog.get(name).set(**{**given, **metadata})
        return name

    yield add
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def samples_of(root, names=NAMES):
    return [
        {
            "file_name": str(root / "images" / "train" / f"{name}.jpg"),
            "sem_seg_file_name": str(root / "annotations" / "train" / f"{name}.png"),
            "image_id": name,
        }
        for name in names
    ]


def kinds(faults):
    return [fault.kind for fault in faults]


def test_clean_dataset_is_clean(check):
    report = check()
    assert report.is_clean and not report.faults and not report.warnings
    counts = report.num_samples, report.num_images, report.num_labels, report.num_usable
    assert counts == (4, 4, 4, 4)
    assert report.sizes == {(HEIGHT, WIDTH): 4}


def test_there_are_more_than_ten_faults_to_plant():
    assert len(PLANTS) >= 10
    assert {kind for kind, *_ in PLANTS.values()} <= FAULTS.keys()


@pytest.mark.parametrize("name", PLANTS)
def test_planted_fault_is_found_in_its_file_and_nowhere_else(root, check, name):
    kind, file, message, _ = PLANTS[name]
    path = plant(root, name)
    report = check()
    (fault,) = report.faults
    assert fault.kind == kind and fault.path == str(path) and path.name == file
    assert re.search(message, fault.message)
    assert "\n" not in fault.message
    assert not report.is_clean and report.num_usable == 3


def test_all_faults_of_a_dataset_are_found_in_one_go(root, check):
    expected = {}
    for name, pair in zip(("truncated JPEG", "unknown id", "missing label"), "acd", strict=True):
        expected[str(plant(root, name, pair))] = PLANTS[name][0]
    report = check()
    assert {fault.path: fault.kind for fault in report.faults} == expected
    # Grouped in the order of the kinds.
    assert kinds(report.faults) == [kind for kind in FAULTS if kind in expected.values()]


def test_files_missing_on_either_side_of_a_listed_dataset_are_all_named(tmp_path, monkeypatch):
    write_camvid(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    top = tmp_path / "camvid"
    gaps = [top / "images/train/train_0.jpg", top / "images/train/train_4.jpg",
            top / "annotations/train/train_2.png"]  # fmt: skip
    for path in gaps:
        path.unlink()
    (report,) = check_datasets(["camvid_train"])
    assert [fault.path for fault in report.faults] == [str(path) for path in gaps]
    assert kinds(report.faults) == ["missing_image", "missing_image", "missing_label"]
    assert (report.num_samples, report.num_images, report.num_labels) == (5, 3, 4)
    assert report.num_usable == 2


def test_half_pairs_that_a_loader_drops_silently_are_found(root, register):
    (report,) = check_datasets([register("check_dropped", samples_of(root, ("a", "b")))])
    assert kinds(report.warnings) == ["unlisted", "unlisted"]  # c and d are complete pairs
    assert report.is_clean
    (root / "images/train/c.jpg").unlink()
    (root / "annotations/train/d.png").unlink()
    (report,) = check_datasets(["check_dropped"])
    assert {(f.kind, f.path) for f in report.faults} == {
        ("missing_image", str(root / "annotations/train/c.png")),
        ("missing_label", str(root / "images/train/d.jpg")),
    }


def test_counterparts_are_recognised_by_the_endings_of_their_names(root, register):
    # As Cityscapes names them; other files beside the label maps are none.
    for kind, suffix in (("images", "rgb.png"), ("annotations", "gtFine_ids.png")):
        for name in "xyz":
            path = root / kind / "city" / f"{name}_{suffix}"
            path.parent.mkdir(exist_ok=True)
            save(path, np.full((HEIGHT, WIDTH), ord(name) % 3, np.uint8))
    (root / "annotations/city/x_gtFine_polygons.json").write_text("{}")
    (root / "annotations/city/y_gtFine_ids.png").unlink()
    samples = [
        {
            "file_name": str(root / "images" / "city" / f"{name}_rgb.png"),
            "sem_seg_file_name": str(root / "annotations" / "city" / f"{name}_gtFine_ids.png"),
        }
        for name in "xz"
    ]
    (report,) = check_datasets([register("check_endings", samples)])
    (fault,) = report.faults
    assert (fault.kind, fault.path) == ("missing_label", str(root / "images/city/y_rgb.png"))


def test_repeated_names_and_files_are_found_once_each(root, register):
    a, b, c, d = samples_of(root)
    shared_label = {**c, "sem_seg_file_name": d["sem_seg_file_name"]}
    same_name = {**b, "image_id": "c"}
    samples = [a, a, same_name, shared_label, d]
    (report,) = check_datasets([register("check_twice", samples)])
    found = [(f.kind, f.path) for f in report.faults if f.kind == "duplicate"]
    # The shared label map speaks for its two samples; nothing is left that shares a name.
    assert found == [("duplicate", a["file_name"]), ("duplicate", d["sem_seg_file_name"])]
    (report,) = check_datasets([register("check_names", [a, same_name, c, d])])
    assert [(f.kind, f.path) for f in report.faults] == [("duplicate", "c")]


def test_images_of_the_same_content_are_found_across_datasets(root, register):
    first = register("check_train", samples_of(root, ("a", "b")))
    (root / "images/train/d.jpg").write_bytes((root / "images/train/a.jpg").read_bytes())
    second = register("check_val", samples_of(root, ("c", "d")))
    train, val = check_datasets([first, second])
    assert "same_content" not in kinds(train.warnings)
    (warning,) = [w for w in val.warnings if w.kind == "same_content"]
    assert warning.path.endswith("d.jpg") and "a.jpg'" in warning.message
    assert val.is_clean


@pytest.mark.parametrize(("orientation", "size"), [(3, (32, 24)), (2, (32, 24)), (6, (24, 24))])
def test_image_that_exif_turns_within_its_size_is_pointed_out(root, check, orientation, size):
    (root / "images/train/b.jpg").write_bytes(turned_jpeg(orientation, size))
    write_label(root / "annotations/train/b.png", np.zeros(size[::-1], dtype=np.uint8))
    report = check()
    assert report.is_clean
    (warning,) = report.warnings
    assert warning.kind == "mirrored" and f"orientation {orientation}" in warning.message


def test_label_map_of_the_size_that_exif_gives_the_image_is_right(root, check):
    (root / "images/train/b.jpg").write_bytes(turned_jpeg(8, (24, 32)))
    report = check()
    assert report.is_clean and not report.warnings


def test_complaints_of_the_decoder_are_passed_on(root, check):
    content = bytearray(jpeg(1, (256, 192)))
    middle = len(content) // 2
    content[middle : middle + 60] = bytes(range(60))
    (root / "images/train/b.jpg").write_bytes(bytes(content))
    write_label(root / "annotations/train/b.png", np.zeros((192, 256), dtype=np.uint8))
    report = check()
    assert report.is_clean
    (warning,) = report.warnings
    assert warning.kind == "damaged" and "Corrupt JPEG data" in warning.message


def test_unusual_image_mode_and_wrong_recorded_size_are_found(root, register):
    samples = samples_of(root)
    rgba = np.random.RandomState(0).randint(0, 256, (HEIGHT, WIDTH, 4)).astype(np.uint8)
    save(root / "images/train/a.jpg", rgba)
    samples[1].update(height=HEIGHT, width=WIDTH + 1)
    (report,) = check_datasets([register("check_modes", samples)])
    assert [(w.kind, w.path) for w in report.warnings] == [
        ("image_format", samples[0]["file_name"])
    ]
    (fault,) = report.faults
    assert fault.kind == "size" and "dataset records 33x24" in fault.message


def test_definition_of_the_dataset_is_checked(root, register):
    name = register(
        "check_definition",
        samples_of(root),
        stuff_classes=["sky", "tree", "tree"],
        stuff_colors=[[0, 0, 0]],
        label_map={0: 0, 1: 0, 2: 3, 255: 255},
    )
    (report,) = check_datasets([name])
    messages = [fault.message for fault in report.faults]
    assert messages == [
        "has 3 classes, but 1 colours",
        "has 2 classes of the name 'tree'",
        "maps id 2 to 3, but has 3 classes",
        "maps no id to class 1 ('tree')",
        "maps no id to class 2 ('tree')",
    ]
    assert set(kinds(report.faults)) == {"definition"}


def test_dataset_without_labels_is_checked_for_its_images(root, register):
    samples = [{"file_name": sample["file_name"]} for sample in samples_of(root)]
    plant(root, "truncated JPEG")
    (report,) = check_datasets([register("check_test_split", samples)])
    assert kinds(report.faults) == ["truncated"] and not report.warnings
    assert (report.num_images, report.num_labels, report.num_usable) == (4, 0, 3)


def test_whatever_stops_the_check_of_a_pair_is_a_fault_of_the_pair(root, check, monkeypatch):
    def fail(path, label_map=None):
        raise MemoryError("too large")

    monkeypatch.setattr("offseg_d2.data.inspection.pair.read_raw_labels", fail)
    report = check()
    assert kinds(report.faults) == ["crash"] * 4
    assert "MemoryError: too large" in report.faults[0].message
