"""Progress of a training, as its user sees it."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.events import EventStorage
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from offseg_d2.config import load_config
from offseg_d2.data.datasets import ShapesParams, register_shapes
from offseg_d2.engine import Trainer
from offseg_d2.engine.progress import ProgressPrinter, ValidationPictures
from offseg_d2.modeling.classifiers import OffsetClassifier, OffsetMaskPredictor
from offseg_d2.visualization.offset_trace import relative_offsets
from tests.common import ROOT, SMALL_OFFSEG, seed_all

CONFIG = ROOT / "configs/shapes/offseg_t_offset_demo.yaml"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A few scenes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(tmp_path_factory.mktemp("data")))
        register_shapes("watched", ShapesParams(num_train=2, num_val=6, size=(64, 96)))
        yield
        for split in ("train", "val"):
            DatasetCatalog.remove(f"watched_{split}")
            MetadataCatalog.remove(f"watched_{split}")


def config(folder: Path, *opts: object):
    small = [*SMALL_OFFSEG[:-2], "INPUT.RESIZE.SCALE", [96, 64], "INPUT.CROP.SIZE", [32, 64]]
    return load_config(
        str(CONFIG),
        [
            *small,
            *("DATASETS.TRAIN", "('watched_train',)", "DATASETS.TEST", "('watched_val',)"),
            *("INPUT.RESIZE.SCALE_TEST", [96, 64], "SOLVER.IMS_PER_BATCH", 2, "SEED", 1),
            *("SOLVER.MAX_ITER", 4, "SOLVER.WARMUP_ITERS", 1, "SOLVER.LOG_PERIOD", 2),
            *("TEST.EVAL_PERIOD", 2, "TEST.SEM_SEG.NUM_PICTURES", 3, "DATALOADER.NUM_WORKERS", 0),
            *("OUTPUT_DIR", str(folder), *opts),
        ],
    )


def test_run_shows_rates_offsets_and_pictures(scenes, tmp_path):
    Trainer(config(tmp_path)).train()
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0})
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    wanted = {"lr", "lr_head", "total_loss", "offset/class", "offset/feature", "sem_seg/mIoU"}
    assert wanted <= scalars
    assert [event.step for event in events.Scalars("offset/class")] == [1, 3]
    assert all(event.value > 0 for event in events.Scalars("offset/feature"))
    assert sorted(events.Tags()["images"]) == [f"watched_val/{index}" for index in range(3)]
    picture = events.Images("watched_val/0")
    assert [event.step for event in picture] == [1, 4]  # the last after the training
    assert picture[0].width >= 3 * 96
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert any("offset/class" in line for line in lines)


def test_pictures_are_of_the_same_spread_images_and_change_nothing(scenes, tmp_path):
    cfg = config(tmp_path)
    trainer = Trainer(cfg)
    trainer.model.train()
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    pictures = ValidationPictures(cfg)
    with EventStorage(0) as storage:
        state = torch.get_rng_state()
        pictures.draw(trainer.model, storage)
        assert len(storage._vis_data) == 3
        assert torch.equal(torch.get_rng_state(), state)
    assert [r["file_name"] for r in pictures.samples] == [
        DatasetCatalog.get("watched_val")[index]["file_name"] for index in (1, 3, 5)
    ]
    assert trainer.model.training
    after = trainer.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_no_pictures_and_no_offsets_where_there_are_none(scenes, tmp_path):
    plain = ("MODEL.SEM_SEG_HEAD.CLASSIFIER", "plain", "TEST.SEM_SEG.NUM_PICTURES", 0)
    Trainer(config(tmp_path, *plain)).train()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["images"] == []
    assert not [name for name in events.Tags()["scalars"] if name.startswith("offset/")]


def test_lengths_of_offsets_by_hand():
    layer = OffsetClassifier(2, 2)
    with torch.no_grad():
        layer.class_representations.copy_(20 * torch.eye(2))
        layer.offset_learning.class_offset_proj.weight.copy_(2 * torch.eye(2))
        layer.offset_learning.feature_offset_proj.weight.copy_(torch.eye(2))
    features = torch.eye(2).view(1, 2, 1, 2)  # pixels (1, 0) and (0, 1)
    lengths = relative_offsets(layer, (features,))
    assert lengths == pytest.approx({"class": 2 / 20, "feature": 20.0}, rel=1e-6)
    masks = OffsetMaskPredictor(2)
    masks.offset_learning.load_state_dict(layer.offset_learning.state_dict())
    embeddings = 20 * torch.eye(2)[None]
    assert relative_offsets(masks, (embeddings, features)) == pytest.approx(lengths)
    only = OffsetClassifier(2, 2, feature_offset=False)
    assert relative_offsets(only, (features,))["feature"] == 0.0


def test_progress_line_shows_the_memory(caplog, monkeypatch):
    seed_all()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    printer = ProgressPrinter(10)
    with caplog.at_level(logging.INFO), EventStorage(3) as storage:
        storage.put_scalar("total_loss", 1.5)
        storage.put_scalar("time", 2.0)
        printer.write()
    (line,) = [record.getMessage() for record in caplog.records if "iter: 3" in record.getMessage()]
    assert "eta: 0:00:12" in line and "total_loss: 1.5" in line
    memory = float(line.split("max_mem: ")[1].removesuffix("M"))
    assert 50 < memory < 1e5
    assert np.isfinite(memory)
