"""Odd and damaged checkpoints: entries of other types, what is no file, damage anywhere."""

import os
import pickle
import random
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from offseg_d2.checkpoint import CheckpointError, SafeCheckpointer, load_checkpoint_file
from offseg_d2.checkpoint.entries import check_optimizer
from offseg_d2.inference.segmenter import Segmenter
from tests.checkpoint.runs import Run
from tests.checkpoint.test_hostile_files import saved

# ------------------------------------------------------------------ own entries of other types


@pytest.mark.parametrize("entry", [5, "text", [1], {"averages": 3}, {}])
def test_averages_of_another_type_are_named(entry, tmp_path):
    model = torch.nn.Linear(2, 2)
    torch.save({"model": model.state_dict(), "ema": entry}, tmp_path / "a.pth")
    checkpointer = SafeCheckpointer(model, prefer_average=True)
    with pytest.raises(CheckpointError, match=r"a\.pth` must hold averaged weights .* `ema`"):
        checkpointer.load(str(tmp_path / "a.pth"))


@pytest.mark.parametrize(
    "entry",
    [
        {"names": 5},
        {"names": [1, 2]},
        {"names": ["a", "b"], "colors": [[1, 2], [3, 4]]},
        {"names": ["a", "b"], "colors": "red"},
    ],
)
def test_classes_of_another_type_are_named(entry, tmp_path):
    content = {"model": {"a": torch.zeros(1)}, "cfg": "SEED: 1\n", "classes": entry}
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth` cannot be used alone: Its entry `classes`"):
        Segmenter.from_checkpoint(str(tmp_path / "a.pth"))


@pytest.mark.parametrize(
    "content",
    [
        {1: torch.zeros(1)},
        {("a", "b"): torch.zeros(1)},
        {"model": {None: torch.zeros(1)}},
        {"model": {"a": torch.zeros(1), b"b": torch.zeros(1)}},
        {"model": {"a": np.array(["text"])}},
        {"model": {"a": np.array(1 + 2j)}},
        {"model": {"a": np.ones(2, np.longdouble)}},
        {"model": {"a": [1.0]}},
        {"model": {}},
        {},
    ],
)
def test_weights_without_names_or_numbers_are_refused(content, tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    torch.save(content, tmp_path / "a.pth")
    for name in ("a.pkl", "a.pth"):
        with pytest.raises(CheckpointError, match=rf"`.*{name}` "):
            SafeCheckpointer(torch.nn.Linear(2, 2)).load(str(tmp_path / name))


def test_arrays_in_the_byte_order_of_another_machine_are_read(tmp_path):
    weight = np.arange(4.0, dtype=">f4").reshape(2, 2)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": {"weight": weight}}))
    model = torch.nn.Linear(2, 2)
    SafeCheckpointer(model).load(str(tmp_path / "a.pkl"))
    assert torch.equal(model.weight, torch.arange(4.0).view(2, 2))


@pytest.mark.parametrize("change", ["shape", "absent", "text"])
def test_a_run_is_not_resumed_from_averages_that_do_not_fit(change, tmp_path):
    run = Run(tmp_path)
    run.step()
    run.save(3)
    path = tmp_path / "model_0000003.pth"
    content = torch.load(path, weights_only=True)
    state = content["optimizer"]["state"][1]
    if change == "absent":
        del state["exp_avg"]
    else:
        state["exp_avg"] = torch.zeros(7) if change == "shape" else "text"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"0000003\.pth` .*`optimizer` does not fit"):
        Run(tmp_path).checkpointer.resume()


def test_optimizers_with_other_averages_than_of_the_parameters_shape_are_resumed():
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adafactor(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    check_optimizer("a.pth", "optimizer", optimizer)


@pytest.mark.parametrize("blobs", [3, "text", [np.zeros(2)], None])
@pytest.mark.parametrize("more", [{}, {"__author__": 5}, {"__author__": ["x"]}])
def test_zoo_pickles_with_entries_of_other_types_are_refused(blobs, more, tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"blobs": blobs, **more}))
    with pytest.raises(CheckpointError, match=r"a\.pkl` must hold .* by name"):
        SafeCheckpointer(torch.nn.Linear(2, 2)).load(str(tmp_path / "a.pkl"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("iteration", value) for value in ("3", -1, 2.5, True, None, [3])),
        *(("seed", value) for value in ("x", -3, 1 << 70)),
        *(("sampler", value) for value in (5, [1], {}, {"seed": "x"}, {"seed": 1, "position": 2})),
        *(("model", value) for value in (5, [torch.zeros(1)], {3: torch.zeros(1)})),
        *(("optimizer", value) for value in (5, [1], {}, {"state": 3, "param_groups": 4})),
        ("best", 7),
    ],
)
def test_a_run_is_not_resumed_from_entries_of_other_types(key, value, tmp_path):
    run = Run(tmp_path)
    run.save(3, seed=1, sampler={"seed": 1, "position": 8, "samples_per_iteration": 2})
    assert Run(tmp_path).checkpointer.resume()["iteration"] == 3
    path = tmp_path / "model_0000003.pth"
    torch.save(torch.load(path, weights_only=True) | {key: value}, path)
    with pytest.raises(CheckpointError, match=rf"0000003\.pth` .*`{key}`|one of its names is 3"):
        Run(tmp_path).checkpointer.resume()


