"""The meta-architecture of the mask-query hosts, after Detectron2's contract.

Semantic segmentation from class and mask of every query, as in Mask2Former (arXiv:2112.01527) and
MaskFormer (arXiv:2107.06278), section 3.4: a pixel's score of a class is the sum over the queries
of class probability times mask probability.

Shapes: B batch, Q queries, K classes, (H, W) the network's input.
"""

import contextlib
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from offseg_d2.modeling.criterion import SetCriterion
from offseg_d2.modeling.meta_arch.common import common_size, pad_to, stack_padded
from offseg_d2.modeling.meta_arch.inference import resize_logits
from offseg_d2.modeling.meta_arch.scores import MapScores, Scores, band_height
from offseg_d2.modeling.meta_arch.segmentor import Segmentor

# In training, targets and predicted masks must cover the same extent, so sizes are multiples of the
# coarsest stride also where a backbone takes any size.
LEAST_MULTIPLE = 32


@META_ARCH_REGISTRY.register()
class MaskSegmentor(Segmentor):
    """Semantic segmentation by classifying masks.

    Its head gives "pred_logits" (B, Q, K + 1) and "pred_masks" (B, Q, h, w), and has
    ``num_queries``, see :class:`MaskFormerHead`.

    Args:
        criterion: outputs of the head and targets -> dict of weighted losses.
        kwargs: see :class:`Segmentor`.
    """

    head_kind = "a head of queries, such as MaskFormerHead"

    @classmethod
    def takes_head(cls, head: type) -> bool:
        return hasattr(head, "num_queries")

    @configurable
    def __init__(self, *, criterion: nn.Module, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.criterion = criterion

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {**super().from_config(cfg), "criterion": SetCriterion(cfg)}

    def probabilities(self, scores: Tensor) -> Tensor:
        """The scores themselves: they are sums of probabilities already."""
        return scores

    def forward_network(self, images: Tensor) -> Tensor:
        """Normalised (B, 3, H, W) of any size -> scores (B, K, H, W), each at least 0."""
        height, width = images.shape[-2:]
        probabilities, masks, resized = self._forward_queries(images)
        masks = resize_logits(masks, resized)[..., :height, :width].sigmoid()
        device = masks.device.type
        with (
            torch.autocast(device, enabled=False)
            if torch.is_autocast_enabled(device)
            else contextlib.nullcontext()
        ):
            return torch.einsum("bqk,bqhw->bkhw", probabilities.to(masks), masks)

    def forward_scores(self, images: Tensor) -> list[Scores]:
        """Scores of each image as of :meth:`forward_network`, computed when they are read."""
        probabilities, masks, resized = self._forward_queries(images)
        size = (images.shape[-2], images.shape[-1])
        return [
            QueryScores(of_image, of_masks, resized, size)
            for of_image, of_masks in zip(probabilities, masks, strict=True)
        ]

    def _forward_queries(self, images: Tensor) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Class probabilities (B, Q, K), mask logits (B, Q, h, w), and the masks' final size."""
        padded = self._padded(images)
        outputs = self.sem_seg_head(self.backbone(padded))
        logits = outputs["pred_logits"]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        probabilities = logits.softmax(dim=-1)[..., :-1]  # (B, Q, K), without the no-object class
        masks = outputs["pred_masks"]
        masks = masks.to(torch.promote_types(masks.dtype, torch.float32))
        return probabilities, masks, (padded.shape[-2], padded.shape[-1])

    def losses(
        self, images: Tensor | list[Tensor], batched_inputs: list[dict[str, Any]]
    ) -> dict[str, Tensor]:
        """The criterion's losses.

        Args:
            images: normalised, (3, H, W), or a tensor of them.
            batched_inputs: "instances" of each: "gt_classes" (M,) int64 and "gt_masks" (M, H, W)
                bool, one mask per class that is present.

        Raises:
            ValueError: if one has no "instances".
        """
        if not all("instances" in sample for sample in batched_inputs):
            raise ValueError(
                "`INPUT.DATASET_MAPPER_NAME` must be one that yields masks, such as 'instances', "
                'to train MaskSegmentor, but its samples have no "instances".'
            )
        multiple = max(self.backbone.size_divisibility, LEAST_MULTIPLE)
        height, width = common_size(images, self.train_size, multiple)
        batch = stack_padded(images, height, width)
        targets = []
        for sample in batched_inputs:
            instances = sample["instances"]
            masks = self.to_device(instances.gt_masks)
            # Padding belongs to no mask: it counts as background of each.
            targets.append(
                {
                    "labels": self.to_device(instances.gt_classes),
                    "masks": pad_to(masks, height, width),
                }
            )
        return self.criterion(self.sem_seg_head(self.backbone(batch)), targets)


class QueryScores(Scores):
    """Scores of the classes at each pixel: over all queries, class times mask probability.

    Masks are resized as logits, then turned into probabilities, some rows at a time; the masks of
    all queries never exist at full size.

    Args:
        class_probabilities: (Q, K).
        mask_logits: (Q, h, w).
        resized: (height, width) to which the masks are resized, bilinearly, half-pixel centres.
        size: (H, W), the upper left part of it that counts; by default all.
    """

    def __init__(
        self,
        class_probabilities: Tensor,
        mask_logits: Tensor,
        resized: tuple[int, int],
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(class_probabilities.shape[1], size or resized)
        self._masks = MapScores(mask_logits, resized, size)
        self._class_probabilities = class_probabilities.to(
            torch.promote_types(mask_logits.dtype, torch.float32)
        )

    def rows(self, first: int, end: int) -> Tensor:
        """(K, end - first, W), laid out with the classes innermost."""
        queries, classes = self._class_probabilities.shape
        scores = self._class_probabilities.new_empty(end - first, self.size[1], classes)
        step = band_height(queries, self.size[1])
        for top in range(first, end, step):
            bottom = min(top + step, end)
            masks = self._masks.rows(top, bottom).permute(1, 2, 0).sigmoid()  # (rows, W, Q)
            scores[top - first : bottom - first] = masks @ self._class_probabilities
        return scores.permute(2, 0, 1)
