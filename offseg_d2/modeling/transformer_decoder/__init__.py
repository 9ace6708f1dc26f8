"""Transformer decoders: queries, encoded levels and mask features -> classes and masks."""

from offseg_d2.modeling.transformer_decoder.masked_attention import MaskedAttentionDecoder

__all__ = ["MaskedAttentionDecoder"]
