"""On a GPU, training steps and label maps ask the device for no value; shown without a GPU.

The pretended device raises where a value would be needed. The counts of operations and bytes are
compared with a table, so that what makes a step more expensive is noticed.
"""

import json

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from offseg_d2.analysis.simulation import Cost, WaitError, pretend, pretended_device
from offseg_d2.evaluation import to_class_ids
from offseg_d2.modeling.classifiers import OffsetClassifier, OffsetMaskPredictor
from tests.modeling.test_hosts import HOSTS, MASK_QUERY
from tests.simulation.record import SIZE, TABLE, config
from tests.simulation.steps import fake_model, fake_sample, label_maps, training_step

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


@pytest.mark.parametrize("num_classes", [150, 300])
def test_a_label_map_is_copied_to_the_host_once_as_small_integers(num_classes, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "numpy", lambda tensor: tensor)
    cfg = config("segformer_b0")
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = num_classes
    model, mode = fake_model(cfg)
    with torch.no_grad(), pretended_device(mode) as cost:
        (output,) = model.eval().predict_label_maps([fake_sample(*SIZE)])
        scores = torch.empty(num_classes, *SIZE, device="cuda")  # of a model of another's
        for prediction in (output["sem_seg"], scores):
            ids = to_class_ids(prediction, num_classes, "a.png")
            assert ids.is_cpu and ids.shape == SIZE
            assert ids.dtype == (torch.uint8 if num_classes == 150 else torch.int16)
    assert cost.waits == ["aten::_to_copy cuda->cpu"] * 2


@pytest.mark.parametrize("part", ["classifier", "mask predictor"])
def test_softmaxes_of_the_offsets_stay_in_single_precision(part):
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    module = OffsetClassifier(32, 10) if part == "classifier" else OffsetMaskPredictor(32)
    pretend(module, mode)
    with pretended_device(mode), DtypeLog() as log, torch.autocast("cuda", torch.bfloat16):
        features = torch.ones(2, 32, 8, 8, device="cuda", dtype=torch.bfloat16)
        if part == "classifier":
            module(features)
        else:
            module(torch.ones(2, 5, 32, device="cuda", dtype=torch.bfloat16), features)
    assert len(log.softmaxes) >= 2 and set(log.softmaxes) == {torch.float32}


class DtypeLog(TorchDispatchMode):
    """Types that softmaxes are computed in."""

    def __init__(self):
        super().__init__()
        self.softmaxes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name == "aten::_softmax":
            self.softmaxes.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


def test_the_optimizer_is_fused_on_cuda():
    cost = training_step(config("segformer_b0"), SIZE)
    assert [name for name in cost.kernels if "adam" in name] == ["aten::_fused_adamw_"]


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


def test_work_in_place_on_lists_counts():
    _, mode = fake_model(config("segformer_b0"))
    with pretended_device(mode, refuse=True) as cost:
        lists = [[torch.empty(10, device="cuda") for _ in range(40)] for _ in range(2)]
        torch._foreach_add_(*lists)
    assert dict(cost.kernels) == {"aten::_foreach_add_": 2}  # 32 tensors are one
    assert cost.moved == 3 * 40 * 40  # two lists read, one written, of 40 times 10 numbers


def test_kernels_and_bytes_by_hand():
    _, mode = fake_model(config("segformer_b0"))
    with pretended_device(mode, refuse=True) as cost:
        x = torch.empty(4, 8, device="cuda")  # an allocation: nothing
        x.t().reshape(2, 16).flatten()  # one copy: 128 bytes read, 128 written
        x.view(32)[None].expand(3, 32) * 2.0  # 128 read, as expanding stores nothing; 384 written
        x.add_(1)  # 128 read, 128 written
    assert dict(cost.kernels) == {"aten::clone": 1, "aten::mul": 1, "aten::add_": 1}
    assert cost.moved == 2 * 128 + (128 + 384) + 2 * 128
