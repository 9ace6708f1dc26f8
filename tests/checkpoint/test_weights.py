"""Loading `MODEL.WEIGHTS`: files that fit the model and files that do not."""

import pickle

import pytest
import torch
from torch import nn

from offseg_d2.checkpoint import CheckpointError
from offseg_d2.checkpoint.checkpointer import SafeCheckpointer
from offseg_d2.modeling.classifiers import OffsetClassifier
from tests.checkpoint.runs import Run, assert_same, make_model


def write(path, data) -> str:
    torch.save(data, path)
    return str(path)


@pytest.mark.parametrize("form", ["bare", "model", "state_dict", "module."])
def test_weights_of_every_usual_form_are_loaded(tmp_path, form):
    source = make_model().state_dict()
    data = {
        "bare": source,
        "model": {"model": source, "iteration": 3},
        "state_dict": {"state_dict": source, "meta": {}},
        "module.": {f"module.{name}": value for name, value in source.items()},
    }[form]
    run = Run(tmp_path, seed=5)
    run.checkpointer.load(write(tmp_path / "weights.pth", data))
    assert_same(run.state(), dict(source))


@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_wrapped_pickle_without_an_author_is_loaded(tmp_path, key):
    source = make_model().state_dict()
    arrays = {name: value.numpy() for name, value in source.items()}
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps({key: arrays, "epoch": 3}))
    run = Run(tmp_path, seed=5)
    run.checkpointer.load(str(tmp_path / "weights.pkl"))
    assert_same(run.state(), dict(source))


def test_loading_weights_leaves_the_optimizer_alone(tmp_path):
    first = Run(tmp_path / "a")
    first.step()
    first.save(0)
    second = Run(tmp_path / "b", seed=1)
    second.checkpointer.load(str(tmp_path / "a/model_0000000.pth"), checkpointables=[])
    assert_same(first.state(), second.state())
    assert second.optimizer.state_dict()["state"] == {}


def test_wrong_number_of_classes_is_one_error_with_key_and_both_shapes(tmp_path):
    path = write(tmp_path / "weights.pth", make_model(150).state_dict())
    run = Run(tmp_path)
    before = run.state()
    with pytest.raises(CheckpointError) as error:
        run.checkpointer.load(path)
    for part in (path, "`classifier.weight`", "(150, 4, 1, 1)", "(3, 4, 1, 1)"):
        assert part in str(error.value)
    assert_same(run.state(), before)


def test_file_that_shares_no_name_with_the_model_is_refused(tmp_path):
    path = write(tmp_path / "weights.pth", {"other.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="none of them"):
        Run(tmp_path).checkpointer.load(path)


def test_missing_and_unexpected_names_are_logged(tmp_path, caplog):
    state = make_model().state_dict()
    state["extra.weight"] = state.pop("classifier.bias")
    path = write(tmp_path / "weights.pth", state)
    with caplog.at_level("WARNING"):
        Run(tmp_path).checkpointer.load(path)
    assert "classifier" in caplog.text
    assert "extra" in caplog.text


def test_absent_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`MODEL.WEIGHTS` must be .*nowhere/a.pth"):
        Run(tmp_path).checkpointer.load("nowhere/a.pth")


def test_external_names_go_through_the_converter(tmp_path):
    source = make_model().state_dict()
    path = write(tmp_path / "weights.pth", {f"their.{name}": v for name, v in source.items()})

    def convert(state_dict, model):
        assert isinstance(model, nn.Module)
        return {name.removeprefix("their."): value for name, value in state_dict.items()}

    run = Run(tmp_path, seed=3, convert_state_dict=convert)
    run.checkpointer.load(path)
    assert_same(run.state(), dict(source))


def test_names_the_converter_does_not_know_are_one_error(tmp_path):
    def convert(state_dict, model):
        raise KeyError("1 parameter names are not known: x.")

    path = write(tmp_path / "weights.pth", {"x": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"weights.pth`: 1 parameter names are not known: x"):
        Run(tmp_path, convert_state_dict=convert).checkpointer.load(path)


def test_own_names_do_not_go_through_the_converter(tmp_path):
    def convert(state_dict, model):
        raise AssertionError("must not be called")

    path = write(tmp_path / "weights.pth", make_model().state_dict())
    Run(tmp_path, convert_state_dict=convert).checkpointer.load(path)


def test_entry_that_is_no_tensor_is_named(tmp_path):
    path = write(tmp_path / "weights.pth", {"model": {"backbone.weight": "text"}})
    with pytest.raises(CheckpointError, match=r"`backbone.weight` is a str"):
        Run(tmp_path).checkpointer.load(path)


@pytest.mark.parametrize("complete", [True, False])  # to be scored, and to be trained further
@pytest.mark.parametrize("theirs", [True, False])
def test_class_vectors_of_another_form_are_refused(tmp_path, theirs, complete):
    def model(class_norm: bool) -> nn.Module:
        return nn.ModuleDict({"classifier": OffsetClassifier(4, 3, class_norm=class_norm)})

    path = tmp_path / "other.pth"
    torch.save({"model": model(theirs).state_dict()}, path)
    message = rf"other\.pth` .*`MODEL.SEM_SEG_HEAD.CLASS_NORM` {not theirs}, but .* with {theirs}:"
    with pytest.raises(CheckpointError, match=message):
        SafeCheckpointer(model(not theirs), str(tmp_path)).load(str(path), complete=complete)
    SafeCheckpointer(model(theirs), str(tmp_path)).load(str(path), complete=complete)


def test_a_checkpoint_without_a_last_layer_starts_either_form(tmp_path):
    model = nn.ModuleDict({"classifier": OffsetClassifier(4, 3), "body": nn.Linear(2, 2)})
    torch.save({"model": {"body.weight": torch.ones(2, 2)}}, tmp_path / "body.pth")
    SafeCheckpointer(model, str(tmp_path)).load(str(tmp_path / "body.pth"))
    assert model["body"].weight.eq(1).all()
