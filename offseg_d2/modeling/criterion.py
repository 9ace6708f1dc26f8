"""Losses of mask classification: class of every query, mask of every matched one.

Paper: Mask2Former (arXiv:2112.01527), sections 3.2.1 and 3.3; set prediction as in DETR
(arXiv:2005.12872). As in the models of OffSeg, an image without masks counts as one mask where the
number of masks is averaged.

Shapes: B images, Q queries, K classes, M masks of one image, N matched masks of all images,
P points.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from torch import Tensor, nn

from offseg_d2.layers import (
    PointSource,
    points_to_draw,
    sample_points,
    uncertain_points,
    uniform_points,
)
from offseg_d2.modeling.matcher import HungarianMatcher, assign_all

Matches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class _Prediction:
    """One of the predictions that are compared with the targets."""

    suffix: str  # of the names of its losses
    logits: Tensor  # (B, Q, K + 1)
    masks: Tensor  # (B, Q, h, w)
    costs: list[Tensor]  # (Q, M) of each image
    drawn: list[Tensor]  # random points for its mask losses


class SetCriterion(nn.Module):
    """Matches queries with masks and gives the weighted losses of every prediction.

    Args:
        num_classes: K.
        class_weight: weight of the classification loss, and of the class in the matching; this one
            and the next two are at least 0.
        mask_weight: weight of the masks' cross-entropy, and of it in the matching.
        dice_weight: weight of the dice loss, and of it in the matching.
        no_object_weight: weight of unmatched queries in the classification loss, above 0.
        num_points: P.
        oversample_ratio: random points per point of the mask losses, at least 1.
        importance_sample_ratio: share of the most uncertain points, in [0, 1].
        draw: where all random points come from; called in the order of the predictions, for each
            once per image (matching), then for the mask losses.
    """

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        no_object_weight: float = 0.1,
        num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_sample_ratio: float = 0.75,
        draw: PointSource = uniform_points,
    ) -> None:
        super().__init__()
        _check(num_points, oversample_ratio, importance_sample_ratio, no_object_weight)
        _check_weights(CLASS_WEIGHT=class_weight, MASK_WEIGHT=mask_weight, DICE_WEIGHT=dice_weight)
        self.num_classes = num_classes
        self.weights = {"ce": class_weight, "mask": mask_weight, "dice": dice_weight}
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        self.draw = draw
        self.matcher = HungarianMatcher(
            class_weight=class_weight,
            mask_weight=mask_weight,
            dice_weight=dice_weight,
            num_points=num_points,
        )
        # From the configuration alone, so it is no part of a checkpoint.
        empty_weight = torch.ones(num_classes + 1)
        empty_weight[-1] = no_object_weight
        self.register_buffer("empty_weight", empty_weight, persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        keys = cfg.MODEL.MASK_FORMER
        return {
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "class_weight": keys.CLASS_WEIGHT,
            "mask_weight": keys.MASK_WEIGHT,
            "dice_weight": keys.DICE_WEIGHT,
            "no_object_weight": keys.NO_OBJECT_WEIGHT,
            "num_points": keys.TRAIN_NUM_POINTS,
            "oversample_ratio": keys.OVERSAMPLE_RATIO,
            "importance_sample_ratio": keys.IMPORTANCE_SAMPLE_RATIO,
        }

    def forward(
        self, outputs: Mapping[str, Any], targets: Sequence[Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            outputs: "pred_logits" (B, Q, K + 1) and "pred_masks" (B, Q, h, w), both logits; and
                "aux_outputs", the same of earlier predictions, if there are any.
            targets: for each image "labels" (M,) int64 and "masks" (M, H, W), bool or 0..1, in the
                extent of the predicted masks; M may be 0.

        Returns:
            scalars, already weighted: "loss_ce", "loss_mask", "loss_dice", and for prediction i of
            "aux_outputs" "loss_ce_<i>" and so on.
        """
        logits, masks = outputs["pred_logits"], outputs["pred_masks"]
        dtype = torch.promote_types(masks.dtype, torch.float32)
        targets = [{"labels": t["labels"], "masks": t["masks"].to(dtype)} for t in targets]
        num_masks = mean_number_of_masks(targets, logits.shape[1])
        predictions = {f"_{i}": aux for i, aux in enumerate(outputs.get("aux_outputs") or [])}
        losses: dict[str, Tensor] = {}
        prepared: list[_Prediction] = []
        # fp32: unscaled logits, and sums over thousands of points
        with torch.autocast(logits.device.type, enabled=False):
            for suffix, prediction in {**predictions, "": outputs}.items():
                logits, masks = (prediction[k].to(dtype) for k in ("pred_logits", "pred_masks"))
                prepared.append(self._prepare(suffix, logits, masks, targets))
            # The costs of all predictions go to the host at once, the one time that it waits.
            matches = iter(assign_all([cost for p in prepared for cost in p.costs]))
            for prediction in prepared:
                own_matches = [next(matches) for _ in targets]
                own = self._losses_of_prediction(prediction, targets, own_matches, num_masks)
                for name, loss in own.items():
                    losses[f"loss_{name}{prediction.suffix}"] = self.weights[name] * loss
        return losses

    def _prepare(
        self, suffix: str, logits: Tensor, masks: Tensor, targets: Sequence[Mapping[str, Tensor]]
    ) -> "_Prediction":
        """What comes before the matches are known; all random points of a prediction."""
        outputs = {"pred_logits": logits, "pred_masks": masks}
        costs = self.matcher.costs(outputs, targets, self.draw)
        matched = sum(min(cost.shape) for cost in costs)
        drawn: list[Tensor] = []
        if matched:
            shapes = points_to_draw(
                matched,
                self.num_points,
                oversample_ratio=self.oversample_ratio,
                importance_ratio=self.importance_sample_ratio,
            )
            drawn = [self.draw(shape, masks.device) for shape in shapes]
        return _Prediction(suffix, logits, masks, costs, drawn)

    def _losses_of_prediction(
        self,
        prediction: "_Prediction",
        targets: Sequence[Mapping[str, Tensor]],
        matches: Matches,
        num_masks: float | Tensor,
    ) -> dict[str, Tensor]:
        loss_mask, loss_dice = self._mask_losses(prediction, targets, matches, num_masks)
        loss_ce = self._class_loss(prediction.logits, targets, matches)
        return {"ce": loss_ce, "mask": loss_mask, "dice": loss_dice}

    def _class_loss(
        self, logits: Tensor, targets: Sequence[Mapping[str, Tensor]], matches: Matches
    ) -> Tensor:
        """Weighted mean of the cross-entropy over all queries of this process."""
        labels = torch.full(logits.shape[:2], self.num_classes, device=logits.device)  # (B, Q)
        for row, target, (queries, indices) in zip(labels, targets, matches, strict=True):
            row[queries] = target["labels"][indices]
        weight = self.empty_weight.to(logits.dtype)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), weight, reduction="sum")
        return loss / (weight[labels].sum() + torch.finfo(torch.float32).eps)

    def _mask_losses(
        self,
        prediction: "_Prediction",
        targets: Sequence[Mapping[str, Tensor]],
        matches: Matches,
        num_masks: float | Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy and dice loss of the matched masks, at points of each mask's own."""
        masks, drawn = prediction.masks, iter(prediction.drawn)
        queries = [queries for queries, _ in matches]
        matched = torch.cat([m[q] for m, q in zip(masks, queries, strict=True)])  # (N, h, w)
        if len(matched) == 0:
            # A sum of nothing, but with a gradient: every parameter takes part in every step.
            return matched.sum(), matched.sum()
        matched = matched.unsqueeze(1)
        points = uncertain_points(
            matched,
            self.num_points,
            oversample_ratio=self.oversample_ratio,
            importance_ratio=self.importance_sample_ratio,
            draw=lambda shape, device: next(drawn),
        )
        ours = sample_points(matched, points).squeeze(1)  # (N, P)
        with torch.no_grad():
            each_points = points.split([len(q) for q in queries])
            theirs = torch.cat(
                [
                    sample_points(target["masks"][indices].unsqueeze(1), own).squeeze(1)
                    for target, (_, indices), own in zip(targets, matches, each_points, strict=True)
                ]
            )  # (N, P)
        cross_entropy = F.binary_cross_entropy_with_logits(ours, theirs, reduction="none")
        return cross_entropy.mean(dim=1).sum() / num_masks, dice_loss(ours, theirs) / num_masks


def dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Sum over masks of one minus the dice coefficient (with 1 added to both parts).

    Args:
        logits: (N, P).
        masks: (N, P), in [0, 1].
    """
    probabilities = logits.sigmoid()
    overlap = 2.0 * (probabilities * masks).sum(dim=1)
    total = probabilities.sum(dim=1) + masks.sum(dim=1)
    return (1.0 - (overlap + 1.0) / (total + 1.0)).sum()


def mean_number_of_masks(
    targets: Sequence[Mapping[str, Tensor]], num_queries: int
) -> float | Tensor:
    """Matched masks of a batch, averaged over the processes; to be called by all of them.

    An image without masks counts as one, so the result is at least 1.

    Args:
        targets: for each image "labels" (M,).
        num_queries: Q, which bounds the matched masks of an image.

    Returns:
        a number; of several processes a scalar on the device, not read by the host.
    """
    own = sum(max(min(len(target["labels"]), num_queries), 1) for target in targets)
    if comm.get_world_size() == 1:
        return float(max(own, 1))
    device = targets[0]["labels"].device
    total = torch.full((), float(own), device=device)
    torch.distributed.all_reduce(total)
    return (total / comm.get_world_size()).clamp(min=1.0)


def _check(
    num_points: int, oversample_ratio: float, importance_ratio: float, no_object_weight: float
) -> None:
    prefix = "MODEL.MASK_FORMER."
    if num_points < 1:
        raise ValueError(f"`{prefix}TRAIN_NUM_POINTS` must be at least 1, but is {num_points!r}.")
    if oversample_ratio < 1:
        raise ValueError(
            f"`{prefix}OVERSAMPLE_RATIO` must be at least 1, but is {oversample_ratio!r}."
        )
    if not 0 <= importance_ratio <= 1:
        raise ValueError(
            f"`{prefix}IMPORTANCE_SAMPLE_RATIO` must be in [0, 1], but is {importance_ratio!r}."
        )
    if no_object_weight <= 0:
        raise ValueError(
            f"`{prefix}NO_OBJECT_WEIGHT` must be above 0, but is {no_object_weight!r}."
        )


def _check_weights(**weights: float) -> None:
    for key, weight in weights.items():
        if not weight >= 0:  # nor "not a number"
            raise ValueError(f"`MODEL.MASK_FORMER.{key}` must be at least 0, but is {weight!r}.")
