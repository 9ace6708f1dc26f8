"""Resuming with other settings, from a damaged note, and beside another training."""

import logging
import subprocess
import sys

import pytest
import torch

from offseg_d2.checkpoint import CheckpointError, last_checkpoint
from offseg_d2.config import ConfigError
from offseg_d2.engine import defaults
from offseg_d2.engine.run_lock import RunLock
from offseg_d2.modeling import available_device
from tests.engine.tiny import make_trainer

OTHER_SETTINGS = {
    "SOLVER.BASE_LR": (0.004, "initial_lr"),
    "SOLVER.WEIGHT_DECAY": (0.3, "weight_decay"),
    "SOLVER.BETAS": ([0.8, 0.95], "betas"),
    "SOLVER.HEAD_LR_FACTOR": (3.0, "initial_lr"),
}


def train(directory, *options, resume=False):
    trainer = make_trainer(directory, *options)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def groups_of(trainer):
    return [{k: v for k, v in g.items() if k != "params"} for g in trainer.optimizer.param_groups]


@pytest.mark.parametrize("key", sorted(OTHER_SETTINGS))
def test_resumed_optimizer_has_the_settings_of_the_configuration(key, tmp_path, caplog):
    value, name = OTHER_SETTINGS[key]
    train(tmp_path, "SOLVER.MAX_ITER", 4)
    expected = make_trainer(tmp_path / "new", "SOLVER.MAX_ITER", 8, key, value)
    trainer = make_trainer(tmp_path, "SOLVER.MAX_ITER", 8, key, value)
    with caplog.at_level(logging.WARNING, logger="offseg_d2.engine.trainer"):
        trainer.resume_or_load(resume=True)
    assert f"stored optimizer: {name} " in caplog.text
    for _ in range(4):
        expected.optimizer.step()
        expected.scheduler.step()
    for own, wanted in zip(groups_of(trainer), groups_of(expected), strict=True):
        assert own.pop("lr") == pytest.approx(wanted.pop("lr"), rel=1e-12)
        assert own == wanted
    assert trainer.scheduler.base_lrs == expected.scheduler.base_lrs


def test_nothing_is_said_and_changed_if_the_settings_are_the_same(tmp_path, caplog):
    train(tmp_path, "SOLVER.MAX_ITER", 4)
    trainer = make_trainer(tmp_path, "SOLVER.MAX_ITER", 8)
    trainer.resume_or_load(resume=True)
    assert "stored optimizer" not in caplog.text


@pytest.mark.parametrize("note", [b"", b"\xff\xfe\0model", b"model_9999999.pth", b"\n"])
def test_newest_checkpoint_is_taken_if_the_note_is_damaged(note, tmp_path, caplog):
    train(tmp_path, "SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 2)
    before = sorted(path.name for path in tmp_path.glob("*.pth"))
    (tmp_path / "last_checkpoint").write_bytes(note)
    with pytest.raises(CheckpointError, match="last_checkpoint` must name an existing"):
        last_checkpoint(str(tmp_path))
    trainer = train(tmp_path, "SOLVER.MAX_ITER", 4, resume=True)
    assert trainer.start_iter == 4 and "Taking the newest one" in caplog.text
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == before
    assert not (tmp_path / "previous").exists()


def test_resuming_moves_nothing_aside(tmp_path):
    train(tmp_path, "SOLVER.MAX_ITER", 3)
    (tmp_path / "model_final.pth").rename(tmp_path / "model_best.pth")
    for path in [*tmp_path.glob("model_0*.pth"), tmp_path / "last_checkpoint"]:
        path.unlink()
    train(tmp_path, "SOLVER.MAX_ITER", 3, "SOLVER.BEST_METRIC", "", resume=True)
    assert (tmp_path / "model_best.pth").exists() and not (tmp_path / "previous").exists()


HOLD = """
import sys
from offseg_d2.engine.run_lock import RunLock
lock = RunLock(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


def test_second_training_in_a_folder_is_refused_until_the_first_has_ended(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as first:
        assert first.stdout.readline() == "held\n"
        trainer = make_trainer(tmp_path, "SOLVER.MAX_ITER", 3)
        half_written = tmp_path / ".tmp-offseg_d2-1-model_0000003.pth.tmp"
        half_written.write_bytes(b"of the first training")
        with pytest.raises(ConfigError, match=rf"process {first.pid} on .* trains in '.*'"):
            trainer.resume_or_load(resume=False)
        assert half_written.exists()
        first.kill()  # a dead process keeps no lock
        first.wait()
    RunLock(str(tmp_path)).release()
    train(tmp_path, "SOLVER.MAX_ITER", 3)


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:-1", "", "mps:0"])
def test_device_that_there_is_not_is_refused(name, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"`MODEL\.DEVICE` must be 'cpu', 'cuda'"):
        available_device(name)


def test_number_of_an_absent_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert available_device("cuda:1") == "cuda:1"
    with pytest.raises(ConfigError, match=r"one of the 2 devices .* is 'cuda:2'"):
        available_device("cuda:2")


def test_probe_measures_a_positive_ratio():
    assert 0 < defaults.bfloat16_gain() < 1000


def test_batch_norm_of_a_single_value_is_refused_in_one_sentence(tmp_path):
    trainer = make_trainer(tmp_path, "SOLVER.MAX_ITER", 3)

    def forward(batch):
        return {"loss": torch.nn.BatchNorm1d(2)(torch.ones(1, 2)).sum()}

    trainer.model.forward = forward
    trainer.resume_or_load(resume=False)
    with pytest.raises(ConfigError, match=r"`INPUT\.CROP\.SIZE` and `SOLVER\.IMS_PER_BATCH` must"):
        trainer.train()
