"""The networks of configurations, and inputs to measure them with."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import Tensor, nn

import offseg_d2.modeling  # noqa: F401  (registers the models)
from offseg_d2.checkpoint import SafeCheckpointer, convert_for_model
from offseg_d2.config import ConfigError


class Network(nn.Module):
    """Backbone and head of a meta-architecture, without what comes before and after.

    Args:
        model: of this package, in any form that keeps ``backbone`` and ``sem_seg_head``.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone, self.sem_seg_head = model.backbone, model.sem_seg_head
        self.train(model.training)

    def forward(self, images: Tensor) -> Any:
        """Normalised (B, 3, H, W), see :func:`padded_size` -> what the head gives (logits)."""
        return self.sem_seg_head(self.backbone(images))


@dataclass(frozen=True)
class InputSpec:
    """Size and number of the images that models are measured with.

    Attributes:
        height, width: of the images in pixels.
        batch: number of images.
    """

    height: int = 512
    width: int = 512
    batch: int = 1

    def __post_init__(self) -> None:
        for name in ("height", "width", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"`{name}` must be positive, but is {getattr(self, name)}.")

    def padded_size(self, model: nn.Module) -> tuple[int, int]:
        """(height, width) that the network sees: a multiple of what its backbone needs."""
        strides = [shape.stride for shape in model.backbone.output_shape().values()]
        divisor = max(model.backbone.size_divisibility, 1)
        height, width = (
            -(-max(size, *strides) // divisor) * divisor for size in (self.height, self.width)
        )
        return height, width

    def images(self, model: nn.Module) -> Tensor:
        """Random images (B, 3, H, W), normalised, of the size that the network sees."""
        size = self.padded_size(model)
        generator = torch.Generator().manual_seed(0)
        return torch.randn(self.batch, 3, *size, generator=generator).to(model.device)

    def samples(self, num_classes: int) -> list[dict[str, Any]]:
        """Inputs of a meta-architecture, with targets of both kinds.

        Images and targets are soft blobs, so that label maps have regions.
        """
        generator = torch.Generator().manual_seed(0)
        size = (self.height, self.width)
        samples = []
        for _ in range(self.batch):
            coarse = torch.rand(1, 3, 6, 8, generator=generator)
            image = F.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)[0]
            sem_seg = (image[0] * (num_classes - 1)).round().long()
            classes = sem_seg.unique()
            instances = Instances(size, gt_classes=classes)
            instances.gt_masks = sem_seg == classes[:, None, None]
            image = (255 * image).byte()
            samples.append({"image": image, "sem_seg": sem_seg, "instances": instances})
        return samples


def build_network(cfg: CfgNode) -> nn.Module:
    """The model of a configuration in evaluation mode; random weights without `MODEL.WEIGHTS`.

    Raises:
        ConfigError: there is no CUDA device for `MODEL.DEVICE`.
    """
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"`MODEL.DEVICE` must be 'cpu' without CUDA, but is {cfg.MODEL.DEVICE!r}."
        )
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    if cfg.MODEL.WEIGHTS:
        checkpointer = SafeCheckpointer(model, convert_state_dict=convert_for_model)
        checkpointer.load(cfg.MODEL.WEIGHTS, checkpointables=[])
    return model


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Automatic mixed precision in ``dtype``; nothing for float32."""
    enabled = dtype != torch.float32
    return torch.autocast(device.type, dtype=dtype if enabled else None, enabled=enabled)
