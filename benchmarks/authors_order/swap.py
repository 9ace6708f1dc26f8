"""Conversion of a model of this project to the authors' order of operations."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from offseg_d2.layers import FreqFusion, LocalSimilaritySampler, MSDeformAttn
from offseg_d2.modeling import MaskSegmentor, PerPixelHead, PerPixelSegmentor
from offseg_d2.modeling.backbone.efficientformer_v2 import Block, ConvMlp
from offseg_d2.modeling.backbone.efficientformer_v2_attention import (
    Attention,
    AttentionBias,
    DownsamplingAttention,
)
from offseg_d2.modeling.backbone.mit import EfficientAttention
from offseg_d2.modeling.backbone.mscan import MSCAN
from offseg_d2.modeling.classifiers import OffsetClassifier, OffsetMaskPredictor
from offseg_d2.modeling.pixel_decoder.level_fusion import LevelFusion
from offseg_d2.modeling.transformer_decoder.masked_attention import MultiheadAttention

from .attention import (
    AuthorsEfficientAttention,
    AuthorsMSDeformAttn,
    AuthorsMultiheadAttention,
)
from .backbones import (
    AuthorsAttention,
    AuthorsAttentionBias,
    AuthorsBlock,
    AuthorsConvMlp,
    AuthorsDownsamplingAttention,
    AuthorsMSCAN,
)
from .fusion import AuthorsFreqFusion, AuthorsLevelFusion, AuthorsSampler
from .models import (
    AuthorsMaskSegmentor,
    AuthorsOffsetClassifier,
    AuthorsOffsetMaskPredictor,
    AuthorsPerPixelHead,
    AuthorsPerPixelSegmentor,
)

FORMS: dict[type[nn.Module], type[nn.Module]] = {
    Attention: AuthorsAttention,
    AttentionBias: AuthorsAttentionBias,
    Block: AuthorsBlock,
    ConvMlp: AuthorsConvMlp,
    DownsamplingAttention: AuthorsDownsamplingAttention,
    EfficientAttention: AuthorsEfficientAttention,
    FreqFusion: AuthorsFreqFusion,
    LevelFusion: AuthorsLevelFusion,
    LocalSimilaritySampler: AuthorsSampler,
    MSCAN: AuthorsMSCAN,
    MSDeformAttn: AuthorsMSDeformAttn,
    MaskSegmentor: AuthorsMaskSegmentor,
    MultiheadAttention: AuthorsMultiheadAttention,
    OffsetClassifier: AuthorsOffsetClassifier,
    OffsetMaskPredictor: AuthorsOffsetMaskPredictor,
    PerPixelHead: AuthorsPerPixelHead,
    PerPixelSegmentor: AuthorsPerPixelSegmentor,
}


def authors_order(model: nn.Module) -> nn.Module:
    """A copy of ``model`` that computes the same in the authors' order of operations.

    The copy has the same parameter names, mode and configuration, so it loads the same
    checkpoints and is trained and evaluated like the model itself.

    Args:
        model: as built from a configuration of this project; it is not changed.

    Raises:
        ValueError: if the model, or a part of it, is a variant whose authors' form is unknown.
    """
    model = copy.deepcopy(model)
    if type(model) not in FORMS:
        raise ValueError(
            "`model` must be a PerPixelSegmentor or MaskSegmentor as a configuration builds it, "
            f"but is a {type(model).__name__}."
        )
    for name, module in model.named_modules():
        # A part keeps its weights and settings; only what it does with them is replaced.
        if type(module) in FORMS:
            module.__class__ = FORMS[type(module)]
        elif isinstance(module, tuple(FORMS)):
            raise ValueError(
                f"`{name}` must be one of {sorted(form.__name__ for form in FORMS)} itself to have "
                f"an authors' form, but is a {type(module).__name__}."
            )
        _undo_choices(module)
    return model


def _undo_choices(module: nn.Module) -> None:
    """Take back what a module of this project chose as the faster way and keeps as an attribute."""
    if hasattr(module, "memory_format"):  # the authors' maps have their channels outermost
        module.memory_format = torch.contiguous_format


def logits(model: nn.Module, images: Tensor) -> Tensor | dict[str, Any]:
    """Return the head's output before it is resized, of a model in any form.

    Args:
        model: a PerPixelSegmentor or MaskSegmentor, in the authors' order or not.
        images: (B, 3, H, W), normalised, of any size.

    Returns:
        logits (B, K, h, w) at the head's stride, or the dict with "pred_logits" (B, Q, K + 1) and
        "pred_masks" (B, Q, h, w).
    """
    return model.sem_seg_head(model.backbone(model._padded(images)))
