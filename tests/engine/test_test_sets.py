"""The trainer's evaluator on registered data, and mistakes in DATASETS.TEST before the training."""

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from offseg_d2.engine import Trainer, TrainLoop
from tests.engine.tiny import NUM_CLASSES, TinyTrainer, make_cfg

LABELS = np.array([[0, 1, 2], [9, 9, 2]], dtype=np.uint8)


@pytest.fixture
def register(tmp_path):
    """Registers a data set of one image; returns its sample."""
    names = []

    def call(name: str, num_classes: int = NUM_CLASSES, labels=LABELS, **metadata) -> dict:
        sample = {
            "file_name": str(tmp_path / f"{name}.png"),
            "sem_seg_file_name": str(tmp_path / f"{name}_labels.png"),
        }
        cv2.imwrite(sample["file_name"], np.zeros((*labels.shape, 3), np.uint8))
        cv2.imwrite(sample["sem_seg_file_name"], labels)
        DatasetCatalog.register(name, lambda: [sample])
        classes = [f"class_{index}" for index in range(num_classes)]
        MetadataCatalog.get(name).set(stuff_classes=classes, **metadata)
        names.append(name)
        return sample

    yield call
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize(
    ("metadata", "labels", "label_pixels"),
    [
        ({"ignore_label": 9}, LABELS, 4),
        ({"ignore_label": 255}, np.where(LABELS == 9, 255, LABELS).astype(np.uint8), 4),
        ({}, np.minimum(LABELS, 2), 6),
    ],
)
def test_pixels_of_the_data_sets_own_ignore_label_do_not_count(
    register, tmp_path, metadata, labels, label_pixels
):
    sample = register("tiny_own_ignore", labels=labels, **metadata)
    evaluator = Trainer.build_evaluator(make_cfg(tmp_path), "tiny_own_ignore")
    prediction = torch.from_numpy(np.minimum(labels, 2).astype(np.int64))
    evaluator.process([sample], [{"sem_seg": prediction}])
    results = evaluator.evaluate()["sem_seg"]
    assert evaluator.confusion_matrix.sum() == label_pixels
    assert results["mIoU"] == results["pACC"] == 100


class RealTestSets(TinyTrainer):
    """Tiny model and training data, but the data sets of DATASETS.TEST."""

    build_test_loader = Trainer.__dict__["build_test_loader"]
    build_evaluator = Trainer.__dict__["build_evaluator"]


def fail_to_load(name):
    raise FileNotFoundError("Folder 'nowhere' must hold images, but does not exist.")


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("folder", "Folder 'nowhere'"),
        ("classes", r"`MODEL.SEM_SEG_HEAD.NUM_CLASSES` must be 4"),
        ("absent", r"`TEST.SEM_SEG.ABSENT_CLASSES` must be"),
    ],
)
def test_mistake_in_the_test_sets_shows_before_the_first_iteration(
    register, tmp_path, monkeypatch, mistake, message
):
    register("tiny_mistaken", num_classes=4 if mistake == "classes" else 3, ignore_label=9)
    if mistake == "folder":
        monkeypatch.setattr(DatasetCatalog, "get", fail_to_load)
    options = ["DATASETS.TEST", ("tiny_mistaken",), "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3]
    if mistake == "absent":
        options += ["TEST.SEM_SEG.ABSENT_CLASSES", "drop"]
    monkeypatch.setattr(TrainLoop, "run_step", lambda self: pytest.fail("an iteration was run"))
    (tmp_path / "model_final.pth").write_bytes(b"of an earlier run")
    trainer = RealTestSets(make_cfg(tmp_path, *options))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        trainer.train()
    assert (tmp_path / "model_final.pth").exists()  # nothing is set aside for a run that fails
