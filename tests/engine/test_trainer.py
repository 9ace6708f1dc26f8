"""The trainer: files of a run, exact resuming, evaluation, the best model, signals."""

import json
import os
import signal

import pytest
import torch

from offseg_d2.checkpoint import CheckpointError
from offseg_d2.engine import TrainLoop
from tests.engine.tiny import (
    TinyTrainer,
    assert_same_weights,
    make_cfg,
    make_trainer,
    weights_of,
)


def stop_after(trainer: TinyTrainer, iteration: int, signum=signal.SIGTERM) -> None:
    """Send ourselves a signal while ``iteration`` runs."""
    run_step = trainer.run_step

    def run_step_with_signal():
        if trainer.iter == iteration:
            os.kill(os.getpid(), signum)
        run_step()

    trainer.run_step = run_step_with_signal


def names_in(directory, ending=".pth") -> set[str]:
    return {name for name in os.listdir(directory) if name.endswith(ending)}


# ---------------------------------------------------------------------- files


def test_run_leaves_the_promised_files(tmp_path):
    results = make_trainer(tmp_path, "TEST.EVAL_PERIOD", 6).train()
    assert names_in(tmp_path) == {
        "model_0000003.pth",
        "model_0000007.pth",
        "model_best.pth",
        "model_final.pth",
    }
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    by_iteration = {line["iteration"]: line for line in lines}
    for key in ("total_loss", "loss_sem_seg", "data_time", "lr", "lr_head", "lr_backbone_norm"):
        assert key in by_iteration[4], key
    assert by_iteration[4]["lr_head"] == pytest.approx(2 * by_iteration[4]["lr"])
    assert "sem_seg/mIoU" in by_iteration[5]
    assert results["sem_seg"]["mIoU"] == by_iteration[12]["sem_seg/mIoU"]


def test_checkpoint_is_complete_and_plain(tmp_path):
    make_trainer(tmp_path).train()
    data = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert {"model", "optimizer", "scheduler", "grad_scaler", "iteration", "seed"} <= set(data)
    assert data["iteration"] == 11
    assert data["seed"] == 5
    assert "META_ARCHITECTURE: TinySegmentor" in data["cfg"]
    assert {"offseg_d2", "detectron2", "torch"} <= set(data["versions"])


def test_best_model_is_the_one_with_the_highest_metric(tmp_path):
    scores = iter([10.0, 30.0, 20.0, 25.0])
    trainer = make_trainer(tmp_path, "TEST.EVAL_PERIOD", 3)
    weights = {}

    def test(cfg, model):
        weights[trainer.iter] = weights_of(trainer)
        return {"sem_seg": {"mIoU": next(scores)}}

    trainer.test = test
    trainer.train()
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert best["best"] == {"metric": "sem_seg/mIoU", "value": 30.0, "iteration": 5}
    assert_same_weights(best["model"], weights[5])


def test_resumed_run_knows_the_best_value_so_far(tmp_path):
    options = ("TEST.EVAL_PERIOD", 3)
    first = make_trainer(tmp_path, *options)
    first.test = lambda cfg, model: {"sem_seg": {"mIoU": 50.0}}
    stop_after(first, 7)
    with pytest.raises(SystemExit):
        first.train()
    second = make_trainer(tmp_path, *options)
    second.resume_or_load(resume=True)
    second.test = lambda cfg, model: {"sem_seg": {"mIoU": 40.0}}
    second.train()
    assert torch.load(tmp_path / "model_best.pth", weights_only=True)["best"]["value"] == 50.0


def test_no_best_model_is_kept_without_a_metric(tmp_path):
    make_trainer(tmp_path, "SOLVER.BEST_METRIC", "").train()
    assert "model_best.pth" not in names_in(tmp_path)


def test_metric_that_is_not_in_the_results_is_reported(tmp_path, caplog):
    make_trainer(tmp_path, "SOLVER.BEST_METRIC", "sem_seg/mIou").train()
    assert "'sem_seg/mIou': no best model" in caplog.text


# ---------------------------------------------------------------------- resuming


@pytest.mark.parametrize("options", [(), ("SOLVER.ACCUMULATION_STEPS", 2, "TEST.EVAL_PERIOD", 2)])
@pytest.mark.parametrize("stopped_at", [0, 5, 7, 10])
def test_interrupted_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, stopped_at, options):
    whole = make_trainer(tmp_path / "whole")
    if options:
        whole = make_trainer(tmp_path / "whole", *options)
    whole.train()
    first = make_trainer(tmp_path / "parts", *options)
    stop_after(first, stopped_at)
    with pytest.raises(SystemExit) as stop:
        first.train()
    assert stop.value.code == 128 + signal.SIGTERM
    torch.manual_seed(99)
    second = TinyTrainer(make_cfg(tmp_path / "parts", *options))
    second.resume_or_load(resume=True)
    assert second.start_iter == stopped_at + 1
    second.train()
    assert_same_weights(weights_of(second), weights_of(whole))
    states = [t.optimizer.state_dict()["state"] for t in (second, whole)]
    for index, state in states[0].items():
        assert torch.equal(state["exp_avg_sq"], states[1][index]["exp_avg_sq"])


def test_evaluating_does_not_change_what_is_trained(tmp_path):
    quiet = make_trainer(tmp_path / "a")
    quiet.train()
    busy = make_trainer(tmp_path / "b", "TEST.EVAL_PERIOD", 1)
    busy.train()
    assert_same_weights(weights_of(quiet), weights_of(busy))


