"""The moving average of the weights: its value, evaluating with it, checkpoints."""

import signal

import pytest
import torch
from torch import nn

from offseg_d2.engine.ema import WeightAverage
from tests.common import assert_close
from tests.engine.tiny import (
    TinyTrainer,
    assert_same_weights,
    make_cfg,
    make_trainer,
    weights_of,
)

EMA = ("SOLVER.EMA.ENABLED", True, "SOLVER.EMA.DECAY", 0.5)


def model_of_one_weight(value: float) -> nn.Module:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def test_average_is_the_recursion_with_a_smaller_decay_at_first():
    model = model_of_one_weight(0.0)
    average = WeightAverage(model, 0.2)
    expected = 0.0
    for step in range(1, 6):
        model.weight.data.fill_(float(step))
        average.update()
        decay = min(0.2, step / (step + 9))
        expected = decay * expected + (1 - decay) * step
        assert_close(average.averages["weight"], torch.tensor([[expected]]))


def test_model_has_the_average_only_within_the_context_and_keeps_its_tensors():
    model = model_of_one_weight(1.0)
    average = WeightAverage(model, 0.9)
    average.averages["weight"].fill_(5.0)
    pointer = model.weight.data_ptr()
    with average.applied():
        assert model.weight.item() == 5.0
        with average.removed():
            assert model.weight.item() == 1.0
        assert model.weight.item() == 5.0
        assert model.weight.data_ptr() == pointer
    assert model.weight.item() == 1.0
    assert average.averages["weight"].item() == 5.0


def test_failure_within_the_context_gives_the_weights_back():
    model = model_of_one_weight(1.0)
    average = WeightAverage(model, 0.9)
    average.averages["weight"].fill_(5.0)
    with pytest.raises(KeyError), average.applied():
        raise KeyError
    assert model.weight.item() == 1.0


def test_signal_finds_all_weights_exchanged_or_none(monkeypatch):
    model = nn.Sequential(model_of_one_weight(1.0), model_of_one_weight(1.0))
    average = WeightAverage(model, 0.9)
    for value in average.averages.values():
        value.fill_(5.0)
    seen = []

    def note(number, frame) -> None:
        weights = {parameter.item() for parameter in model.parameters()}
        seen.append((average.is_applied, weights))

    before = signal.signal(signal.SIGTERM, note)
    clone = torch.Tensor.clone

    def clone_with_signal(value):  # as called between two parameters
        signal.raise_signal(signal.SIGTERM)
        return clone(value)

    try:
        monkeypatch.setattr(torch.Tensor, "clone", clone_with_signal)
        with average.applied():
            applied = len(seen)
    finally:
        monkeypatch.undo()
        assert signal.signal(signal.SIGTERM, before) is note
    assert 0 < applied < len(seen)
    assert all(state == (True, {5.0}) for state in seen[:applied])
    assert all(state == (False, {1.0}) for state in seen[applied:])


def test_state_of_other_weights_is_refused_by_name():
    average = WeightAverage(model_of_one_weight(1.0), 0.9)
    with pytest.raises(ValueError, match="`bias` is averaged in only one"):
        average.load_state_dict({"averages": {**average.averages, "bias": None}, "updates": 1})


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match=r"`SOLVER.EMA.DECAY` must be in \[0, 1\)"):
        WeightAverage(nn.Linear(1, 1), decay)


def test_averaging_does_not_change_what_is_trained(tmp_path):
    plain = make_trainer(tmp_path / "plain", "TEST.EVAL_PERIOD", 4)
    averaging = make_trainer(tmp_path / "ema", "TEST.EVAL_PERIOD", 4, *EMA)
    plain.train()
    averaging.train()
    assert_same_weights(weights_of(plain), weights_of(averaging))


def test_evaluation_and_best_model_have_the_averaged_weights(tmp_path):
    trainer = make_trainer(tmp_path, *EMA)
    seen = {}

    def test(cfg, model):
        seen.update({name: value.clone() for name, value in model.state_dict().items()})
        return {"sem_seg": {"mIoU": 1.0}}

    trainer.test = test
    trainer.train()
    averages = trainer.average.averages
    for name, value in averages.items():
        assert torch.equal(seen[name], value)
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)["model"]
    assert_same_weights(best, seen)
    final = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert_same_weights(final["model"], weights_of(trainer))
    assert not torch.equal(final["model"]["sem_seg_head.weight"], averages["sem_seg_head.weight"])


def test_resumed_average_equals_the_uninterrupted_one_bit_for_bit(tmp_path):
    whole = make_trainer(tmp_path / "whole", *EMA)
    whole.train()
    first = make_trainer(tmp_path / "parts", *EMA, "TEST.EVAL_PERIOD", 6)

    def test_and_be_stopped(cfg, model):  # while the model has the averaged weights
        signal.raise_signal(signal.SIGTERM)

    first.test = test_and_be_stopped
    with pytest.raises(SystemExit):
        first.train()
    second = make_trainer(tmp_path / "parts", *EMA)
    second.resume_or_load(resume=True)
    assert second.start_iter == 6
    second.train()
    assert_same_weights(weights_of(second), weights_of(whole))
    assert_same_weights(second.average.averages, whole.average.averages)


def test_file_with_an_average_is_evaluated_with_it_where_the_key_asks_for_it(tmp_path):
    trainer = make_trainer(tmp_path, *EMA)
    trainer.train()
    path = str(tmp_path / "model_final.pth")
    for options, expected in (
        (EMA, trainer.average.averages),
        ((), weights_of(trainer)),
    ):
        cfg = make_cfg(tmp_path, *options)
        model = TinyTrainer.build_model(cfg)
        TinyTrainer.build_checkpointer(cfg, model).load(path, checkpointables=[], complete=True)
        state = model.state_dict()
        assert_same_weights({name: state[name] for name in expected}, expected)


def test_average_begins_with_the_loaded_weights(tmp_path):
    make_trainer(tmp_path / "a").train()
    path = str(tmp_path / "a" / "model_final.pth")
    trainer = TinyTrainer(make_cfg(tmp_path / "b", *EMA, "MODEL.WEIGHTS", path))
    trainer.resume_or_load(resume=False)
    weights = weights_of(trainer)
    for name, value in trainer.average.averages.items():
        assert torch.equal(value, weights[name])
