"""Which form of a layer runs. Tensors pretend to be on a GPU: none is needed."""

import importlib
import logging
import subprocess
import sys

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from offseg_d2.layers import carafe, neighbour_similarity, resized_cross_entropy
from offseg_d2.layers.kernels import argmax_kernel, choice, enable_kernels, kernels_apply
from offseg_d2.modeling import build_model
from tests.common import offseg_config


class Operators(TorchDispatchMode):
    """Collects the names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace != "prim":  # questions, such as that for the device
            self.names.append(function.name())
        return function(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def _enabled(monkeypatch):
    monkeypatch.setattr(choice, "_enabled", True)
    monkeypatch.setattr(choice, "_AVAILABLE", True)
    monkeypatch.setattr(torch.version, "hip", None)
    choice._say.cache_clear()


def run_layers(device="cuda", dtype=torch.float32) -> tuple[list[str], list[torch.Tensor]]:
    """Operators and results of the three layers on fake tensors."""
    with FakeTensorMode(), Operators() as operators:
        features = torch.empty(2, 8, 4, 6, device=device, dtype=dtype)
        kernels = torch.empty(2, 9, 8, 12, device=device, dtype=dtype)
        targets = torch.empty(2, 13, 22, device=device, dtype=torch.int64)
        operators.names.clear()
        results = [carafe(features, kernels, 3, 2), neighbour_similarity(features)]
        if kernels_apply(features):  # bands depend on values, which fake tensors lack
            results.append(resized_cross_entropy(features, targets, (16, 24), ignore_index=255))
    return operators.names, results


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_each_layer_is_one_kernel(dtype):
    names, results = run_layers(dtype=dtype)
    ours = [f"offseg_d2::{x}" for x in ("carafe", "neighbour_similarity", "resized_cross_entropy")]
    assert [name for name in names if name.startswith("offseg_d2")] == ours
    assert len(names) == 4 + (dtype != torch.float32)  # the loss is summed, cosines get their type
    assert [x.dtype for x in results] == [dtype, dtype, torch.float32]
    assert [tuple(x.shape) for x in results] == [(2, 8, 8, 12), (2, 8, 4, 6), ()]
    assert all(x.device.type == "cuda" for x in results)


def test_argmax_has_the_wanted_type_and_size():
    with FakeTensorMode():
        labels = argmax_kernel(torch.empty(2, 5, 4, 6, device="cuda"), 16, 24, 9, 22, torch.int16)
    assert (labels.dtype, tuple(labels.shape)) == (torch.int16, (2, 9, 22))


def does_pytorch(names: list[str]) -> bool:
    return len(names) > 20 and not any(name.startswith("offseg_d2") for name in names)


def test_key_turns_the_kernels_off():
    enable_kernels(False)
    assert does_pytorch(run_layers()[0])
    enable_kernels(True)
    assert not does_pytorch(run_layers()[0])


@pytest.mark.parametrize("enabled", [True, False])
def test_key_is_read_where_a_model_is_built(enabled):
    choice._enabled = not enabled
    build_model(offseg_config("MODEL.TRITON_KERNELS", enabled, model="segformer_b0"))
    assert choice._enabled == enabled


def test_without_triton_pytorch_runs(monkeypatch):
    monkeypatch.setattr(choice, "_AVAILABLE", False)
    assert does_pytorch(run_layers()[0])


@pytest.mark.parametrize(
    ("device", "dtype"), [("cpu", torch.float32), ("meta", torch.float32), ("cuda", torch.float64)]
)
def test_other_devices_and_types_are_pytorchs(device, dtype):
    assert does_pytorch(run_layers(device, dtype)[0])


def test_rocm_is_pytorchs(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.0")
    try:
        assert not importlib.reload(choice)._AVAILABLE
    finally:
        monkeypatch.undo()
        importlib.reload(choice)


@pytest.mark.parametrize(("major", "applies"), [(7, False), (8, True), (12, True)])
def test_old_gpus_are_pytorchs(monkeypatch, major, applies):
    properties = type("Properties", (), {"major": major})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    tensor = type("OnGpu", (), {"device": torch.device("cuda"), "dtype": torch.float32})
    tensor.numel = lambda: 1
    assert kernels_apply(tensor) == applies


def test_the_log_says_it_once(monkeypatch, caplog):
    properties = type("Properties", (), {"major": 9})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    with caplog.at_level(logging.INFO, choice.__name__):
        for enabled in (True, True, False):
            enable_kernels(enabled)
    assert caplog.messages == [
        "CARAFE, similarity and loss run as Triton kernels.",
        "No Triton kernels, as the configuration says.",
    ]


def test_without_a_gpu_triton_is_not_imported():
    code = (
        "import sys, torch\n"
        "sys.modules['triton'] = None\n"
        "from offseg_d2.layers import carafe\n"
        "print(list(carafe(torch.ones(1, 1, 2, 2), torch.ones(1, 9, 4, 4), 3, 2).shape))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "[1, 1, 4, 4]\n", result.stderr
