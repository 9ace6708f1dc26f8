"""Numerical building blocks: tensors in, tensors out; no configuration, no registry."""

from offseg_d2.layers.carafe import carafe
from offseg_d2.layers.channel_norm import ChannelLayerNorm
from offseg_d2.layers.conv_bn import ConvBN, DepthwiseConvBN
from offseg_d2.layers.drop_path import DropPath, drop_path_rates
from offseg_d2.layers.freq_fusion import FreqFusion, LocalSimilaritySampler, neighbour_similarity
from offseg_d2.layers.matrix_decomposition import NMF2D, Hamburger
from offseg_d2.layers.weight_init import fan_out_normal_

__all__ = [
    "NMF2D",
    "ChannelLayerNorm",
    "ConvBN",
    "DepthwiseConvBN",
    "DropPath",
    "FreqFusion",
    "Hamburger",
    "LocalSimilaritySampler",
    "carafe",
    "drop_path_rates",
    "fan_out_normal_",
    "neighbour_similarity",
]
