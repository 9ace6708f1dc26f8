"""Loading files of every origin, and refusing to execute what a file asks for."""

import builtins
import os
import pickle
import sys
import types
from collections import OrderedDict

import numpy as np
import pytest
import torch

from offseg_d2.checkpoint import (
    CheckpointError,
    CorruptCheckpointError,
    UnsafeCheckpointError,
    load_checkpoint_file,
)

STATE = OrderedDict(weight=torch.arange(6.0).reshape(2, 3), steps=torch.tensor(7))


class Call:
    """Pickles as a call of ``function(*args)``."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def assert_state(state) -> None:
    assert list(state) == list(STATE)
    for name, tensor in STATE.items():
        assert torch.equal(torch.as_tensor(state[name]), tensor)


def write_pickle(path, data, protocol=2) -> str:
    path.write_bytes(pickle.dumps(data, protocol=protocol))
    return str(path)


def write_torch(path, data, **kwargs) -> str:
    torch.save(data, path, **kwargs)
    return str(path)


# ---------------------------------------------------------------------- files that can be read


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_of_both_formats_are_read(tmp_path, zipped):
    path = write_torch(
        tmp_path / "a.pth", {"model": STATE, "iteration": 3}, _use_new_zipfile_serialization=zipped
    )
    data = load_checkpoint_file(path)
    assert_state(data["model"])
    assert data["iteration"] == 3


def test_safetensors_files_are_read(tmp_path):
    from safetensors.torch import save_file

    save_file(dict(STATE), tmp_path / "a.safetensors")
    data = load_checkpoint_file(str(tmp_path / "a.safetensors"))
    assert_state({name: data[name] for name in STATE})


@pytest.mark.parametrize("protocol", range(6))
def test_model_zoo_pickles_are_read_as_plain_data(tmp_path, protocol):
    arrays = {
        "half": np.arange(3, dtype=np.float16),
        "matrix": np.asfortranarray(np.arange(6, dtype=">f4").reshape(2, 3)),
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 4), np.int64),
        "scalar": np.float64(2.5),
        "zero_d": np.array(3),
    }
    data = {"model": OrderedDict(arrays), "__author__": "someone", "list": [1, (2.5, "x"), {3}]}
    loaded = load_checkpoint_file(write_pickle(tmp_path / "a.pkl", data, protocol))
    assert loaded["__author__"] == "someone"
    assert loaded["list"] == [1, (2.5, "x"), {3}]
    for name, value in arrays.items():
        np.testing.assert_array_equal(loaded["model"][name], value)
        assert np.asarray(loaded["model"][name]).dtype == value.dtype


def test_model_zoo_pickle_of_python_2_is_read(tmp_path):
    # protocol 0 with byte strings, as Python 2 writes: {'model': {'w': array([1., 2.], '<f4')}}
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        b"(I1\n(I2\ntcnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"
        b"I00\nS'\\x00\\x00\\x80?\\x00\\x00\\x00@'\ntb"
    )
    (tmp_path / "a.pkl").write_bytes(b"(dS'model'\n(dS'w'\n" + array + b"ss.")
    loaded = load_checkpoint_file(str(tmp_path / "a.pkl"))
    np.testing.assert_array_equal(loaded["model"]["w"], np.array([1, 2], np.float32))


@pytest.fixture
def history_buffer(monkeypatch):
    """A stand-in for mmengine's log buffer, importable while the file is written only."""

    class HistoryBuffer:
        def __init__(self):
            self.history = np.arange(4.0)
            self.largest = np.float64(3.0)
            self.methods = {"mean": Call(getattr, type(self), "mean")}

        def mean(self):
            raise AssertionError("must never be called")

        def __setstate__(self, state):
            raise AssertionError("must never be called")

    HistoryBuffer.__module__ = "mmengine.logging.history_buffer"
    HistoryBuffer.__qualname__ = "HistoryBuffer"
    names = ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer")
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules[names[-1]].HistoryBuffer = HistoryBuffer
    yield HistoryBuffer


@pytest.mark.parametrize("zipped", [True, False])
def test_mmengine_file_is_read_without_its_classes(tmp_path, monkeypatch, history_buffer, zipped):
    data = {
        "state_dict": STATE,
        "meta": {"iter": 160000, "cfg": "model = dict()", "classes": ("a", "b")},
        "message_hub": {"log_scalars": {"train/loss": history_buffer()}},
        "optimizer": {"state": {}},
    }
    path = write_torch(tmp_path / "a.pth", data, _use_new_zipfile_serialization=zipped)
    monkeypatch.delitem(sys.modules, "mmengine.logging.history_buffer")
    with pytest.raises(pickle.UnpicklingError):  # what makes the second attempt necessary
        torch.load(path, weights_only=True)
    loaded = load_checkpoint_file(path)
    assert_state(loaded["state_dict"])
    assert loaded["meta"] == data["meta"]
    assert set(loaded) == {"state_dict", "meta"}


# ---------------------------------------------------------------------- files that are refused


def malicious(kind: str, marker: str) -> object:
    command = f"touch {marker}"
    return {
        "os.system": Call(os.system, command),
        "builtins.eval": Call(builtins.eval, f"open({marker!r}, 'w')"),
        "builtins.exec": Call(builtins.exec, f"open({marker!r}, 'w')"),
        "importlib": Call(__import__("importlib").import_module, "this"),
        "nested": {"deep": [Call(OrderedDict, [("x", Call(os.system, command))])]},
        "open": Call(open, marker, "w"),
    }[kind]


KINDS = ("os.system", "builtins.eval", "builtins.exec", "importlib", "nested", "open")


