"""A new run in the folder of an old one: the old files are set aside and never resumed from."""

import os

import pytest
import torch

from offseg_d2.checkpoint import CheckpointError, last_checkpoint
from offseg_d2.engine import TrainLoop
from tests.engine.tiny import make_trainer

OLD_FILES = {"model_0000003.pth", "model_0000007.pth", "model_best.pth", "model_final.pth"}


@pytest.fixture
def old_run(tmp_path):
    """The folder of a complete run, with a checkpoint of the user's in it."""
    make_trainer(tmp_path).train()
    torch.save({}, tmp_path / "imagenet.pth")
    return tmp_path


def fail_in_the_first_iteration(monkeypatch) -> None:
    def fail(self):
        raise RuntimeError("killed")

    monkeypatch.setattr(TrainLoop, "run_step", fail)


def begin_and_fail(folder, monkeypatch, *options) -> None:
    with monkeypatch.context() as patch:
        fail_in_the_first_iteration(patch)
        trainer = make_trainer(folder, *options)
        trainer.resume_or_load(resume=False)
        with pytest.raises(RuntimeError, match="killed"):
            trainer.train()


def test_run_killed_before_its_first_checkpoint_is_not_resumed_as_the_old_one(old_run, monkeypatch):
    begin_and_fail(old_run, monkeypatch)
    resumed = make_trainer(old_run)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 0
    assert not (old_run / "last_checkpoint").exists()


def test_no_checkpoint_of_the_old_run_is_lost(old_run, monkeypatch, caplog):
    content = {name: (old_run / name).read_bytes() for name in OLD_FILES}
    begin_and_fail(old_run, monkeypatch)
    assert {path.name for path in old_run.glob("*.pth")} == {"imagenet.pth"}
    for name, old in content.items():
        assert (old_run / "previous" / name).read_bytes() == old
    assert f"Moved 4 checkpoints of an earlier run to {old_run / 'previous'}" in caplog.text


def test_older_runs_are_kept_beside_each_other(old_run):
    make_trainer(old_run).train()
    make_trainer(old_run).train()
    for folder in ("previous", "previous_2"):
        assert set(os.listdir(old_run / folder)) == OLD_FILES
    assert not (old_run / "previous_3").exists()


def test_best_value_of_the_old_run_does_not_count(tmp_path):
    def run(miou: float) -> dict:
        trainer = make_trainer(tmp_path)
        trainer.resume_or_load(resume=False)
        trainer.test = lambda cfg, model: {"sem_seg": {"mIoU": miou}}
        trainer.train()
        return torch.load(tmp_path / "model_best.pth", weights_only=True)["best"]

    assert run(50.0)["value"] == 50.0
    assert run(40.0)["value"] == 40.0


@pytest.mark.parametrize("moved", range(4))
def test_killed_while_files_are_moved_nothing_is_resumed(old_run, monkeypatch, moved):
    rename, done = os.rename, []

    def rename_some(source, target):
        if len(done) == moved:
            raise KeyboardInterrupt
        done.append(source)
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename_some)
        with pytest.raises(KeyboardInterrupt):
            make_trainer(old_run).train()
    resumed = make_trainer(old_run)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 0
    assert last_checkpoint(str(old_run)) == ""
    resumed.train()
    assert (old_run / "last_checkpoint").read_text() == "model_final.pth"


def test_resumed_run_keeps_its_files(old_run):
    trainer = make_trainer(old_run, "SOLVER.MAX_ITER", 14)
    trainer.resume_or_load(resume=True)
    trainer.train()
    assert not (old_run / "previous").exists()
    assert {path.name for path in old_run.glob("*.pth")} > OLD_FILES


def test_weights_may_come_from_the_old_run(old_run):
    weights = old_run / "model_final.pth"
    expected = torch.load(weights, weights_only=True)["model"]
    trainer = make_trainer(old_run, "MODEL.WEIGHTS", str(weights), "SOLVER.BASE_LR", 0.0)
    trainer.resume_or_load(resume=False)
    trainer.train()
    name = "sem_seg_head.weight"
    assert torch.equal(trainer.model.state_dict()[name], expected[name])


def test_deleted_last_checkpoint_is_named(old_run):
    os.remove(old_run / "model_final.pth")
    with pytest.raises(CheckpointError, match=r"last_checkpoint` must name .*'model_final\.pth'"):
        last_checkpoint(str(old_run))
