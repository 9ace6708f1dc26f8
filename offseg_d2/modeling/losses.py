"""Losses of per-pixel heads besides the plain cross-entropy, none of which stores K x H x W values.

With p_k(x) the softmax of the resized logits at pixel x, y(x) its label, N all pixels of the batch,
ignored ones included, and w_k the class weights (1 without):

- cross-entropy: ``sum over labelled x of -w_y(x) log p_y(x)(x), / N``;
- online hard example mining: the same sum over the share r of the labelled pixels with the highest
  terms, divided by their number (bootstrapping, Wu et al. 2016, arXiv:1605.06885);
- dice: ``1 - mean over classes k in the labels of (2 I_k + 1) / (P_k + L_k + 1)`` with, over the
  labelled pixels of the batch, ``I_k = sum of p_k where y is k``, ``P_k = sum of p_k`` and
  ``L_k = number of y equal to k`` (Milletari et al. 2016, arXiv:1606.04797, without squares).

Shapes: B batch, K classes, h x w logits, H x W labels.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor

from offseg_d2.config import ConfigError
from offseg_d2.layers import map_resized_bands

BALANCED = "balanced"
_SMOOTHING = 1.0  # pixels; keeps the dice of a class of few pixels from jumping


def loss_options(cfg: CfgNode) -> dict[str, Any]:
    """Keyword arguments of :class:`.PerPixelHead` from ``MODEL.SEM_SEG_HEAD.LOSS``.

    Raises:
        ConfigError: a key has a value that cannot be used.
    """
    head = cfg.MODEL.SEM_SEG_HEAD
    keys = head.LOSS
    if not 0.0 < keys.OHEM_SHARE <= 1.0:
        raise ConfigError(
            f"`MODEL.SEM_SEG_HEAD.LOSS.OHEM_SHARE` must be in (0, 1], but is {keys.OHEM_SHARE!r}."
        )
    if not 0.0 <= keys.DICE_WEIGHT < math.inf:
        raise ConfigError(
            f"`MODEL.SEM_SEG_HEAD.LOSS.DICE_WEIGHT` must be at least 0, but is "
            f"{keys.DICE_WEIGHT!r}."
        )
    weights = keys.CLASS_WEIGHTS
    if weights is not None and weights != BALANCED:
        is_list = isinstance(weights, list | tuple) and len(weights) == head.NUM_CLASSES
        if not is_list or not all(_is_weight(weight) for weight in weights) or not any(weights):
            raise ConfigError(
                f"`MODEL.SEM_SEG_HEAD.LOSS.CLASS_WEIGHTS` must be None, '{BALANCED}' or "
                f"{head.NUM_CLASSES} numbers of at least 0, one for each class and not all 0, but "
                f"is {weights!r}."
            )
    return {
        "class_weights": weights,
        "ohem_share": keys.OHEM_SHARE,
        "dice_weight": keys.DICE_WEIGHT,
    }


def _is_weight(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 <= value < math.inf


def refuse_loss_options(cfg: CfgNode) -> None:
    """Check that nothing is set in ``MODEL.SEM_SEG_HEAD.LOSS``, for heads that do not read it.

    Raises:
        ConfigError: something is.
    """
    neutral = {"CLASS_WEIGHTS": None, "OHEM_SHARE": 1.0, "DICE_WEIGHT": 0.0}
    for key, value in cfg.MODEL.SEM_SEG_HEAD.LOSS.items():
        if value != neutral[key]:
            raise ConfigError(
                f"`MODEL.SEM_SEG_HEAD.LOSS.{key}` must be {neutral[key]!r} for the head "
                f"{cfg.MODEL.SEM_SEG_HEAD.NAME}, which has losses of its own, but is {value!r}."
            )


@torch.no_grad()
def keep_hard_pixels(
    logits: Tensor,
    targets: Tensor,
    size: tuple[int, int],
    *,
    share: float,
    ignore_index: int,
    weight: Tensor | None = None,
) -> Tensor:
    """Ignore all labelled pixels but the share with the highest cross-entropy.

    Args:
        logits: (B, K, h, w), float32 or float64.
        targets: (B, H, W) int64, class ids or ``ignore_index``.
        size: (height, width) that the logits are resized to; the upper left H x W of them count.
        share: in (0, 1], of the batch's labelled pixels; rounded up, and more where losses tie.
        ignore_index: label of pixels that do not count.
        weight: (K,) weights of the classes.

    Returns:
        (B, H, W) targets.
    """

    def pixel_losses(scores: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(
            scores[None], labels[None], weight, ignore_index=ignore_index, reduction="none"
        ).flatten()

    bands = list(map_resized_bands(pixel_losses, logits, targets, size))
    losses = torch.cat(bands).view(targets.shape)
    labelled = targets != ignore_index
    number = math.ceil(share * int(labelled.sum()))
    if number == 0:
        return targets
    lowest = losses[labelled].topk(number).values[-1]
    return targets.masked_fill(losses < lowest, ignore_index)


def dice_loss(
    logits: Tensor, targets: Tensor, size: tuple[int, int], *, ignore_index: int
) -> Tensor:
    """Dice loss of the batch, see the module's text; 0 where nothing is labelled.

    Args:
        logits: (B, K, h, w), float32 or float64.
        targets: (B, H, W) int64, class ids or ``ignore_index``.
        size: (height, width) that the logits are resized to; the upper left H x W of them count.
        ignore_index: label of pixels that do not count.

    Returns:
        a scalar in [0, 1).
    """
    classes = logits.shape[1]

    def sums(scores: Tensor, labels: Tensor) -> Tensor:
        valid = labels != ignore_index
        own = labels.masked_fill(~valid, 0)
        probabilities = scores.softmax(0) * valid
        right = probabilities.gather(0, own[None]).flatten()
        zeros = scores.new_zeros(classes)
        intersection = zeros.index_add(0, own.flatten(), right)
        labelled = zeros.index_add(0, own.flatten(), valid.flatten().to(scores.dtype))
        return torch.stack([intersection, probabilities.sum((1, 2)), labelled])

    bands = list(map_resized_bands(sums, logits, targets, size))
    intersection, predicted, labelled = torch.stack(bands).sum(0)
    dice = (2 * intersection + _SMOOTHING) / (predicted + labelled + _SMOOTHING)
    present = labelled > 0
    return ((1 - dice) * present).sum() / present.sum().clamp(min=1)
