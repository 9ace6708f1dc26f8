"""Epochs, a warm-up that fits, early stopping, evaluations on a subset."""

import logging

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from offseg_d2.config import ConfigError
from offseg_d2.data import build_test_loader
from offseg_d2.engine.run_length import fit_run_length
from tests.engine.test_trainer import names_in, stop_after
from tests.engine.tiny import make_cfg, make_trainer


@pytest.fixture
def counted_set():
    """Ten samples that nobody reads."""
    name = "ten_samples"
    DatasetCatalog.register(name, lambda: [{"file_name": f"{i}.png"} for i in range(10)])
    MetadataCatalog.get(name).set(stuff_classes=["a", "b", "c"])
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


# ---------------------------------------------------------------------- epochs


@pytest.mark.parametrize(
    ("epochs", "batch", "accumulated", "iterations"),
    [(3, 2, 1, 15), (3, 4, 1, 8), (3, 2, 2, 8), (0.5, 2, 1, 3), (1, 16, 1, 1)],
)
def test_epochs_are_rounded_up_to_iterations(
    tmp_path, counted_set, epochs, batch, accumulated, iterations
):
    cfg = make_cfg(
        tmp_path,
        *("DATASETS.TRAIN", (counted_set,), "SOLVER.MAX_EPOCHS", float(epochs)),
        *("SOLVER.IMS_PER_BATCH", batch, "SOLVER.ACCUMULATION_STEPS", accumulated),
    )
    fit_run_length(cfg)
    assert iterations == cfg.SOLVER.MAX_ITER
    assert cfg.is_frozen()


def test_all_training_sets_are_counted_and_long_periods_become_a_tenth(
    tmp_path, counted_set, caplog
):
    cfg = make_cfg(
        tmp_path,
        *("DATASETS.TRAIN", (counted_set, counted_set), "SOLVER.MAX_EPOCHS", 4.0),
        *("TEST.EVAL_PERIOD", 5000, "SOLVER.CHECKPOINT_PERIOD", 30, "SOLVER.WARMUP_ITERS", 41),
    )
    with caplog.at_level(logging.INFO, logger="offseg_d2.engine"):
        fit_run_length(cfg)
    solver = cfg.SOLVER
    assert (solver.MAX_ITER, cfg.TEST.EVAL_PERIOD, solver.CHECKPOINT_PERIOD) == (40, 4, 30)
    assert solver.WARMUP_ITERS == 4
    assert len(caplog.records) == 3
    again, caplog_length = cfg.clone(), len(caplog.records)
    fit_run_length(again)
    assert again == cfg and len(caplog.records) == caplog_length


def test_iterations_count_without_epochs(tmp_path):
    cfg = make_cfg(tmp_path, "TEST.EVAL_PERIOD", 5000)
    before = cfg.clone()
    fit_run_length(cfg)
    assert cfg == before


def test_epochs_of_nothing_are_refused(tmp_path):
    with pytest.raises(
        ConfigError, match=r"`SOLVER\.MAX_EPOCHS` must be 0 without training images"
    ):
        make_trainer(tmp_path, "SOLVER.MAX_EPOCHS", 1.0, "DATASETS.TRAIN", ())


def test_trainer_shortens_the_warm_up_of_a_short_run(tmp_path):
    trainer = make_trainer(tmp_path, "SOLVER.WARMUP_ITERS", 1500)
    assert (trainer.scheduler.warmup_iters, trainer.max_iter) == (2, 12)


# ---------------------------------------------------------------------- early stopping

SCORES = {2: 10.0, 4: 30.0, 6: 20.0, 8: 30.0, 10: 31.0}


def stopping_trainer(directory, patience, scores=SCORES):
    options = ("TEST.EVAL_PERIOD", 2, "SOLVER.EARLY_STOPPING_PATIENCE", patience)
    trainer = make_trainer(directory, *options)
    trainer.evaluated = []

    def test(cfg, model):
        done = min(trainer.iter + 1, trainer.max_iter)
        trainer.evaluated.append(done)
        return {"sem_seg": {"mIoU": scores.get(done, 0.0)}}

    trainer.test = test
    return trainer


def test_training_ends_after_evaluations_without_a_better_value(tmp_path):
    trainer = stopping_trainer(tmp_path, patience=2)
    trainer.train()
    assert trainer.evaluated == [2, 4, 6, 8, 8]
    final = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert final["iteration"] == 7
    assert torch.load(tmp_path / "model_best.pth", weights_only=True)["best"]["iteration"] == 3


