"""Stopping on a signal: what is saved, which handler is called, and how the run goes on."""

import os
import signal
import time
from collections.abc import Iterator

import pytest
import torch
from detectron2.engine import HookBase

from offseg_d2.engine.stopping import _REPEAT_SECONDS
from tests.engine.tiny import TinyTrainer, assert_same_weights, make_trainer, weights_of


@pytest.fixture
def handler() -> Iterator[list[tuple[int, bool]]]:
    """Handles SIGUSR2 as submitit does; notes each call."""
    calls: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: calls.append(number))
    yield calls
    signal.signal(signal.SIGUSR2, before)


def signals_in(trainer: TinyTrainer, iteration: int, *numbers: int) -> None:
    """Send ourselves signals while ``iteration`` runs."""
    run_step = trainer.run_step

    def run_step_with_signals() -> None:
        if trainer.iter == iteration:
            for number in numbers:
                signal.raise_signal(number)
        run_step()

    trainer.run_step = run_step_with_signals


def stop(trainer: TinyTrainer) -> int:
    with pytest.raises(SystemExit) as stopped:
        trainer.train()
    return stopped.value.code


@pytest.mark.parametrize(
    "numbers", [(signal.SIGUSR2,), (signal.SIGTERM, signal.SIGUSR2, signal.SIGUSR2)]
)
def test_preemption_saves_and_then_calls_who_handled_the_signal_before(tmp_path, handler, numbers):
    trainer = make_trainer(tmp_path)
    signals_in(trainer, 5, *numbers)
    save, saved_before_the_call = trainer.checkpointer.save, []

    def note_and_save(*args, **kwargs) -> None:
        saved_before_the_call.append(not handler)
        save(*args, **kwargs)

    trainer.checkpointer.save = note_and_save
    stop(trainer)
    assert handler == [signal.SIGUSR2]
    assert all(saved_before_the_call)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000005.pth"


def test_preemption_while_the_checkpoint_of_another_signal_is_written_is_not_lost(
    tmp_path, handler, monkeypatch
):
    trainer = make_trainer(tmp_path)
    signals_in(trainer, 5, signal.SIGTERM)
    save = torch.save

    def save_under_fire(data, file) -> None:
        if data["iteration"] == 5:
            signal.raise_signal(signal.SIGUSR2)
        save(data, file)

    monkeypatch.setattr(torch, "save", save_under_fire)
    stop(trainer)
    assert handler == [signal.SIGUSR2]
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000005.pth"


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM, signal.SIGINT])
def test_signal_passed_on_twice_counts_once(tmp_path, number, handler):
    trainer = make_trainer(tmp_path)
    signals_in(trainer, 5, number, number)
    assert stop(trainer) == 128 + number
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000005.pth"


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt; test processes that run in parallel ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_second_interrupt_after_a_while_ends_at_once(tmp_path, interruptible):
    trainer = make_trainer(tmp_path)
    run_step = trainer.run_step

    def run_step_with_signals() -> None:
        signal.raise_signal(signal.SIGINT)
        time.sleep(_REPEAT_SECONDS + 0.1)
        signal.raise_signal(signal.SIGINT)
        run_step()

    trainer.run_step = run_step_with_signals
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert not list(tmp_path.glob("*.pth"))


def test_second_announcement_of_a_preemption_does_not_end_the_run_before_it_has_saved(
    tmp_path, monkeypatch
):
    trainer = make_trainer(tmp_path)
    run_step = trainer.run_step

    def run_step_with_signals() -> None:
        if trainer.iter == 5:
            os.kill(os.getpid(), signal.SIGUSR2)
            time.sleep(_REPEAT_SECONDS + 0.1)
            os.kill(os.getpid(), signal.SIGUSR2)
        run_step()

    trainer.run_step = run_step_with_signals
    # by which the hook would end this very process
    monkeypatch.setattr(signal, "raise_signal", lambda number: pytest.fail("acts as usual"))
    assert stop(trainer) == 128 + signal.SIGUSR2
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000005.pth"


class SignalsBeforeStep(HookBase):
    """Sends a signal when an iteration is counted but has not begun."""

    def before_step(self) -> None:
        if self.trainer.iter == 5:
            signal.raise_signal(signal.SIGTERM)


def test_signal_just_before_an_iteration_does_not_save_it_as_done(tmp_path):
    whole = make_trainer(tmp_path / "whole")
    whole.train()
    trainer = make_trainer(tmp_path / "parts")
    trainer._hooks.insert(0, hook := SignalsBeforeStep())
    hook.trainer = trainer
    assert stop(trainer) == 128 + signal.SIGTERM
    assert (tmp_path / "parts" / "last_checkpoint").read_text() == "model_0000005.pth"
    resumed = make_trainer(tmp_path / "parts")
    resumed.resume_or_load(resume=True)
    resumed.train()
    assert_same_weights(weights_of(resumed), weights_of(whole))


def test_evaluation_cut_off_by_a_signal_is_made_when_the_run_is_resumed(tmp_path):
    def scored(trainer: TinyTrainer) -> TinyTrainer:
        scores = {5: 50.0, 12: 40.0}
        trainer.test = lambda cfg, model: {"sem_seg": {"mIoU": scores[trainer.iter]}}
        return trainer

    options = ("TEST.EVAL_PERIOD", 6)
    first = make_trainer(tmp_path / "parts", *options)
    first.test = lambda cfg, model: signal.raise_signal(signal.SIGTERM)
    stop(first)
    second = scored(make_trainer(tmp_path / "parts", *options))
    second.resume_or_load(resume=True)
    second.train()
    whole = scored(make_trainer(tmp_path / "whole", *options))
    whole.train()
    found, expected = (
        torch.load(tmp_path / name / "model_best.pth", weights_only=True)
        for name in ("parts", "whole")
    )
    assert found["best"] == expected["best"] == {
        "metric": "sem_seg/mIoU", "value": 50.0, "iteration": 5
    }  # fmt: skip
    assert found["iteration"] == expected["iteration"] == 5
    assert_same_weights(found["model"], expected["model"])
    assert_same_weights(weights_of(second), weights_of(whole))


def test_job_that_is_started_again_resumes_without_being_asked_to(tmp_path, monkeypatch):
    first = make_trainer(tmp_path)
    signals_in(first, 5, signal.SIGTERM)
    stop(first)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    second = make_trainer(tmp_path)
    second.resume_or_load(resume=False)
    assert second.start_iter == 6


def test_checkpoint_says_where_the_data_go_on_and_another_batch_size_is_reported(tmp_path, caplog):
    first = make_trainer(tmp_path)
    signals_in(first, 5, signal.SIGTERM)
    stop(first)
    data = torch.load(tmp_path / "model_0000005.pth", weights_only=True)
    assert data["sampler"] == {"seed": 5, "samples_per_iteration": 2, "position": 12}
    make_trainer(tmp_path).resume_or_load(resume=True)
    assert "samples" not in caplog.text
    make_trainer(tmp_path, "SOLVER.IMS_PER_BATCH", 3).resume_or_load(resume=True)
    assert "An iteration had 2 samples and has 3 now" in caplog.text
    assert "at position 18 instead of 12" in caplog.text
