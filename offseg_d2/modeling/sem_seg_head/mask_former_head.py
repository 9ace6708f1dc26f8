"""The head of the mask-query hosts: pixel decoder, then transformer decoder.

Paper: Mask2Former (arXiv:2112.01527). Which backbone and whether with offsets is a matter of
configuration; there is one head.
"""

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from offseg_d2.modeling.losses import refuse_loss_options
from offseg_d2.modeling.pixel_decoder import build_pixel_decoder
from offseg_d2.modeling.sem_seg_head.common import select_features
from offseg_d2.modeling.transformer_decoder import MaskedAttentionDecoder


@SEM_SEG_HEADS_REGISTRY.register()
class MaskFormerHead(nn.Module):
    """Backbone features -> class and mask of every query.

    Args:
        pixel_decoder: features dict -> mask features and encoded levels, from fine to coarse.
        predictor: mask features and encoded levels, from coarse to fine -> predictions.
    """

    @configurable
    def __init__(self, *, pixel_decoder: nn.Module, predictor: nn.Module) -> None:
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        refuse_loss_options(cfg)
        pixel_decoder = build_pixel_decoder(cfg, select_features(cfg, input_shape))
        num_levels = getattr(pixel_decoder, "num_memory_levels", 0)
        if num_levels == 0:
            raise ValueError(
                "`MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME` of MaskFormerHead must give encoded "
                "levels, as MSDeformAttnPixelDecoder does, but is "
                f"{cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME!r}."
            )
        predictor = MaskedAttentionDecoder(cfg, pixel_decoder.out_channels, num_levels)
        return {"pixel_decoder": pixel_decoder, "predictor": predictor}

    @property
    def num_queries(self) -> int:
        """Queries, each of which predicts one mask and its class."""
        return self.predictor.query_feat.num_embeddings

    def forward(self, features: dict[str, Tensor]) -> dict[str, Any]:
        """(B, C_i, H / s_i, W / s_i) per level -> predictions, see MaskedAttentionDecoder."""
        mask_features, *memories = self.pixel_decoder(features)
        return self.predictor(mask_features, memories[::-1])
