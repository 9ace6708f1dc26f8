"""The last layer: plain or with offsets, and the one place that chooses between them.

A classifier turns ``pixel_features`` (B, C, H, W) into class logits (B, K, H, W), whatever came
before; so offset learning replaces any final 1x1 convolution. A mask predictor does the same with
mask embeddings (B, Q, C), which each image brings along, in place of learned class vectors.

Paper: OffSeg, ICCV 2025 (arXiv:2508.08811).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from offseg_d2.layers import ChannelDropout
from offseg_d2.modeling.offset_learning import INIT_STD, OffsetLearning


class OffsetClassifier(nn.Module):
    """Per-pixel classifier with class and feature offsets; a drop-in for a final 1x1 convolution.

    Args:
        dim: C, channels of the features.
        num_classes: K.
        class_offset: move each class vector towards the pixels that resemble it.
        feature_offset: move each pixel towards the classes it resembles.
        class_norm: normalise the class scores of each pixel, which the paper's models do, but its
            text does not mention. None of K normalised scores exceeds sqrt(K - 1) times its gain
            plus its bias.
        offset_init_std: of the projections, see :class:`OffsetLearning`.

    Raises:
        ValueError: if ``offset_init_std`` is negative or not finite.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        class_offset: bool = True,
        feature_offset: bool = True,
        class_norm: bool = True,
        offset_init_std: float = INIT_STD,
    ) -> None:
        super().__init__()
        self.class_representations = nn.Parameter(torch.empty(num_classes, dim))
        nn.init.normal_(self.class_representations, std=0.02)
        self.offset_learning = OffsetLearning(
            dim,
            class_offset=class_offset,
            feature_offset=feature_offset,
            init_std=offset_init_std,
        )
        self.norm = nn.LayerNorm(num_classes) if class_norm else nn.Identity()

    def forward(self, pixel_features: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, K, H, W), laid out with the classes innermost.

        Runs in float32 under autocast: the similarity is not scaled, and one softmax runs over
        thousands of pixels.
        """
        height, width = pixel_features.shape[-2:]
        with torch.autocast(pixel_features.device.type, enabled=False):
            dtype = torch.promote_types(pixel_features.dtype, torch.float32)
            pixels = pixel_features.to(dtype).flatten(2).mT  # (B, N, C), a view
            scores = self.offset_learning.scores(pixels, self.class_representations)
            logits = self.norm(scores)  # (B, N, K)
        # channels_last, which resizing and argmax prefer
        return logits.unflatten(1, (height, width)).permute(0, 3, 1, 2)


class PlainClassifier(nn.Sequential):
    """The baseline: channel dropout and a 1x1 convolution, (B, C, H, W) -> (B, K, H, W).

    Args:
        dim: C, channels of the features.
        num_classes: K.
        dropout: probability of dropping a channel in training.
    """

    def __init__(self, dim: int, num_classes: int, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.dropout = ChannelDropout(dropout)
        self.predictor = nn.Conv2d(dim, num_classes, 1)
        nn.init.normal_(self.predictor.weight, std=0.01)
        nn.init.zeros_(self.predictor.bias)


class OffsetMaskPredictor(nn.Module):
    """Mask logits of aligned mask embeddings and mask features.

    Unlike the per-pixel classifier it has neither class vectors of its own nor a norm: a mask is
    thresholded, its logits are not compared with each other.

    Args:
        dim: C, channels of mask embeddings and mask features.
        offset_init_std: of the projections, see :class:`OffsetLearning`.
        offsets: ``class_offset`` moves each mask embedding towards the pixels that resemble it,
            ``feature_offset`` each pixel towards the mask embeddings it resembles; both True by
            default.

    Raises:
        ValueError: if ``offset_init_std`` is negative or not finite.
    """

    def __init__(self, dim: int, *, offset_init_std: float = INIT_STD, **offsets: bool) -> None:
        super().__init__()
        self.offset_learning = OffsetLearning(dim, init_std=offset_init_std, **offsets)

    def forward(self, mask_embeddings: Tensor, mask_features: Tensor) -> Tensor:
        """(B, Q, C) and (B, C, H, W) -> mask logits (B, Q, H, W), in float32 under autocast."""
        with torch.autocast(mask_features.device.type, enabled=False):
            embeddings, features = _at_least_float32(mask_embeddings, mask_features)
            scores = self.offset_learning.scores(features.flatten(2).mT, embeddings)  # (B, N, Q)
        # Masks are resized, sampled and combined one by one, so each lies in one piece.
        return scores.mT.contiguous().unflatten(2, mask_features.shape[-2:])


class PlainMaskPredictor(nn.Module):
    """The baseline: inner products of mask embeddings and mask features; it has no weights."""

    def forward(self, mask_embeddings: Tensor, mask_features: Tensor) -> Tensor:
        """(B, Q, C) and (B, C, H, W) -> mask logits (B, Q, H, W), in float32 under autocast."""
        with torch.autocast(mask_features.device.type, enabled=False):
            embeddings, features = _at_least_float32(mask_embeddings, mask_features)
            logits = embeddings @ features.flatten(2)  # (B, Q, N)
        return logits.unflatten(2, mask_features.shape[-2:])


def _at_least_float32(*tensors: Tensor) -> list[Tensor]:
    """Convert all tensors to one type: float32, or float64 where one of them is."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return [tensor.to(dtype) for tensor in tensors]


def build_classifier(
    name: str, dim: int, num_classes: int, *, dropout: float = 0.1, **offsets: Any
) -> nn.Module:
    """Build the classifier that `MODEL.SEM_SEG_HEAD.CLASSIFIER` names.

    Args:
        name: "offset" or "plain".
        dim: C, channels of the features.
        num_classes: K.
        dropout: see :class:`PlainClassifier`.
        offsets: keywords of :class:`OffsetClassifier`, without effect on the plain one.

    Raises:
        ValueError: if ``name`` is neither, or a keyword has an impossible value.
    """
    choices: dict[str, Callable[[], nn.Module]] = {
        "offset": lambda: OffsetClassifier(dim, num_classes, **offsets),
        "plain": lambda: PlainClassifier(dim, num_classes, dropout=dropout),
    }
    return _choose(name, choices)


def build_mask_predictor(name: str, dim: int, **offsets: Any) -> nn.Module:
    """Build the mask predictor that `MODEL.SEM_SEG_HEAD.CLASSIFIER` names.

    Args:
        name: "offset" or "plain".
        dim: C, channels of mask embeddings and mask features.
        offsets: keywords of :class:`OffsetMaskPredictor`, without effect on the plain one.

    Raises:
        ValueError: if ``name`` is neither, or a keyword has an impossible value.
    """
    choices: dict[str, Callable[[], nn.Module]] = {
        "offset": lambda: OffsetMaskPredictor(dim, **offsets),
        "plain": PlainMaskPredictor,
    }
    return _choose(name, choices)


def _choose(name: str, choices: dict[str, Callable[[], nn.Module]]) -> nn.Module:
    if name not in choices:
        raise ValueError(
            f"`MODEL.SEM_SEG_HEAD.CLASSIFIER` must be one of {sorted(choices)}, but is {name!r}."
        )
    return choices[name]()
