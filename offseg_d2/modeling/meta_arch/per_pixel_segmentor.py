"""The meta-architecture of all per-pixel hosts: each pixel is classified.

Shapes: B batch, K classes, H x W the network's input, h x w at the head's stride.
"""

import inspect
from typing import Any

import torch
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from offseg_d2.modeling.meta_arch.common import common_size, stack_padded
from offseg_d2.modeling.meta_arch.inference import resize_logits
from offseg_d2.modeling.meta_arch.scores import MapScores, Scores
from offseg_d2.modeling.meta_arch.segmentor import Segmentor


@META_ARCH_REGISTRY.register()
class PerPixelSegmentor(Segmentor):
    """Semantic segmentation by classifying each pixel.

    Its head gives logits (B, K, h, w) at any stride, and has
    ``losses(logits, targets, size) -> {"loss_...": scalar}`` and ``ignore_value``, see
    :class:`PerPixelHead`.

    Args:
        kwargs: see :class:`Segmentor`.
    """

    head_kind = "a per-pixel head, such as PerPixelHead"

    @classmethod
    def takes_head(cls, head: type) -> bool:
        # Heads of Detectron2's SemanticSegmentor have `losses` too, but without a size.
        losses = getattr(head, "losses", None)
        return losses is not None and "size" in inspect.signature(losses).parameters

    def probabilities(self, scores: Tensor) -> Tensor:
        return scores.softmax(dim=0)

    def forward_network(self, images: Tensor) -> Tensor:
        """Normalised (B, 3, H, W) of any size -> logits (B, K, H, W)."""
        height, width = images.shape[-2:]
        logits, resized = self._forward_logits(images)
        return resize_logits(logits, resized)[..., :height, :width]

    def forward_scores(self, images: Tensor) -> list[Scores]:
        """Logits of each image as of :meth:`forward_network`, resized when they are read."""
        logits, resized = self._forward_logits(images)
        size = (images.shape[-2], images.shape[-1])
        return [MapScores(score_map, resized, size) for score_map in logits]

    def _forward_logits(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Logits at the head's stride, and the size that they are to be resized to."""
        padded = self._padded(images)
        logits = self.sem_seg_head(self.backbone(padded))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits, (padded.shape[-2], padded.shape[-1])

    def losses(
        self, images: Tensor | list[Tensor], batched_inputs: list[dict[str, Any]]
    ) -> dict[str, Tensor]:
        """The head's losses; each dictionary has "sem_seg": (H, W) class ids of integer type."""
        height, width = common_size(images, self.train_size, 1)
        batch = stack_padded(images, height, width)
        ignore = self.sem_seg_head.ignore_value
        labels = [self.to_device(x["sem_seg"]) for x in batched_inputs]
        targets = stack_padded(labels, height, width, ignore)
        logits, resized = self._forward_logits(batch)
        return self.sem_seg_head.losses(logits, targets.long(), resized)
