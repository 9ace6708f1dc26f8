"""Checkpoints that expand are refused before anything large is built from them."""

import io
import json
import os
import pickle
import random
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from offseg_d2.checkpoint import (
    CheckpointError,
    SafeCheckpointer,
    UnsafeCheckpointError,
    load_checkpoint_file,
)
from offseg_d2.checkpoint.limits import MAX_OPCODES
from offseg_d2.inference.segmenter import Segmenter
from tests.checkpoint.runs import Run


def saved(content, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def rewritten(content: bytes, change, compression=zipfile.ZIP_STORED) -> bytes:
    """An archive with ``change(name, data)`` in place of each entry."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for entry in old.infolist():
            data = change(entry.filename, old.read(entry))
            new.writestr(zipfile.ZipInfo(entry.filename), data, compression)
    return buffer.getvalue()


def with_pickle(data: bytes) -> bytes:
    """A torch.save file with another pickle."""
    model = saved({"model": {"a": torch.zeros(2)}})
    return rewritten(model, lambda name, old: data if name.endswith("data.pkl") else old)


def doubled(times: int) -> bytes:
    """A pickle of lists that hold the one before twice, ``times`` deep."""
    parts = [b"\x80\x02]q\x00"]
    parts += [b"]q%c(h%ch%ce" % (i + 1, i, i) for i in range(times)]
    return b"".join(parts) + b"."


def zeros(name: str, old: bytes) -> bytes:
    return bytes(300 << 20) if name.endswith("/data/0") else old


def expanding_zip() -> bytes:
    return rewritten(saved({"model": {"a": torch.zeros(2)}}), zeros, zipfile.ZIP_DEFLATED)


def safetensors_file(offsets: dict[str, list[int]], data: bytes) -> bytes:
    """Tensors of two float32 each, wherever their offsets say."""
    entries = {k: {"dtype": "F32", "shape": [2], "data_offsets": v} for k, v in offsets.items()}
    header = json.dumps(entries).encode()
    return len(header).to_bytes(8, "little") + header + data


MARKS = b"\x80\x02" + b"(" * (MAX_OPCODES + 10) + b"."
HOSTILE = {
    "an entry of 300 MB in kilobytes.pth": expanding_zip,
    "twenty million marks.pth": lambda: with_pickle(b"\x80\x02" + b"(" * 20_000_000 + b"."),
    "marks in the old format.pth": lambda: MARKS,
    "marks in the fourth pickle.pth": lambda: 3 * pickle.dumps(1, 2) + MARKS,
    "marks.pkl": lambda: MARKS,
    "lists doubled forty times.pth": lambda: with_pickle(doubled(40)),
    "lists doubled forty times.pkl": lambda: doubled(40),
    "deep lists.pkl": lambda: b"\x80\x02" + b"]" * 300 + b"a" * 299 + b".",
    "a memo bomb.pkl": lambda: b"\x80\x02}r\xff\xff\xff\x7f.",
    "a memo bomb.pth": lambda: with_pickle(b"\x80\x02}r\xff\xff\xff\x7f."),
    "an expanded tensor.pth": lambda: saved({"model": {"a": torch.zeros(1).expand(1 << 33)}}),
    "many expanded tensors.pth": lambda: saved(
        {"model": {f"a{i}": torch.zeros(1).expand(1 << 20) for i in range(400)}}
    ),
    "a meta tensor.pth": lambda: saved({"model": {"a": torch.zeros(3, device="meta")}}),
    "a sparse tensor.pth": lambda: saved({"model": {"a": torch.eye(3).to_sparse()}}),
    "a quantized tensor.pth": lambda: saved(
        {"model": {"a": torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)}}
    ),
    "a nested tensor.pth": lambda: saved(
        {"model": {"a": torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])}}
    ),
    "a compressed sparse tensor.pth": lambda: saved({"model": {"a": torch.eye(3).to_sparse_csr()}}),
    "overlapping tensors.safetensors": lambda: safetensors_file(
        {"a": [0, 8], "b": [4, 12]}, bytes(12)
    ),
    "tensors beyond the file.safetensors": lambda: safetensors_file({"a": [0, 8]}, bytes(4)),
    "a gap between tensors.safetensors": lambda: safetensors_file(
        {"a": [0, 8], "b": [12, 20]}, bytes(20)
    ),
    "a header beyond the file.safetensors": lambda: b"\xff" * 7 + b"\x7f" + b"{}",
    "a header that lies.safetensors": lambda: (
        b"\x40\0\0\0\0\0\0\0" + b'{"a":{"dtype":"F32","shape":[1000000],"data_offsets":[0,9]}}    '
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_file_beyond_the_limits_is_refused(kind, tmp_path):
    path = tmp_path / kind.replace(" ", "_")
    path.write_bytes(HOSTILE[kind]())
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint_file(str(path))
    message = str(caught.value)
    assert str(path) in message and len(message) < 500 and "\n" not in message


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("a meta tensor.pth", "`a` is a meta tensor"),
        ("a quantized tensor.pth", "`a` is a quantized tensor"),
        ("a sparse tensor.pth", "`a` is a sparse tensor"),
    ],
)
def test_kinds_of_tensors_are_refused_by_name(kind, word, tmp_path):
    (tmp_path / "a.pth").write_bytes(HOSTILE[kind]())
    with pytest.raises(UnsafeCheckpointError, match=word):
        load_checkpoint_file(str(tmp_path / "a.pth"))


LOAD = """
import resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
import torch
from offseg_d2.checkpoint import CheckpointError, load_checkpoint_file
before = resource.getrusage(resource.RUSAGE_SELF)
for path in sys.argv[1:]:
    try:
        load_checkpoint_file(path)
    except CheckpointError:
        pass
after = resource.getrusage(resource.RUSAGE_SELF)
print(after.ru_maxrss - before.ru_maxrss, after.ru_utime - before.ru_utime)
"""


def test_refusals_need_little_memory(tmp_path):
    paths = []
    for kind in ("an entry of 300 MB in kilobytes.pth", "lists doubled forty times.pkl",
                 "a memo bomb.pkl", "an expanded tensor.pth"):  # fmt: skip
        paths.append(str(tmp_path / kind.replace(" ", "_")))
        Path(paths[-1]).write_bytes(HOSTILE[kind]())
    done = subprocess.run([sys.executable, "-c", LOAD, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kilobytes = int(done.stdout.split()[0]) * (1 if sys.platform != "darwin" else 1 / 1024)
    assert kilobytes < 1 << 20, done.stdout  # 1 GB


def test_usual_files_are_within_the_limits(tmp_path):
    model = torch.nn.Sequential(*[torch.nn.Linear(20, 20) for _ in range(200)])
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 20)).sum().backward()
    optimizer.step()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iteration": 3}
    tied = torch.zeros(1000, 300)
    content["model"] |= {"first": tied, "second": tied, "part": tied[:3]}
    for name, options in (("new.pth", {}), ("old.pth", {"_use_new_zipfile_serialization": False})):
        torch.save(content, tmp_path / name, **options)
        loaded = load_checkpoint_file(str(tmp_path / name))
        assert loaded["model"].keys() == content["model"].keys()
    with open(tmp_path / "zoo.pkl", "wb") as file:
        pickle.dump({"model": {k: v.numpy() for k, v in content["model"].items()}}, file)
    assert len(load_checkpoint_file(str(tmp_path / "zoo.pkl"))["model"]) == 403


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
        {"model": {"a": [1.0]}},
    ],
)
def test_weights_without_names_or_numbers_are_refused(content, tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    torch.save(content, tmp_path / "a.pth")
    for name in ("a.pkl", "a.pth"):
        with pytest.raises(CheckpointError, match=rf"`.*{name}` "):
            SafeCheckpointer(torch.nn.Linear(2, 2)).load(str(tmp_path / name))


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
