"""A narrow model of the mask-query host, and inputs for it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offseg_d2.data.dataset_mapper import class_instances
from tests.common import build_offseg, spread_weights

# EfficientFormerV2-S0, narrow decoders of few layers, few points: fast, but no part is missing.
SMALL_MASK2FORMER: tuple[Any, ...] = (
    *("MODEL.EFFICIENTFORMER_V2.VARIANT", "s0"),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", 32),
    *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 5),
    *("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 7),
    *("MODEL.MASK_FORMER.NHEADS", 4),
    *("MODEL.MASK_FORMER.ENC_LAYERS", 2),
    *("MODEL.MASK_FORMER.ENC_DIM_FEEDFORWARD", 48),
    *("MODEL.MASK_FORMER.DEC_LAYERS", 3),
    *("MODEL.MASK_FORMER.DIM_FEEDFORWARD", 48),
    *("MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 64),
)


def small_mask2former(*opts: Any) -> nn.Module:
    """A narrow mask-query OffSeg, every weight moved off its initial value, evaluation mode."""
    model = build_offseg(*SMALL_MASK2FORMER, *opts, model="mask2former_offseg_t")
    return spread_weights(model).eval()


def mask_batch(sizes: list[tuple[int, int]], num_classes: int = 5) -> list[dict[str, Any]]:
    """Training inputs of the meta-architecture: noise images, blocks of 8 pixels per class."""
    batch = []
    for height, width in sizes:
        blocks = torch.randint(0, num_classes, (-(-height // 8), -(-width // 8)))
        labels = blocks.repeat_interleave(8, 0).repeat_interleave(8, 1)[:height, :width]
        image = torch.randint(0, 256, (3, height, width)).byte()
        batch.append({"image": image, "instances": class_instances(labels)})
    return batch


def combined(probabilities: Tensor, masks: Tensor, size: tuple[int, int]) -> Tensor:
    """(Q, K) and (Q, h, w) -> scores (K, H, W), all masks at full size at once."""
    masks = F.interpolate(masks[None], size=size, mode="bilinear", align_corners=False)[0]
    return torch.einsum("qk,qhw->khw", probabilities, masks.sigmoid())
