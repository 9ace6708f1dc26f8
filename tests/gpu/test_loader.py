"""Batches on the GPU: the values of the CPU's loader, copied beside the computation."""

from itertools import islice

import pytest
import torch
from detectron2.utils.events import EventStorage

from offseg_d2.config import load_config
from offseg_d2.data import build_train_loader
from offseg_d2.engine import TrainLoop
from offseg_d2.modeling import build_model
from offseg_d2.solver import build_gradient_clipper, build_optimizer
from tests.gpu.test_programs import CONFIG

pytestmark = pytest.mark.gpu


def make_cfg(scenes, device, *changes):
    keys = ["INPUT.PHOTOMETRIC_DISTORTION", True, "SEED", 5, "MODEL.DEVICE", device, *changes]
    return load_config(CONFIG, [*scenes, *keys])


@pytest.mark.parametrize("on_device", [False, True], ids=["by workers", "on the device"])
@pytest.mark.parametrize("mapper", ["sem_seg", "instances"])
def test_samples_are_those_of_the_cpu(scenes, device, mapper, on_device):
    keys = "INPUT.DATASET_MAPPER_NAME", mapper
    expected = build_train_loader(make_cfg(scenes, "cpu", *keys))
    found = build_train_loader(
        make_cfg(scenes, device, *keys, "INPUT.AUGMENT_ON_DEVICE", on_device)
    )
    busy = torch.rand(4096 if device == "cuda" else 64, device=device).outer
    results = []
    for samples in islice(found, 8):
        for _ in range(20):  # the copies of the next batch run beside it
            busy(busy.__self__)
        for sample in samples:
            assert sample["image"].device.type == sample["sem_seg"].device.type == device
            # Read behind the work above, when the batches that follow are long on their way.
            masks = sample["instances"].gt_masks if mapper == "instances" else sample["sem_seg"]
            results.append((sample["image"] + 0, sample["sem_seg"] + 0, masks + 0))
    flat = [sample for samples in islice(expected, 8) for sample in samples]
    for sample, (image, labels, masks) in zip(flat, results, strict=True):
        assert torch.equal(labels.cpu(), sample["sem_seg"])
        error = (image.cpu().int() - sample["image"].int()).abs().max()
        assert error <= (5 if on_device else 0)  # contrast 1.5 on rounding
        if mapper == "instances":
            assert torch.equal(masks.cpu() > 0, sample["instances"].gt_masks)


@pytest.mark.parametrize("on_device", [False, True], ids=["by workers", "on the device"])
def test_steps_never_wait_for_the_device(scenes, device, on_device):
    cfg = make_cfg(scenes, device, "INPUT.AUGMENT_ON_DEVICE", on_device)
    model = build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    loop = TrainLoop(
        model,
        optimizer,
        build_train_loader(cfg),
        device=torch.device(device),
        clip_gradients=build_gradient_clipper(cfg),
        log_period=100,
    )
    loop.start_iter, loop.max_iter = 0, 1000
    with EventStorage() as loop.storage:
        try:
            for loop.iter in range(6):
                if loop.iter == 3 and device == "cuda":  # what is cached is there
                    torch.cuda.set_sync_debug_mode("error")
                loop.run_step()
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")
        loop.read_steps()
        assert loop.storage.latest()["total_loss"][0] > 0
