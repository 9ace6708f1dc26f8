"""Checkpoints that expand are refused before anything large is built from them."""

import io
import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from offseg_d2.checkpoint import (
    CheckpointError,
    UnsafeCheckpointError,
    load_checkpoint_file,
)
from offseg_d2.checkpoint.limits import MAX_OPCODES


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
