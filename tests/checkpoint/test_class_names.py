"""Tests of a checkpoint's class names against those of the data sets."""

import logging

import pytest
from detectron2.data import MetadataCatalog

from offseg_d2.checkpoint import CheckpointError, build_checkpointer
from offseg_d2.config import load_config
from tests.checkpoint.runs import Run, make_model

NAMES = ["road", "car", "sky"]
DATASET = "names_of_classes_test"


@pytest.fixture(autouse=True)
def dataset():
    MetadataCatalog.get(DATASET).set(stuff_classes=NAMES)
    yield
    MetadataCatalog.remove(DATASET)


def saved(folder, classes):
    Run(folder).save(0, classes=classes)
    return str(folder / "model_0000000.pth")


DIFFERENT = {
    "order": (["car", "road", "sky"], "their order differ: class 0 is 'car' there and 'road' here"),
    "one name": (
        ["road", "car", "heaven"],
        "names differ: class 2 is 'heaven' there and 'sky' her",
    ),
    "no text": (["road", 7, "sky"], "names differ: class 1 is 7 there and 'car' here"),
}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_other_names_are_shown_where_weights_are_loaded(tmp_path, kind, caplog):
    names, message = DIFFERENT[kind]
    path = saved(tmp_path, {"names": names})
    run = Run(tmp_path / "new", seed=1, datasets=[DATASET])
    with caplog.at_level(logging.WARNING):
        run.checkpointer.load(path, checkpointables=[])
    assert message in caplog.text
    assert ", ".join(map(str, names)) in caplog.text
    assert ", ".join(NAMES) in caplog.text


def test_lists_of_many_classes_are_shown_whole(tmp_path, caplog):
    names = [f"a class with the long name {index}" for index in range(200)]
    MetadataCatalog.get("many_names_test").set(stuff_classes=names)
    path = saved(tmp_path, {"names": names[::-1]})
    run = Run(tmp_path / "new", seed=1, datasets=["many_names_test"])
    with caplog.at_level(logging.WARNING):
        run.checkpointer.load(path, checkpointables=[])
    MetadataCatalog.remove("many_names_test")
    assert ", ".join(names) in caplog.text and ", ".join(names[::-1]) in caplog.text


@pytest.mark.parametrize("kind", DIFFERENT)
def test_a_run_of_other_classes_is_not_resumed(tmp_path, kind):
    names, message = DIFFERENT[kind]
    saved(tmp_path, {"names": names})
    with pytest.raises(CheckpointError, match=message):
        Run(tmp_path, datasets=[DATASET]).checkpointer.resume()


@pytest.mark.parametrize(
    "classes", [{"names": NAMES}, {"names": ["a", "b"]}, {"names": []}, {}, None, [1, 2], "names"]
)
def test_what_agrees_or_is_not_known_passes(tmp_path, classes, caplog):
    path = saved(tmp_path, classes)
    with caplog.at_level(logging.WARNING):
        Run(tmp_path / "new", datasets=[DATASET, "unknown"]).checkpointer.load(
            path, checkpointables=[]
        )
        assert Run(tmp_path, datasets=[DATASET]).checkpointer.resume()["iteration"] == 0
    assert not caplog.records


def test_names_are_shown_without_control_characters(tmp_path, caplog):
    path = saved(tmp_path, {"names": ["road", "car", "sky\x1b[2J"]})
    with caplog.at_level(logging.WARNING):
        Run(tmp_path / "new", datasets=[DATASET]).checkpointer.load(path, checkpointables=[])
    assert "\\x1b[2J" in caplog.text and "\x1b" not in caplog.text


@pytest.mark.parametrize("key", ["TRAIN", "TEST"])
def test_data_sets_come_from_the_configuration(tmp_path, key, caplog):
    path = saved(tmp_path, {"names": ["car", "road", "sky"]})
    cfg = load_config("", [f"DATASETS.{key}", f"['{DATASET}']", "OUTPUT_DIR", str(tmp_path / "o")])
    with caplog.at_level(logging.WARNING):
        build_checkpointer(cfg, make_model()).load(path, checkpointables=[])
    assert f"the data set '{DATASET}'" in caplog.text
