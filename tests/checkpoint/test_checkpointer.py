"""Writing atomically, and resuming with a fall-back."""

import errno
import os

import pytest
import torch

from offseg_d2.checkpoint import (
    CheckpointError,
    CorruptCheckpointError,
)
from offseg_d2.utils.io import write_atomically
from tests.checkpoint.runs import Run, assert_same, make_model


def names_in(directory) -> set[str]:
    return {name for name in os.listdir(directory) if name.endswith(".pth")}


# ---------------------------------------------------------------------- writing


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"half of the new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(str(path), fail)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.pth"]


def test_checkpoint_that_does_not_fit_on_the_disk_is_named_and_the_one_before_stays(
    tmp_path, monkeypatch
):
    run = Run(tmp_path)
    run.save(0)
    save = torch.save

    def save_to_full_disk(data, file) -> None:
        class Full:
            def write(self, part):
                raise OSError(errno.ENOSPC, "No space left on device")

            def flush(self):
                pass

        save(data, Full())

    monkeypatch.setattr(torch, "save", save_to_full_disk)
    with pytest.raises(CheckpointError, match=r"model_0000001\.pth` cannot .* No space left"):
        run.save(1)
    assert names_in(tmp_path) == {"model_0000000.pth"}
    assert Run(tmp_path).checkpointer.resume()["iteration"] == 0


def test_optimizer_of_another_configuration_is_refused_naming_file_and_entry(tmp_path):
    Run(tmp_path).save(0)
    run = Run(tmp_path)
    run.checkpointer.checkpointables["optimizer"].add_param_group(
        {"params": [torch.nn.Parameter(torch.zeros(1))]}
    )
    with pytest.raises(CheckpointError, match=r"model_0000000\.pth` .* entry `optimizer` does not"):
        run.checkpointer.resume()


def test_last_checkpoint_is_named_only_after_the_file_is_complete(tmp_path, monkeypatch):
    run = Run(tmp_path)
    run.save(0)
    order = []
    real = os.replace

    def record(source, target):
        order.append(os.path.basename(target))
        if target.endswith("last_checkpoint"):
            torch.load(tmp_path / "model_0000001.pth", weights_only=True)
        real(source, target)

    monkeypatch.setattr(os, "replace", record)
    run.save(1)
    assert order == ["model_0000001.pth", "last_checkpoint"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"


def test_only_the_newest_periodic_checkpoints_are_kept(tmp_path):
    run = Run(tmp_path, keep=2)
    run.checkpointer.save("model_best", resumable=False)
    for iteration in range(5):
        run.save(iteration)
    run.checkpointer.save("model_final", iteration=4)
    expected = {"model_0000003.pth", "model_0000004.pth", "model_best.pth", "model_final.pth"}
    assert names_in(tmp_path) == expected


def test_keeping_goes_on_after_resuming(tmp_path):
    first = Run(tmp_path, keep=2)
    for iteration in range(3):
        first.save(iteration)
    second = Run(tmp_path, keep=2)
    second.checkpointer.resume()
    second.save(3)
    assert names_in(tmp_path) == {"model_0000002.pth", "model_0000003.pth"}


def test_zero_keeps_all_checkpoints(tmp_path):
    run = Run(tmp_path, keep=0)
    for iteration in range(5):
        run.save(iteration)
    assert len(names_in(tmp_path)) == 5


def test_half_written_files_of_a_killed_run_are_cleaned(tmp_path):
    run = Run(tmp_path)
    run.save(0)
    left_over = tmp_path / ".tmp-offseg_d2-123-model_0000001.pth.tmp"
    left_over.write_bytes(b"half")
    run.checkpointer.clean_temporary_files()
    assert not left_over.exists()
    assert names_in(tmp_path) == {"model_0000000.pth"}


def test_best_model_is_not_what_a_run_resumes_from(tmp_path):
    run = Run(tmp_path)
    run.save(0)
    run.checkpointer.save("model_best", resumable=False, best={"value": 1.0})
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000000.pth"
    assert "optimizer" not in torch.load(tmp_path / "model_best.pth", weights_only=True)


# ---------------------------------------------------------------------- resuming


def test_resuming_restores_model_and_optimizer_bit_for_bit(tmp_path):
    first = Run(tmp_path)
    first.step()
    first.save(0, seed=11)
    first.step()
    second = Run(tmp_path, seed=1)
    data = second.checkpointer.resume()
    assert (data["iteration"], data["seed"]) == (0, 11)
    second.step()
    assert_same(first.state(), second.state())


def test_resuming_an_empty_directory_says_there_is_nothing(tmp_path):
    assert Run(tmp_path).checkpointer.resume() is None
    assert Run(tmp_path / "absent").checkpointer.resume() is None


def damage(path, how: str) -> None:
    if how == "truncated":
        os.truncate(path, os.path.getsize(path) // 2)
    elif how == "empty":
        os.truncate(path, 0)
    else:
        path.write_bytes(b"something else" * 100)


@pytest.mark.parametrize("how", ["truncated", "empty", "overwritten"])
def test_damaged_last_checkpoint_falls_back_to_the_one_before(tmp_path, how, caplog):
    first = Run(tmp_path)
    states = []
    for iteration in range(3):
        first.step()
        first.save(iteration)
        states.append(first.state())
    damage(tmp_path / "model_0000002.pth", how)
    second = Run(tmp_path, seed=1)
    with caplog.at_level("WARNING"):
        assert second.checkpointer.resume()["iteration"] == 1
    assert_same(second.state(), states[1])
    assert "model_0000002.pth" in caplog.text
    assert "Going back" in caplog.text


def test_last_checkpoint_that_names_no_file_falls_back_to_the_newest(tmp_path):
    run = Run(tmp_path)
    run.save(0)
    run.save(1)
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    assert Run(tmp_path).checkpointer.resume()["iteration"] == 1
    os.remove(tmp_path / "last_checkpoint")
    assert Run(tmp_path).checkpointer.resume()["iteration"] == 1


def test_run_whose_checkpoints_are_all_damaged_is_an_error(tmp_path):
    run = Run(tmp_path)
    for iteration in range(2):
        run.save(iteration)
        damage(tmp_path / f"model_{iteration:07d}.pth", "truncated")
    with pytest.raises(CorruptCheckpointError, match="None of the 2 checkpoints"):
        Run(tmp_path).checkpointer.resume()


def test_incomplete_checkpoint_is_an_error_naming_what_is_missing(tmp_path):
    torch.save({"model": make_model().state_dict(), "iteration": 5}, tmp_path / "model_final.pth")
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    with pytest.raises(CheckpointError, match=r"model_final.pth.* lacks optimizer"):
        Run(tmp_path).checkpointer.resume()


def test_checkpoint_of_another_model_cannot_be_resumed(tmp_path):
    Run(tmp_path).save(0)
    run = Run(tmp_path, num_classes=5)
    before = run.state()
    with pytest.raises(CheckpointError, match=r"`classifier.weight` has the shape"):
        run.checkpointer.resume()
    assert_same(run.state(), before)
