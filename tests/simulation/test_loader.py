"""Batches on their way to a pretended GPU: copies beside the training step, and nothing waits."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from offseg_d2.analysis.simulation import pretended_device
from offseg_d2.data.loader import SampleLoader
from tests.data.common import camvid_cfg
from tests.modeling.test_hosts import MASK_QUERY
from tests.simulation.record import SIZE, config
from tests.simulation.steps import CUDA, collated_batch, device_augmentation, training_step
from tests.simulation.streams import RaceError, StreamLog, pretended_streams

SIZES = {"one size": [(160, 200)] * 3, "different sizes": [(160, 200), (150, 210), (90, 64)]}
NUMBER = 4  # of batches


def augmentation():
    cfg = camvid_cfg()
    cfg.INPUT.VERTICAL_FLIP_PROBABILITY = 0.5
    return device_augmentation(cfg)


def use(samples: list[dict]) -> Tensor:
    """Read all that has come."""
    masks = [sample["instances"].gt_masks.sum() for sample in samples]
    maps = [sample["image"].sum() + sample["sem_seg"].sum() for sample in samples]
    return torch.stack([*masks, *maps]).sum()


def run(sizes, augment=None, *, pin=True) -> StreamLog:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with pretended_device(mode, refuse=True), pretended_streams() as log:
        batches = [collated_batch(sizes, augment) for _ in range(NUMBER)]
        if not pin:
            log.pinned.clear()
        for samples in SampleLoader(batches, device=CUDA, augmentation=augment):
            assert isinstance(samples, list) and all(isinstance(s, dict) for s in samples)
            tensors = [value for s in samples for value in s.values() if isinstance(value, Tensor)]
            assert all(tensor.is_cuda for tensor in tensors)
            assert [s["image"].shape[1:] for s in samples] == [torch.Size(size) for size in sizes]
            log.operations.append(("main", "step"))
            use(samples)
        log.check_memory()
    return log


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("augment", [None, augmentation()], ids=["copied", "augmented"])
def test_copies_run_one_batch_ahead_on_a_stream_of_their_own(augment, sizes):
    operations = run(sizes, augment).operations
    steps = [at for at, (_, name) in enumerate(operations) if name == "step"]
    started = [sum(stream == "side" for stream, _ in operations[:at]) for at in steps]
    of_a_batch = started[-1] / NUMBER
    assert of_a_batch > (20 if augment else 0)
    assert started == [of_a_batch * min(step + 2, NUMBER) for step in range(NUMBER)]


def test_images_and_label_maps_of_a_batch_are_one_copy_each():
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with pretended_device(mode, refuse=True) as cost, pretended_streams():
        batch = collated_batch([(160, 200)] * 3, with_masks=False)
        next(iter(SampleLoader([batch], device=CUDA)))
    assert cost.kernels == {"aten::_to_copy": 2}
    assert cost.moved == 3 * (3 + 1) * 160 * 200  # bytes, written


@pytest.mark.parametrize("host", ["segformer_b0", MASK_QUERY])
def test_a_step_with_the_augmentation_asks_the_device_for_nothing(host):
    plain, cfg = config(host), config(host)
    cfg.INPUT.AUGMENT_ON_DEVICE = True
    matching = int(host == MASK_QUERY)
    costs = [training_step(c, SIZE, refuse=True, allowed=matching) for c in (plain, cfg)]
    assert [len(cost.waits) for cost in costs] == [matching] * 2
    kernels = [cost.kernels.total() for cost in costs]
    assert 20 < kernels[1] - kernels[0] < 80


def test_the_simulation_refuses_memory_that_is_not_pinned():
    with pytest.raises(RaceError, match="not pinned"):
        run(SIZES["one size"], pin=False)


@pytest.mark.parametrize("forgotten", ["wait_event", "record_stream"])
def test_the_simulation_refuses_streams_without_order(forgotten, monkeypatch):
    if forgotten == "wait_event":
        monkeypatch.setattr("tests.simulation.streams.Stream.wait_event", lambda *_: None)
        message = "still writes"
    else:
        monkeypatch.setattr("tests.simulation.streams.StreamLog.record", lambda *_: None)
        message = "record_stream"
    with pytest.raises(RaceError, match=message):
        run(SIZES["one size"], augmentation())
