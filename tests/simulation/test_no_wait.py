"""On a GPU, training steps and label maps ask the device for no value; shown without a GPU.

The pretended device raises where a value would be needed. The counts of operations and bytes are
compared with a table, so that what makes a step more expensive is noticed.
"""

import json

import pytest
import torch

from offseg_d2.analysis.simulation import Cost, WaitError, pretended_device
from tests.modeling.test_hosts import HOSTS, MASK_QUERY
from tests.simulation.record import SIZE, TABLE, config
from tests.simulation.steps import fake_model, label_maps, training_step

TYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check(name: str, cost: Cost) -> None:
    """No more than 5 % above what ``python -m tests.simulation.record`` has recorded."""
    recorded = json.loads(TABLE.read_text(encoding="utf-8"))[name]
    kernels = cost.kernels.total()
    assert kernels <= 1.05 * recorded["kernels"], (kernels, cost.kernels.most_common(12))
    assert cost.moved <= 1.05 * recorded["bytes"], cost.moved


@pytest.mark.parametrize("host", HOSTS)
def test_a_training_step_asks_the_device_for_nothing_but_the_costs_of_matching(host):
    cost = training_step(config(host), SIZE, refuse=True, allowed=int(host == MASK_QUERY))
    assert len(cost.waits) == int(host == MASK_QUERY)
    check(f"{host} training step", cost)


@pytest.mark.parametrize("host", HOSTS)
def test_a_label_map_asks_the_device_for_nothing(host):
    check(f"{host} label map", label_maps(config(host), SIZE, refuse=True))


@pytest.mark.parametrize("host", ["segformer_b0", MASK_QUERY])
@pytest.mark.parametrize("way", ["slide", "tta"])
def test_windows_and_augmentation_ask_the_device_for_nothing(host, way):
    assert label_maps(config(host), SIZE, way, refuse=True).kernels.total() > 0


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_and_its_scaler_ask_the_device_for_nothing(precision):
    cost = training_step(config("segformer_b0"), SIZE, TYPES[precision], refuse=True)
    scales = any(name.startswith("aten::_amp") for name in cost.kernels)
    assert scales == (precision == "float16")


@pytest.mark.slow
@pytest.mark.parametrize("precision", TYPES)
@pytest.mark.parametrize("classifier", ["offset", "plain"])
@pytest.mark.parametrize("host", HOSTS)
def test_every_host_classifier_and_precision(host, classifier, precision):
    cfg = config(host, classifier)
    training_step(cfg, SIZE, TYPES[precision], refuse=True, allowed=int(host == MASK_QUERY))
    for way in ("whole", "slide", "tta"):
        label_maps(cfg, SIZE, way, refuse=True)


def on_device(*shape: int) -> torch.Tensor:
    return torch.ones(shape, device="cuda")


WAITS = {
    "item": lambda x: x.sum().item(),
    "int": lambda x: int(x[0, 0]),
    "branch": lambda x: bool((x > 0).all()),
    "nonzero": lambda x: x.nonzero(),
    "boolean index": lambda x: x[x > 0],
    "list": lambda x: x[0].tolist(),
    "equal": lambda x: torch.equal(x, x + 1),
    "to the host": lambda x: x.cpu(),
    "from the host": lambda x: torch.zeros(2, 3, device="cpu").to(x.device),
    "index of the host": lambda x: x[torch.tensor([0, 1], device="cpu")],
}


@pytest.mark.parametrize("ask", WAITS.values(), ids=WAITS)
def test_the_pretended_device_refuses_what_would_wait(ask):
    _, mode = fake_model(config("segformer_b0"))
    with pretended_device(mode, refuse=True), pytest.raises(WaitError, match="waits"):
        ask(on_device(2, 3))


def test_devices_cannot_be_mixed():
    _, mode = fake_model(config("segformer_b0"))
    with pretended_device(mode), pytest.raises(Exception, match=r"device"):
        on_device(2, 3) + torch.ones(2, 3, device="cpu")


def test_kernels_and_bytes_by_hand():
    _, mode = fake_model(config("segformer_b0"))
    with pretended_device(mode, refuse=True) as cost:
        x = torch.empty(4, 8, device="cuda")  # an allocation: nothing
        x.t().reshape(2, 16).flatten()  # one copy: 128 bytes read, 128 written
        x.view(32)[None].expand(3, 32) * 2.0  # 128 read, as expanding stores nothing; 384 written
        x.add_(1)  # 128 read, 128 written
    assert dict(cost.kernels) == {"aten::clone": 1, "aten::mul": 1, "aten::add_": 1}
    assert cost.moved == 2 * 128 + (128 + 384) + 2 * 128
