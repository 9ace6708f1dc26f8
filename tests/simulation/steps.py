"""Training steps and predictions on a pretended GPU."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from offseg_d2.analysis.simulation import Cost, pretend, pretended_device
from offseg_d2.data import build_augmentations
from offseg_d2.data.batches import CollatedBatch, collate
from offseg_d2.data.device_augmentation import DeviceAugmentation, split_for_device
from offseg_d2.data.loader import SampleLoader
from offseg_d2.engine import TrainLoop
from offseg_d2.engine.ema import WeightAverage
from offseg_d2.modeling.meta_arch.evaluation_model import AugmentationSettings, AugmentedModel
from offseg_d2.modeling.meta_arch.inference import InferenceSettings
from offseg_d2.solver import build_gradient_clipper, build_optimizer
from tests.simulation.streams import pretended_streams

CUDA = torch.device("cuda")
MASKS = 3  # of an image


Convert = Callable[[nn.Module], nn.Module]


def fake_model(
    cfg: CfgNode, convert: Convert = lambda model: model
) -> tuple[nn.Module, FakeTensorMode]:
    """A model on the pretended device, and the mode that its stand-ins come from."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    return pretend(convert(build_model(cfg)), mode), mode


def fake_sample(height: int, width: int) -> dict[str, Any]:
    """A sample in memory of the host, as a loader gives it."""
    instances = Instances((height, width))
    instances.gt_classes = torch.zeros(MASKS, dtype=torch.int64)
    instances.gt_masks = torch.zeros(MASKS, height, width, dtype=torch.bool)
    return {
        "image": torch.zeros(3, height, width, dtype=torch.uint8),
        "sem_seg": torch.zeros(height, width, dtype=torch.uint8),
        "instances": instances,
    }


def device_augmentation(cfg: CfgNode) -> DeviceAugmentation:
    """What ``INPUT.AUGMENT_ON_DEVICE`` leaves to the device."""
    _, last = split_for_device(build_augmentations(cfg, is_train=True))
    return DeviceAugmentation(last, red_first=cfg.INPUT.FORMAT == "RGB")


def collated_batch(
    sizes: Sequence[tuple[int, int]],
    augmentation: DeviceAugmentation | None = None,
    *,
    with_masks: bool = True,
) -> CollatedBatch:
    """Samples as a worker of the training loader sends them, in pinned memory."""
    samples = [fake_sample(*size) for size in sizes]
    for sample, size in zip(samples, sizes, strict=True):
        if augmentation is not None:
            sample["draws"] = augmentation.draw(np.zeros((*size, 3), dtype=np.uint8))
            sample["instances"].remove("gt_masks")
        if not with_masks:
            del sample["instances"]
    return collate(samples).pin_memory()


@contextmanager
def work_of_the_host() -> Iterator[None]:
    """What the host computes from values, which stand-ins have not got."""

    def assign(cost: Tensor) -> tuple[Tensor, Tensor]:
        return torch.arange(min(cost.shape)), torch.arange(min(cost.shape))

    def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
        return image.new_empty(3, *size)

    with (
        mock.patch("offseg_d2.modeling.matcher.assign", assign),
        mock.patch("offseg_d2.modeling.meta_arch.evaluation_model._resize", resize),
    ):
        yield


def training_step(
    cfg: CfgNode,
    size: tuple[int, int],
    amp_dtype: torch.dtype | None = None,
    *,
    batch_size: int = 2,
    clip: bool = True,
    convert: Convert = lambda model: model,
    **log_options: Any,
) -> Cost:
    """One iteration of the trainer's loop between two readings of the log.

    From the batch in memory of the host, with the augmentation if that is left to the device, to
    the average of weights.
    """
    model, mode = fake_model(cfg, convert)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = clip
    optimizer = build_optimizer(cfg, model.train())
    with work_of_the_host(), EventStorage(), mock.patch("torch.cuda.manual_seed_all"):
        with pretended_device(mode):
            average = WeightAverage(model, 0.999)
            loop = TrainLoop(
                model,
                optimizer,
                device=CUDA,
                amp_dtype=amp_dtype,
                clip_gradients=build_gradient_clipper(cfg),
                log_period=100,
            )
            loop.start_iter, loop.max_iter, loop.iter = 0, 1000, 1
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()  # allocates its state
        augmentation = device_augmentation(cfg) if cfg.INPUT.AUGMENT_ON_DEVICE else None
        with pretended_device(mode, **log_options) as cost, pretended_streams() as streams:
            with_masks = cfg.SOLVER.PARAM_GROUPS == "mask_query"
            batch = collated_batch([size] * batch_size, augmentation, with_masks=with_masks)
            loop.data_loader = SampleLoader([batch], device=CUDA, augmentation=augmentation)
            loop.run_step()
            average.update()
            streams.check_memory()
    return cost


def label_maps(
    cfg: CfgNode,
    size: tuple[int, int],
    way: str = "whole",
    *,
    convert: Convert = lambda model: model,
    **options: Any,
) -> Cost:
    """One image's label map: "whole", by sliding window ("slide") or augmented ("tta")."""
    model, mode = fake_model(cfg, convert)
    model.eval()
    if way == "slide":
        crop = tuple(max(32, length // 2) for length in size)
        stride = tuple(length * 3 // 4 for length in crop)
        model.inference = InferenceSettings("slide", crop, stride)
    predict: Callable[..., Any] = model.predict_label_maps
    if way == "tta":
        predict = AugmentedModel(model, AugmentationSettings((0.5, 1.0)))
    with work_of_the_host(), torch.no_grad(), pretended_device(mode, **options) as cost:
        sample = fake_sample(*size) | {"height": size[0] + 5, "width": size[1] + 7}
        predict([sample])
    return cost