def test_older_optimizers_of_a_backbone_that_is_frozen_now_name_the_key(tmp_path):
    Run(tmp_path).save(3)
    frozen = Run(tmp_path)
    frozen.model.backbone.requires_grad_(False)
    frozen.checkpointer.checkpointables["optimizer"] = torch.optim.AdamW(
        frozen.model.classifier.parameters()
    )
    with pytest.raises(CheckpointError, match=r"`optimizer` .*`MODEL.BACKBONE.FREEZE_AT`"):
        frozen.checkpointer.resume()


# ------------------------------------------------------------------ what is no file


@pytest.mark.parametrize("kind", ["folder", "pipe", "socket", "device"])
@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
def test_what_is_no_file_is_refused_at_once(kind, suffix, tmp_path, monkeypatch):
    path = tmp_path / f"a{suffix}"
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(path.name)
    else:
        path.symlink_to("/dev/zero")
    for load in (load_checkpoint_file, SafeCheckpointer(torch.nn.Linear(2, 2)).load):
        with pytest.raises(CheckpointError, match=rf"a\{suffix}` must be a file, but is a "):
            load(str(path))


# ------------------------------------------------------------------ damage anywhere


def whole_files(tmp_path: Path) -> dict[str, bytes]:
    """A small checkpoint in each format."""
    tensors = {"weight": torch.arange(4.0).view(2, 2), "bias": torch.ones(2)}
    content = {"model": tensors, "iteration": 3, "classes": {"names": ["a", "b"]}}
    save_file(tensors, tmp_path / "a.safetensors")
    return {
        "new.pth": saved(content),
        "old.pth": saved(content, _use_new_zipfile_serialization=False),
        "zoo.pkl": pickle.dumps({"model": {k: v.numpy() for k, v in tensors.items()}}, 2),
        "latest.pkl": pickle.dumps({"blobs": {k: v.numpy() for k, v in tensors.items()}}, 5),
        "a.safetensors": (tmp_path / "a.safetensors").read_bytes(),
    }


def damaged(content: bytes, random: random.Random) -> bytes:
    """Bits flipped, a part cut out, or bytes repeated."""
    data, at = bytearray(content), random.randrange(len(content))
    match random.randrange(4):
        case 0:
            del data[at:]
        case 1:
            del data[at : at + random.randrange(1, 40)]
        case 2:
            data[at:at] = data[: random.randrange(1, 80)]
        case _:
            for _ in range(random.randrange(1, 4)):
                data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(data)


@pytest.mark.parametrize("name", ["new.pth", "old.pth", "zoo.pkl", "latest.pkl", "a.safetensors"])
def test_damage_ends_in_one_sentence_or_does_no_harm(name, tmp_path, caplog):
    content = whole_files(tmp_path)[name]
    path, generator, refused = tmp_path / name, random.Random(1), 0
    for _ in range(120):
        path.write_bytes(damaged(content, generator))
        model = torch.nn.Linear(2, 2)
        try:
            SafeCheckpointer(model).load(str(path))
        except CheckpointError as error:
            assert name in str(error)
            refused += 1
        assert model.weight.shape == (2, 2)
    assert refused > 20


@pytest.mark.parametrize("name", ["a.npz", "a.h5", "a.txt", "a"])
def test_files_of_other_kinds_are_refused_by_name(name, tmp_path):
    np.savez(tmp_path / "arrays.npz", weight=np.zeros((2, 2)))
    kinds = {
        "a.npz": (tmp_path / "arrays.npz").read_bytes(),
        "a.h5": b"\x89HDF\r\n\x1a\n" + bytes(99),
    }
    (tmp_path / name).write_bytes(kinds.get(name, b"weights"))
    with pytest.raises(CheckpointError, match=name):
        SafeCheckpointer(torch.nn.Linear(2, 2)).load(str(tmp_path / name))


@pytest.mark.parametrize("entry", [5, [1], {"SEED": 1}])
def test_configuration_of_another_type_is_refused(entry, tmp_path):
    torch.save({"model": {"a": torch.zeros(1)}, "cfg": entry}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth` must carry a configuration"):
        Segmenter.from_checkpoint(str(tmp_path / "a.pth"))
