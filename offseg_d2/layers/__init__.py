"""Numerical building blocks: tensors in, tensors out; no configuration, no registry."""

from offseg_d2.layers.carafe import carafe
from offseg_d2.layers.channel_norm import ChannelLayerNorm, ContiguousGroupNorm
from offseg_d2.layers.conv_bn import ConvBN, DepthwiseConvBN
from offseg_d2.layers.drop_path import ChannelDropout, DropPath, drop_path_rates
from offseg_d2.layers.freq_fusion import FreqFusion, LocalSimilaritySampler, neighbour_similarity
from offseg_d2.layers.matrix_decomposition import NMF2D, Hamburger
from offseg_d2.layers.ms_deform_attn import MSDeformAttn
from offseg_d2.layers.norm_gelu_conv import norm_gelu_conv
from offseg_d2.layers.point_sampling import (
    PointSource,
    points_to_draw,
    sample_points,
    uncertain_points,
    uniform_points,
)
from offseg_d2.layers.position_encoding import sine_position_encoding
from offseg_d2.layers.resampling import Resampling, bilinear, identity, resample
from offseg_d2.layers.resized_argmax import interpolated_argmax, label_dtype
from offseg_d2.layers.resized_bands import map_resized_bands
from offseg_d2.layers.resized_cross_entropy import resized_cross_entropy
from offseg_d2.layers.weight_init import fan_out_normal_

__all__ = [
    "NMF2D",
    "ChannelDropout",
    "ChannelLayerNorm",
    "ContiguousGroupNorm",
    "ConvBN",
    "DepthwiseConvBN",
    "DropPath",
    "FreqFusion",
    "Hamburger",
    "LocalSimilaritySampler",
    "MSDeformAttn",
    "PointSource",
    "Resampling",
    "bilinear",
    "carafe",
    "drop_path_rates",
    "fan_out_normal_",
    "identity",
    "interpolated_argmax",
    "label_dtype",
    "map_resized_bands",
    "neighbour_similarity",
    "norm_gelu_conv",
    "points_to_draw",
    "resample",
    "resized_cross_entropy",
    "sample_points",
    "sine_position_encoding",
    "uncertain_points",
    "uniform_points",
]
