"""The assignment of queries to masks of the ground truth, the cheapest one-to-one.

Paper: DETR (arXiv:2005.12872), section 3.1, with the costs of Mask2Former (arXiv:2112.01527): class
probability, and cross-entropy and dice of the masks at random points.

Shapes: Q queries, K classes, M masks of the ground truth of one image, P points.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from offseg_d2.layers import PointSource, sample_points, uniform_points

# Stands for a cost that is not finite: above any that is, and small enough to be added up exactly.
_UNUSABLE_COST = 1e8


def mask_cross_entropy_cost(logits: Tensor, masks: Tensor) -> Tensor:
    """Mean binary cross-entropy of each query with each mask.

    Args:
        logits: (Q, P).
        masks: (M, P), in [0, 1].

    Returns:
        (Q, M).
    """
    # -t log p - (1 - t) log(1 - p) = softplus(x) - x t
    of_empty = F.softplus(logits).mean(dim=1, keepdim=True)  # (Q, 1)
    return of_empty - logits @ masks.T / logits.shape[1]


def dice_cost(logits: Tensor, masks: Tensor) -> Tensor:
    """One minus the dice coefficient (with 1 added to both parts) of each query with each mask.

    Args:
        logits: (Q, P).
        masks: (M, P), in [0, 1].

    Returns:
        (Q, M).
    """
    probabilities = logits.sigmoid()
    overlap = 2.0 * probabilities @ masks.T
    total = probabilities.sum(dim=1, keepdim=True) + masks.sum(dim=1)  # (Q, M)
    return 1.0 - (overlap + 1.0) / (total + 1.0)


class HungarianMatcher:
    """Assigns the masks of each image to different queries such that the total cost is least.

    Args:
        class_weight: weight of minus the probability of the mask's class.
        mask_weight: weight of the masks' mean cross-entropy.
        dice_weight: weight of the masks' dice cost.
        num_points: P, random points of each image at which its masks are compared.
    """

    def __init__(
        self,
        *,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        num_points: int = 12544,
    ) -> None:
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        self.num_points = num_points

    @torch.no_grad()
    def __call__(
        self,
        outputs: Mapping[str, Tensor],
        targets: Sequence[Mapping[str, Tensor]],
        draw: PointSource = uniform_points,
    ) -> list[tuple[Tensor, Tensor]]:
        """Match each image.

        Args:
            outputs: "pred_logits" (B, Q, K + 1) and "pred_masks" (B, Q, h, w), both logits.
            targets: for each image "labels" (M,) int64 and "masks" (M, H, W), bool or 0..1; M may
                be 0 or above Q.
            draw: called once per image that has masks, for its points (1, P, 2).

        Returns:
            for each image indices of queries and of masks, both (min(Q, M),) int64 on the device of
            the outputs, by ascending query.
        """
        return assign_all(self.costs(outputs, targets, draw))

    @torch.no_grad()
    def costs(
        self,
        outputs: Mapping[str, Tensor],
        targets: Sequence[Mapping[str, Tensor]],
        draw: PointSource = uniform_points,
    ) -> list[Tensor]:
        """Cost of each assignment in each image, (Q, M) each; arguments as of a call."""
        costs = []
        for logits, pred_masks, target in zip(
            outputs["pred_logits"], outputs["pred_masks"], targets, strict=True
        ):
            if len(target["labels"]) == 0:
                costs.append(logits.new_empty(len(logits), 0))
                continue
            points = draw((1, self.num_points, 2), logits.device)
            costs.append(self.cost(logits, pred_masks, target, points))
        return costs

    def cost(
        self, logits: Tensor, pred_masks: Tensor, target: Mapping[str, Tensor], points: Tensor
    ) -> Tensor:
        """Cost of each assignment in one image, (Q, M).

        Args:
            logits: (Q, K + 1).
            pred_masks: (Q, h, w).
            target: "labels" (M,) and "masks" (M, H, W).
            points: (1, P, 2), shared by all queries and masks.
        """
        with torch.autocast(logits.device.type, enabled=False):  # fp32: sums over all points
            dtype = torch.promote_types(pred_masks.dtype, torch.float32)
            points = points.to(dtype)
            # The queries are channels of one map: all are read at the same points.
            ours = sample_points(pred_masks[None].to(dtype), points)[0]  # (Q, P)
            theirs = sample_points(target["masks"][None].to(dtype), points)[0]  # (M, P)
            probabilities = logits.to(dtype).softmax(dim=-1)[:, target["labels"]]  # (Q, M)
            return (
                self.mask_weight * mask_cross_entropy_cost(ours, theirs)
                + self.dice_weight * dice_cost(ours, theirs)
                - self.class_weight * probabilities
            )


def assign_all(costs: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """:func:`assign` for many costs, with one copy from their device and one to it.

    Args:
        costs: (Q, M) each, Q and M may differ; all on one device.

    Returns:
        for each the indices of rows and columns, on that device.
    """
    device = costs[0].device
    flat = torch.cat([cost.double().flatten() for cost in costs]).cpu()
    parts = flat.split([cost.numel() for cost in costs])
    pairs = [assign(part.view(cost.shape)) for part, cost in zip(parts, costs, strict=True)]
    # The only wait of a training step is the one above: this copy is small enough to be buffered.
    indices = torch.cat([index for pair in pairs for index in pair])
    indices = indices.to(device, non_blocking=True)
    split = iter(indices.split([len(index) for pair in pairs for index in pair]))
    return list(zip(split, split, strict=True))


def assign(cost: Tensor) -> tuple[Tensor, Tensor]:
    """The assignment of least total cost, by the Hungarian method on the CPU.

    A cost that is not finite (predictions that overflowed) counts as a very large one: whether to
    go on with such predictions is reported by the loss.

    Args:
        cost: (Q, M).

    Returns:
        indices of rows, ascending, and of their columns; both (min(Q, M),) int64 on the CPU.
    """
    cost = cost.double().cpu()
    cost = cost.where(cost.isfinite(), _UNUSABLE_COST).clamp(-_UNUSABLE_COST, _UNUSABLE_COST)
    rows, columns = linear_sum_assignment(cost.numpy())
    return torch.from_numpy(rows), torch.from_numpy(columns)