def test_random_seed_of_a_run_goes_on_after_resuming(tmp_path):
    first = make_trainer(tmp_path, "SEED", -1)
    assert first.seed >= 0
    stop_after(first, 4)
    with pytest.raises(SystemExit):
        first.train()
    second = make_trainer(tmp_path, "SEED", -1)
    assert second.seed != first.seed
    second.resume_or_load(resume=True)
    assert second.seed == second.cfg.SEED == first.seed


def test_resuming_a_complete_run_only_evaluates(tmp_path):
    first = make_trainer(tmp_path)
    results = first.train()
    second = make_trainer(tmp_path)
    second.resume_or_load(resume=True)
    assert second.train() == results
    assert_same_weights(weights_of(first), weights_of(second))


def test_complete_run_can_be_lengthened(tmp_path):
    make_trainer(tmp_path, "SOLVER.MAX_ITER", 6).train()
    second = make_trainer(tmp_path)
    second.resume_or_load(resume=True)
    assert second.start_iter == 6
    second.train()
    data = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert data["iteration"] == 11


def test_resuming_without_a_checkpoint_starts_from_the_beginning(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 0


def test_weights_are_loaded_without_the_rest_when_not_resuming(tmp_path):
    first = make_trainer(tmp_path / "a")
    first.train()
    torch.manual_seed(1)
    weights = str(tmp_path / "a" / "model_final.pth")
    second = TinyTrainer(make_cfg(tmp_path / "b", "MODEL.WEIGHTS", weights))
    second.resume_or_load(resume=False)
    assert second.start_iter == 0
    assert_same_weights(weights_of(first), weights_of(second))
    assert not second.optimizer.state_dict()["state"]


def test_best_model_alone_cannot_be_resumed_from(tmp_path):
    make_trainer(tmp_path).train()
    (tmp_path / "last_checkpoint").write_text("model_best.pth")
    with pytest.raises(CheckpointError, match=r"model_best\.pth.* lacks optimizer"):
        make_trainer(tmp_path).resume_or_load(resume=True)


# ---------------------------------------------------------------------- signals and failures


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_after_the_iteration_and_exits(tmp_path, signum, caplog):
    handler = signal.getsignal(signum)
    trainer = make_trainer(tmp_path)
    stop_after(trainer, 5, signum)
    with pytest.raises(SystemExit) as stop:
        trainer.train()
    assert stop.value.code == 128 + signum
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000005.pth"
    assert f"Stopped by {signal.Signals(signum).name} after iteration 5" in caplog.text
    assert signal.getsignal(signum) == handler
    assert trainer.last_results == {}


def test_second_signal_does_not_break_the_writing_of_the_checkpoint(tmp_path, monkeypatch):
    handler = signal.getsignal(signal.SIGINT)
    trainer = make_trainer(tmp_path)
    stop_after(trainer, 5, signal.SIGINT)
    save = torch.save

    def save_under_fire(data, file):
        if data["iteration"] == 5:
            signal.raise_signal(signal.SIGINT)
        save(data, file)

    monkeypatch.setattr(torch, "save", save_under_fire)
    with pytest.raises((SystemExit, KeyboardInterrupt)) as stop:
        trainer.train()
    assert stop.type is SystemExit
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000005.pth"
    assert signal.getsignal(signal.SIGINT) == handler


def test_signal_during_evaluation_saves_at_once(tmp_path):
    trainer = make_trainer(tmp_path, "TEST.EVAL_PERIOD", 6)

    def test(cfg, model):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("evaluation went on")

    trainer.test = test
    with pytest.raises(SystemExit):
        trainer.train()
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000005.pth"


def test_failed_training_is_not_evaluated_and_saves_nothing_new(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path)
    run_step = TrainLoop.run_step

    def fail(self):
        if self.iter == 5:
            raise RuntimeError("broken")
        run_step(self)

    monkeypatch.setattr(TrainLoop, "run_step", fail)
    with pytest.raises(RuntimeError, match="broken"):
        trainer.train()
    assert names_in(tmp_path) == {"model_0000003.pth"}
    assert trainer.last_results == {}


def test_a_bad_loss_that_is_read_late_leaves_no_checkpoint_after_it(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, "SOLVER.LOG_PERIOD", 100)
    losses = TrainLoop._losses

    def bad(self, batch):
        factor = float("nan") if self.iter == 1 else 1.0
        return {name: factor * loss for name, loss in losses(self, batch).items()}

    monkeypatch.setattr(TrainLoop, "_losses", bad)
    monkeypatch.setattr(TrainLoop, "_reads_at_once", False)
    with pytest.raises(FloatingPointError, match="iteration 1 is not finite"):
        trainer.train()
    assert trainer.iter == 3  # where the first checkpoint is due
    assert names_in(tmp_path) == set()


# ---------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.CHECKPOINT_PERIOD", 0),
        ("SOLVER.KEEP_CHECKPOINTS", -1),
        ("SOLVER.LOG_PERIOD", 0),
        ("SOLVER.WARMUP_ITERS", -1),
        ("SOLVER.AMP.DTYPE", "float8"),
        ("MODEL.BATCH_NORM", "GN"),
        ("DATASETS.TEST", ("camvid_tset",)),
    ],
)
def test_impossible_value_is_refused_naming_the_key(tmp_path, key, value):
    with pytest.raises(ValueError, match=f"`{key}` must (be|name) "):
        make_trainer(tmp_path, key, value)
