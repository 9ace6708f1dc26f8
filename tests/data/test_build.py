import contextlib
import logging
import multiprocessing
import subprocess
import sys
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

import offseg_d2
from offseg_d2.data import DataFileError, build_test_loader, build_train_loader
from offseg_d2.data.loader import ClassOccurrence
from offseg_d2.utils.cli import USER_ERRORS
from tests.data.common import camvid_cfg, write_camvid


@pytest.fixture(autouse=True)
def camvid(tmp_path, monkeypatch):
    write_camvid(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path / "camvid"


@pytest.fixture
def register():
    """Registers a dataset, by default with the classes of CamVid, that is gone after the test."""
    names = []

    def call(name, load=lambda: DatasetCatalog.get("camvid_val"), **metadata):
        names.append(name)
        known = MetadataCatalog.get("camvid_val")
        DatasetCatalog.register(name, load)
        MetadataCatalog.get(name).set(
            **{"stuff_classes": known.stuff_classes, "label_map": known.label_map, **metadata}
        )

    yield call
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@contextlib.contextmanager
def process(rank, world_size):
    """Pretend to be one of several processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comm, "get_rank", lambda: rank)
        patch.setattr(comm, "get_world_size", lambda: world_size)
        yield


def batches(cfg, count, start_iter=0):
    return list(islice(build_train_loader(cfg, start_iter), count))


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert [s["image_id"] for s in a] == [s["image_id"] for s in b]
        for s, t in zip(a, b, strict=True):
            assert torch.equal(s["image"], t["image"]) and torch.equal(s["sem_seg"], t["sem_seg"])


def test_workers_change_nothing():
    alone, workers = batches(camvid_cfg(workers=0), 6), batches(camvid_cfg(workers=2), 6)
    assert_same(alone, workers)
    assert all(s["sem_seg"].dtype == torch.uint8 for b in alone + workers for s in b)


def test_processes_together_see_what_one_sees():
    alone = batches(camvid_cfg(), 4)
    shares = []
    for rank in range(2):
        with process(rank, 2):
            shares.append(batches(camvid_cfg(), 4))
    assert all(len(batch) == 2 for share in shares for batch in share)
    assert_same([a + b for a, b in zip(*shares, strict=True)], alone)


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_loader_continues_exactly_with_accumulation(workers):
    cfg = camvid_cfg(workers)
    cfg.SOLVER.ACCUMULATION_STEPS = 2
    assert_same(batches(cfg, 8)[6:], batches(cfg, 2, start_iter=3))


def test_seed_decides_and_a_negative_one_is_drawn_and_logged(caplog):
    first, second = (batches(camvid_cfg(seed=seed), 2) for seed in (1, 2))
    assert not all(
        torch.equal(s["image"], t["image"])
        for a, b in zip(first, second, strict=True)
        for s, t in zip(a, b, strict=True)
        if s["image"].shape == t["image"].shape
    )
    caplog.clear()  # of what another test's loggers may have let through
    with caplog.at_level(logging.INFO, logger="offseg_d2.data.build"):
        np.random.seed(11)
        drawn = batches(camvid_cfg(seed=-1), 2)
    (line,) = [r.getMessage() for r in caplog.records if "data seed" in r.getMessage()]
    seed = int(line.split("data seed ")[1].split(",")[0])
    assert_same(drawn, batches(camvid_cfg(seed=seed), 2))


def test_same_image_is_augmented_differently_each_time():
    samples = chain.from_iterable(batches(camvid_cfg(), 6))
    seen = {}
    for sample in samples:
        seen.setdefault(sample["image_id"], set()).add(sample["image"].numpy().tobytes())
    assert len(seen) == 5 and all(len(versions) >= 3 for versions in seen.values())


def test_loading_leaves_the_models_random_numbers_alone():
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    batches(camvid_cfg(), 2)
    assert (torch.rand(1), np.random.rand()) == expected


@pytest.mark.parametrize("build", [build_train_loader, lambda cfg: build_test_loader(cfg, "wide")])
def test_label_map_beyond_the_classes_is_refused_naming_dataset_and_id(register, build):
    cfg = camvid_cfg()
    cfg.DATASETS.TRAIN = ("wide",)
    register("wide", label_map={0: 0, 7: 10, 8: 255, 9: 11})
    with pytest.raises(ValueError, match=r"'wide' must map .* below 11 .* but maps 9 to 11\."):
        build(cfg)


def test_label_map_and_augmentations_are_logged(caplog):
    with caplog.at_level(logging.INFO, logger="offseg_d2.data.build"):
        build_train_loader(camvid_cfg())
    assert "11 classes; raw ids 0-10 -> 0-10, 11 -> ignored" in caplog.text
    assert "Training on 5 images of camvid_train, 4 a batch" in caplog.text
    assert "CategoryLimitedCrop" in caplog.text and "PhotometricDistortion()]" in caplog.text
    assert " object at 0x" not in caplog.text


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_test_loader_yields_each_image_once_over_all_processes(world_size):
    seen = []
    for rank in range(world_size):
        with process(rank, world_size):
            loader = build_test_loader(camvid_cfg(), "camvid_test")
            loaded = list(loader)
        assert len(loader) == len(loaded) and all(len(batch) == 1 for batch in loaded)
        seen += [batch[0] for batch in loaded]
    assert [s["image_id"] for s in seen] == ["test_0", "test_1", "test_2"]
    assert all(s["image"].shape == (3, 30, 40) and "sem_seg" not in s for s in seen)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_file_surfaces_as_one_sentence_that_names_it(camvid, workers):
    bad = camvid / "annotations" / "train" / "train_3.png"
    bad.write_bytes(bad.read_bytes()[:50])
    with pytest.raises(DataFileError) as caught:
        batches(camvid_cfg(workers), 3)
    message = str(caught.value)
    assert message.startswith("Label file") and str(bad) in message and "\n" not in message

    image = camvid / "images" / "test" / "test_1.jpg"
    image.write_bytes(b"")
    with pytest.raises(DataFileError, match=r"test_1\.jpg.* is empty\.$"):
        list(build_test_loader(camvid_cfg(workers), "camvid_test"))


def test_error_comes_only_when_the_batch_is_due(camvid):
    order = [batch[0]["image_id"] for batch in batches(camvid_cfg(batch=1), 5)]
    (camvid / "images" / "train" / f"{order[4]}.jpg").write_bytes(b"")
    loader = iter(build_train_loader(camvid_cfg(workers=2, batch=1)))
    assert [next(loader)[0]["image_id"] for _ in range(4)] == order[:4]
    with pytest.raises(DataFileError):
        next(loader)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 12, "must be 11 for dataset 'camvid_train', but is 12"),
        ("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 254, "must be 255,.*but is 254"),
        ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "must be 'TrainingSampler'"),
    ],
)
def test_config_that_contradicts_the_dataset_is_refused(key, value, match):
    cfg = camvid_cfg()
    cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=f"`{key}` {match}"):
        build_train_loader(cfg)


def test_misspelt_dataset_is_answered_with_the_nearest_names():
    cfg = camvid_cfg()
    cfg.DATASETS.TRAIN = ("camvid_train", "camvid_trian")
    message = r"`DATASETS\.TRAIN` must name .*, but 'camvid_trian' is none\. .* camvid_train"
    with pytest.raises(USER_ERRORS, match=message):
        build_train_loader(cfg)
    message = r"`DATASETS\.TEST` must name .*, but 'camvid_tset' is none\. .* camvid_test"
    with pytest.raises(USER_ERRORS, match=message) as caught:
        build_test_loader(cfg, "camvid_tset")
    assert "\n" not in str(caught.value)


def test_dataset_that_the_user_has_registered_is_loaded(register):
    cfg = camvid_cfg()
    cfg.DATASETS.TRAIN = ("street_scenes",)
    register("street_scenes")
    assert len(next(iter(build_train_loader(cfg)))) == 4
    assert len(build_test_loader(cfg, "street_scenes")) == 2


def test_empty_dataset_is_refused(register):
    register("nothing_at_all", list)
    with pytest.raises(ValueError, match="'nothing_at_all' must hold at least one image"):
        build_test_loader(camvid_cfg(), "nothing_at_all")


def test_signals_to_the_whole_job_do_not_kill_workers():
    iterator = iter(build_train_loader(camvid_cfg(workers=2)))
    expected = batches(camvid_cfg(workers=0), 12)
    # A batch of each worker: one that is only about to start does not ignore them yet.
    got = [next(iterator), next(iterator)]
    for name in ("INT", "USR1", "USR2", "TERM"):
        # By another process than the trainer, whose own SIGTERM ends them.
        pids = " ".join(str(worker.pid) for worker in multiprocessing.active_children())
        assert pids
        subprocess.run(["sh", "-c", f"kill -{name} {pids}"], check=True)
    got += [next(iterator) for _ in range(10)]  # more than was fetched before the signals
    assert_same(got, expected)


@pytest.mark.parametrize("ending", ["1 / 0", "os.kill(os.getpid(), 15)"])
def test_process_with_live_workers_ends_at_once(ending):
    code = (
        "import os\n"
        "from tests.data.common import camvid_cfg\n"
        "from offseg_d2.data import build_train_loader\n"
        "iterator = iter(build_train_loader(camvid_cfg(workers=2)))\n"
        "next(iterator)\n"
        f"{ending}"
    )
    root = Path(offseg_d2.__file__).parents[1]
    with subprocess.Popen([sys.executable, "-c", code], cwd=root, stderr=subprocess.PIPE) as child:
        child.communicate(timeout=60)  # its workers hold the pipe, too
    assert child.returncode == {"1 / 0": 1, "os.kill(os.getpid(), 15)": -15}[ending]


def test_absent_classes_and_labels_that_are_all_ignored_are_reported_once(caplog):
    seen = ClassOccurrence(["road", "sky", "tree"], 2)
    seen.add(np.array([[0, 255], [0, 0]], np.uint8))
    assert not caplog.messages
    seen.add(np.array([[2]], np.uint8))
    seen.add(np.array([[1]], np.uint8))
    assert caplog.messages == ["Classes that have not occurred in training: sky."]
    nothing = ClassOccurrence(["road", "sky"], 1)
    nothing.add(np.full((2, 2), 255, np.uint8))
    assert "nothing is learned" in caplog.messages[-1] and len(caplog.messages) == 2


def test_training_counts_what_it_sees(camvid, caplog):
    loader = build_train_loader(camvid_cfg())
    loader.occurrence.names = [*loader.occurrence.names, "never drawn"]
    loader.occurrence.number = 3
    with caplog.at_level(logging.WARNING, logger="offseg_d2.data.loader"):
        next(iter(loader))
    assert loader.occurrence.number == 0 and "never drawn" in caplog.text


def test_class_without_an_id_is_refused_in_training(register):
    label_map = {raw: class_id for raw, class_id in enumerate([0, 1, 2, 255])}
    register("three_of_four", stuff_classes=["a", "b", "c", "d"], label_map=label_map)
    cfg = camvid_cfg()
    cfg.DATASETS.TRAIN, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = ("three_of_four",), 4
    with pytest.raises(ValueError, match=r"every class an id .* gives none to 'd'\.$"):
        build_train_loader(cfg)
