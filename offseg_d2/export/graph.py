"""The network as one function of tensors: image in, class scores and label map out.

What an exported graph holds: normalisation, padding, backbone, head, resize to the input size,
argmax.

Shapes: B batch, K classes, H x W input.
"""

import copy
import math

import torch
from torch import Tensor, nn

from offseg_d2.export.check import ROUNDING, THRESHOLDS, Tolerance
from offseg_d2.layers import NMF2D
from offseg_d2.modeling import MaskSegmentor, Segmentor
from offseg_d2.modeling.meta_arch.common import common_size, pad_to

_OPTIMIZED = "offseg_d2.deploy."


class SegmentationGraph(nn.Module):
    """A copy of a model of this package, on the CPU and without dicts, for one export.

    Args:
        model: in evaluation mode.
        reverse_channels: the model reads BGR; the graph reads RGB in any case.
        pad: zero-pad inside to what the network needs; False if inputs are such multiples.

    Raises:
        TypeError: if the model is no meta-architecture of this package, or an optimized one.
        ValueError: if it is in training mode.
    """

    def __init__(
        self, model: nn.Module, *, reverse_channels: bool = False, pad: bool = True
    ) -> None:
        super().__init__()
        _check_exportable(model)
        self.model = _exportable_copy(model)
        self.reverse_channels = reverse_channels
        self.pad = pad

    @property
    def tolerance(self) -> Tolerance:
        """Tolerated difference between an exported file and it."""
        return THRESHOLDS if isinstance(self.model, MaskSegmentor) else ROUNDING

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and label map of a batch.

        Args:
            image: (B, 3, H, W) RGB, 0..255, float or uint8.

        Returns:
            scores (B, K, H, W), logits or (mask-query models) sums of probabilities; and their
            argmax (B, H, W), uint8 for up to 256 classes, else int64.
        """
        if self.reverse_channels:
            image = image.flip(1)
        images = self.model.normalise(image)
        height, width = images.shape[-2:]
        if self.pad:
            least = max(shape.stride for shape in self.model.backbone.output_shape().values())
            size = common_size([images], (least, least), size_multiple(self.model))
            images = pad_to(images, *size)
        scores = self.model.forward_network(images)
        if self.pad:
            scores = scores[..., :height, :width]
        labels = scores.argmax(dim=1)
        return scores, labels.to(torch.uint8) if scores.shape[1] <= 256 else labels


class OneOutput(nn.Module):
    """A :class:`SegmentationGraph` that gives the scores or the label map alone.

    Args:
        graph: with both.
        output: "labels" or "logits".
    """

    def __init__(self, graph: SegmentationGraph, output: str) -> None:
        super().__init__()
        self.network = graph  # `graph` is a name that the exporter's own modules use
        self.index = ("logits", "labels").index(output)

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image)[self.index]


def size_multiple(model: Segmentor) -> int:
    """Number that height and width of the network's input must be multiples of, at least 1."""
    return math.lcm(
        max(model.backbone.size_divisibility, 1), max(model.inference.size_divisibility, 1)
    )


def _check_exportable(model: nn.Module) -> None:
    if not isinstance(model, Segmentor):
        raise TypeError(
            "`model` must be a PerPixelSegmentor or a MaskSegmentor to be exported, but is a "
            f"{type(model).__name__}."
        )
    if any(type(part).__module__.startswith(_OPTIMIZED) for part in model.modules()):
        # Its operators are those that PyTorch has fast forms of; other runtimes have others.
        raise TypeError(
            "`model` must be as it was trained to be exported, but is the result of "
            "offseg_d2.deploy.optimize."
        )
    if model.training:
        raise ValueError("`model` must be in evaluation mode to be exported, but is not.")


def _exportable_copy(model: nn.Module) -> nn.Module:
    """A copy on the CPU without gradients; random bases are drawn once."""
    model = copy.deepcopy(model).cpu().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, NMF2D) and module.injected_bases is None:
            module.injected_bases = module.draw_bases(1, torch.device("cpu"))
    return model