@pytest.mark.parametrize("form", ["zip", "legacy", "pkl"])
@pytest.mark.parametrize("kind", KINDS)
def test_malicious_file_is_refused_by_name_and_executes_nothing(tmp_path, kind, form):
    marker = tmp_path / "executed"
    data = {"model": STATE, "payload": malicious(kind, str(marker))}
    if form == "pkl":
        path = write_pickle(tmp_path / "a.pkl", {"payload": data["payload"]})
    else:
        path = write_torch(tmp_path / "a.pth", data, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UnsafeCheckpointError, match=r"is refused: it asks for \S+") as error:
        load_checkpoint_file(path)
    name = {"nested": "system", "importlib": "import_module"}.get(kind, kind.split(".")[-1])
    assert name in str(error.value)
    assert path in str(error.value)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["a.pkl", "a.pth"])
def test_pickled_torch_tensors_are_refused_with_the_remedy(tmp_path, name):
    for value in (torch.zeros(2), torch.nn.Parameter(torch.zeros(2))):
        path = write_pickle(tmp_path / name, {"model": {"w": value}})
        with pytest.raises(
            UnsafeCheckpointError, match=r"pickled without torch\.save; use the orig"
        ):
            load_checkpoint_file(path)


def test_what_getattr_returns_cannot_be_called(tmp_path, history_buffer):
    # opcode by opcode, because pickle refuses to write a call of something that is no function
    code = b"\x80\x02}X\x05\x00\x00\x00modelcbuiltins\ngetattr\n"
    code += b"cmmengine.logging.history_buffer\nHistoryBuffer\nX\x04\x00\x00\x00mean\x86R"
    code += b"X\x01\x00\x00\x00x\x85Rs."
    path = write_torch(tmp_path / "a.pth", {"model": 0})
    replace_pickle(path, code)
    with pytest.raises(CheckpointError):
        load_checkpoint_file(path)


def replace_pickle(path: str, code: bytes) -> None:
    """Put another pickle into the archive that torch wrote."""
    import zipfile

    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, code if name.endswith("data.pkl") else content)


@pytest.mark.parametrize(
    "array",
    [np.array([{"a": 1}, None], dtype=object), np.array(["a", "b"]), np.zeros(2, "i4,f4")],
)
def test_arrays_of_anything_but_numbers_are_refused(tmp_path, array):
    path = write_pickle(tmp_path / "a.pkl", {"model": {"w": array}})
    with pytest.raises(CheckpointError, match=r"a\.pkl"):
        load_checkpoint_file(path)


def test_array_that_claims_more_than_it_holds_is_refused(tmp_path):
    content = pickle.dumps({"model": {"w": np.arange(100, dtype=np.uint8)}}, protocol=2)
    assert content.count(b"Kd\x85") == 1  # the shape (100,)
    (tmp_path / "a.pkl").write_bytes(content.replace(b"Kd\x85", b"K\xff\x85"))
    with pytest.raises(CorruptCheckpointError):
        load_checkpoint_file(str(tmp_path / "a.pkl"))


# ---------------------------------------------------------------------- files that are damaged


def damaged_files(tmp_path):
    whole = {
        "zip.pth": write_torch(tmp_path / "zip.pth", {"model": STATE}),
        "legacy.pth": write_torch(
            tmp_path / "legacy.pth", {"model": STATE}, _use_new_zipfile_serialization=False
        ),
        "a.pkl": write_pickle(tmp_path / "a.pkl", {"model": {"w": np.zeros(50)}}),
    }
    from safetensors.torch import save_file

    save_file(dict(STATE), tmp_path / "a.safetensors")
    whole["a.safetensors"] = str(tmp_path / "a.safetensors")
    return whole


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth", "a.pkl", "a.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_file_is_reported_as_such_naming_it(tmp_path, name, share):
    path = damaged_files(tmp_path)[name]
    size = os.path.getsize(path)
    os.truncate(path, int(size * share))
    # In torch's old format the cut may go through a name, which is then refused as unknown.
    kind = CheckpointError if name == "legacy.pth" else CorruptCheckpointError
    with pytest.raises(kind, match=name):
        load_checkpoint_file(path)


def test_flipped_bits_in_a_torch_file_are_noticed(tmp_path):
    path = tmp_path / "a.pth"
    write_torch(path, {"model": {"w": torch.zeros(1000)}})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)
    torch.load(path, weights_only=True)  # torch itself does not notice
    with pytest.raises(CorruptCheckpointError, match="checksum"):
        load_checkpoint_file(str(path))


@pytest.mark.parametrize("name", ["a.pth", "a.pkl", "a.safetensors"])
def test_file_that_is_no_checkpoint_is_reported_as_such(tmp_path, name):
    (tmp_path / name).write_text("MODEL:\n  WEIGHTS: x\n")
    with pytest.raises(CorruptCheckpointError, match=name):
        load_checkpoint_file(str(tmp_path / name))


@pytest.mark.parametrize("data", [torch.zeros(3), [1, 2], 5])
def test_file_without_dictionary_is_refused(tmp_path, data):
    with pytest.raises(CheckpointError, match="must hold a dictionary"):
        load_checkpoint_file(write_torch(tmp_path / "a.pth", data))


def test_absent_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"`nowhere/a.pth` does not exist"):
        load_checkpoint_file("nowhere/a.pth")


def test_text_file_is_refused_without_advice_to_load_it_unsafely(tmp_path):
    path = tmp_path / "notes.pth"
    path.write_text("# Notes\n\nThis is no checkpoint.\n")
    with pytest.raises(CorruptCheckpointError, match="no checkpoint") as caught:
        load_checkpoint_file(str(path))
    assert "weights_only" not in str(caught.value) and "arbitrary" not in str(caught.value)