@pytest.mark.parametrize("patience", [0, 3])
def test_more_patience_sees_the_better_value(tmp_path, patience):
    trainer = stopping_trainer(tmp_path, patience)
    trainer.train()
    assert trainer.evaluated == [2, 4, 6, 8, 10, 12]
    assert torch.load(tmp_path / "model_best.pth", weights_only=True)["best"]["iteration"] == 9


def test_resumed_run_goes_on_waiting_where_it_was(tmp_path):
    first = stopping_trainer(tmp_path, patience=2)
    stop_after(first, 6)  # one evaluation without a better value is over
    with pytest.raises(SystemExit):
        first.train()
    second = stopping_trainer(tmp_path, patience=2)
    second.resume_or_load(resume=True)
    second.train()
    assert second.evaluated == [8, 8]


def test_run_that_has_ended_early_is_complete_until_patience_grows(tmp_path):
    stopping_trainer(tmp_path, patience=2).train()
    again = stopping_trainer(tmp_path, patience=2)
    again.resume_or_load(resume=True)
    weights = [value.clone() for value in again.model.parameters()]
    again.train()
    assert again.evaluated == [8, 8] and again.max_iter == 8
    assert all(map(torch.equal, weights, again.model.parameters()))
    longer = stopping_trainer(tmp_path, patience=3)
    longer.resume_or_load(resume=True)
    longer.train()
    assert longer.evaluated == [8, 10, 12]


@pytest.mark.parametrize(
    "options",
    [
        ("SOLVER.EARLY_STOPPING_PATIENCE", -1, "TEST.EVAL_PERIOD", 2),
        ("SOLVER.EARLY_STOPPING_PATIENCE", 2),
        ("SOLVER.EARLY_STOPPING_PATIENCE", 2, "TEST.EVAL_PERIOD", 2, "SOLVER.BEST_METRIC", ""),
        ("SOLVER.EARLY_STOPPING_PATIENCE", 2, "TEST.EVAL_PERIOD", 2, "DATASETS.TEST", ()),
    ],
)
def test_patience_that_cannot_be_obeyed_is_refused(tmp_path, options):
    with pytest.raises(ConfigError, match=r"`SOLVER\.EARLY_STOPPING_PATIENCE`"):
        make_trainer(tmp_path, *options)


# ---------------------------------------------------------------------- subset


@pytest.mark.parametrize(
    ("number", "expected"), [(0, range(10)), (20, range(10)), (2, [2, 7]), (3, [1, 5, 8])]
)
def test_subset_is_spread_evenly(tmp_path, counted_set, number, expected):
    cfg = make_cfg(tmp_path, "TEST.SUBSET", number, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3)
    samples = build_test_loader(cfg, counted_set).loader.dataset.samples
    assert [sample["file_name"] for sample in samples] == [f"{i}.png" for i in expected]


def test_negative_subset_is_refused(tmp_path, counted_set):
    cfg = make_cfg(tmp_path, "TEST.SUBSET", -1, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3)
    with pytest.raises(ValueError, match=r"`TEST\.SUBSET` must be at least 0, but is -1"):
        build_test_loader(cfg, counted_set)


def test_run_ends_with_an_evaluation_on_all_that_decides_nothing(tmp_path):
    trainer = make_trainer(tmp_path, "TEST.EVAL_PERIOD", 4, "TEST.SUBSET", 2)
    asked = []

    def test(cfg, model):
        asked.append(cfg.TEST.SUBSET)
        return {"sem_seg": {"mIoU": 10.0 if cfg.TEST.SUBSET else 90.0}}

    trainer.test = test
    assert trainer.train() == {"sem_seg": {"mIoU": 90.0}}
    assert asked == [2, 2, 2, 0]
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)["best"]
    assert best == {"metric": "sem_seg/mIoU", "value": 10.0, "iteration": 3, "subset": 2}
    # a subset of all images needs no second evaluation
    asked.clear()
    whole = make_trainer(tmp_path / "whole", "TEST.SUBSET", 4)
    whole.test = test
    whole.train()
    assert asked == [4]
    # values of all images are no measure for those of a subset
    other = make_trainer(tmp_path, "TEST.EVAL_PERIOD", 4, "SOLVER.MAX_ITER", 14)
    other.resume_or_load(resume=True)
    other.test = lambda cfg, model: {"sem_seg": {"mIoU": 5.0}}
    other.train()
    assert torch.load(tmp_path / "model_best.pth", weights_only=True)["best"]["value"] == 5.0
    assert "model_final.pth" in names_in(tmp_path)
