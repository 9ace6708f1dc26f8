"""The pixel decoder of Mask2Former: a deformable transformer encoder over the coarse levels.

Papers: Mask2Former (arXiv:2112.01527), section 3.2.3 and appendix A; Deformable DETR
(arXiv:2010.04159). All levels but the finest go through the encoder together; then the finest is
joined with the finest encoded one, as in a feature pyramid network, and becomes the mask features.
As in the models of OffSeg, encoder matrices start Xavier-normal (Mask2Former: Xavier-uniform).

Shapes: B batch, C channels, S pixels of all encoded levels.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn

from offseg_d2.layers import ContiguousGroupNorm, MSDeformAttn, sine_position_encoding
from offseg_d2.modeling.pixel_decoder.build import PIXEL_DECODER_REGISTRY

NORM_GROUPS = 32


class EncoderLayer(nn.Module):
    """Deformable self-attention, then a feed-forward network, each followed by a layer norm.

    Args:
        dim: C.
        num_heads: attention heads.
        num_levels: levels of the pyramid.
        feedforward_dim: hidden width of the feed-forward network.
    """

    def __init__(self, dim: int, num_heads: int, num_levels: int, feedforward_dim: int) -> None:
        super().__init__()
        self.self_attn = MSDeformAttn(dim, num_heads=num_heads, num_levels=num_levels)
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_normal_(linear.weight)

    def forward(
        self,
        pixels: Tensor,
        position: Tensor,
        reference_points: Tensor,
        level_sizes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """One round of exchange between the pixels of all levels.

        Args:
            pixels: (B, S, C).
            position: (S, C), added to the queries, not to the values.
            reference_points: (S, 2), the pixels' own positions, (x, y) in [0, 1].
            level_sizes: (height, width) of each level in pixels.

        Returns:
            (B, S, C).
        """
        read = self.self_attn(pixels + position, pixels, reference_points, level_sizes)
        pixels = self.norm1(pixels + read)
        return self.norm2(pixels + self.linear2(self.linear1(pixels).relu_()))


class DeformableEncoder(nn.Module):
    """Levels of one width -> the same levels, each pixel informed by all of them.

    Args:
        dim: C, a multiple of 4.
        num_heads: attention heads.
        num_levels: levels of the pyramid.
        num_layers: encoder layers.
        feedforward_dim: hidden width of the feed-forward networks.
    """

    def __init__(
        self, dim: int, *, num_heads: int, num_levels: int, num_layers: int, feedforward_dim: int
    ) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.empty(num_levels, dim))
        nn.init.normal_(self.level_embed)
        layers = nn.ModuleList(
            EncoderLayer(dim, num_heads, num_levels, feedforward_dim) for _ in range(num_layers)
        )
        self.encoder = nn.ModuleDict({"layers": layers})  # the names of Mask2Former's checkpoints

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """(B, C, H_l, W_l) for each level -> the same shapes."""
        sizes = [(level.shape[-2], level.shape[-1]) for level in levels]
        dtype = torch.promote_types(levels[0].dtype, torch.float32)
        pixels = torch.cat([level.flatten(2).mT for level in levels], dim=1).to(dtype)  # (B, S, C)
        position = torch.cat(
            [
                code_of_level(size, embed.to(dtype))
                for size, embed in zip(sizes, self.level_embed, strict=True)
            ]
        )  # (S, C)
        reference = torch.cat([pixel_centres(size, pixels) for size in sizes])  # (S, 2)
        for layer in self.encoder["layers"]:
            pixels = layer(pixels, position, reference, sizes)
        parts = pixels.split([height * width for height, width in sizes], dim=1)
        return [part.mT.unflatten(2, size) for part, size in zip(parts, sizes, strict=True)]


def code_of_level(size: tuple[int, int], level_embed: Tensor) -> Tensor:
    """Position code plus the level's own vector (C,), for each pixel: (H W, C)."""
    code = sine_position_encoding(
        *size, len(level_embed), dtype=level_embed.dtype, device=level_embed.device
    )
    return code.flatten(1).mT + level_embed


def pixel_centres(size: tuple[int, int], like: Tensor) -> Tensor:
    """(x, y) in [0, 1] of the pixels of a map of ``size``, row by row: (H W, 2)."""
    height, width = size
    ys = (torch.arange(height, dtype=like.dtype, device=like.device) + 0.5) / height
    xs = (torch.arange(width, dtype=like.dtype, device=like.device) + 0.5) / width
    grid = [xs.expand(height, width), ys[:, None].expand(height, width)]
    return torch.stack(grid, dim=2).flatten(0, 1)


@PIXEL_DECODER_REGISTRY.register()
class MSDeformAttnPixelDecoder(nn.Module):
    """Mask features at the finest stride, and the encoded coarser levels.

    Args:
        input_shape: channels and strides of the backbone's outputs, from fine to coarse; at least
            two, strides increasing.
        out_channels: C, channels of all results; a multiple of 32 (group norm) and of the heads.
        num_heads: heads of the deformable attention.
        num_layers: encoder layers.
        feedforward_dim: hidden width of the feed-forward networks.

    Raises:
        ValueError: if a size does not fit.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        out_channels: int = 256,
        num_heads: int = 8,
        num_layers: int = 6,
        feedforward_dim: int = 1024,
    ) -> None:
        super().__init__()
        _check(input_shape, out_channels, num_heads, num_layers, feedforward_dim)
        self.in_features = list(input_shape)
        self.out_channels = out_channels
        finest, *coarse = input_shape.values()
        self.out_stride = finest.stride
        # Levels that the result holds besides the mask features.
        self.num_memory_levels = len(coarse)
        # From coarse to fine, the order of the levels in Mask2Former's checkpoints.
        self.input_proj = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(shape.channels, out_channels, 1),
                ContiguousGroupNorm(NORM_GROUPS, out_channels),
            )
            for shape in reversed(coarse)
        )
        for conv, _ in self.input_proj:
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)
        self.transformer = DeformableEncoder(
            out_channels,
            num_heads=num_heads,
            num_levels=len(coarse),
            num_layers=num_layers,
            feedforward_dim=feedforward_dim,
        )
        norms = [ContiguousGroupNorm(NORM_GROUPS, out_channels) for _ in range(2)]
        self.adapter_1 = Conv2d(finest.channels, out_channels, 1, bias=False, norm=norms[0])
        self.layer_1 = Conv2d(
            out_channels, out_channels, 3, padding=1, bias=False, norm=norms[1], activation=F.relu
        )
        self.mask_features = nn.Conv2d(out_channels, out_channels, 1)
        for conv in (self.adapter_1, self.layer_1, self.mask_features):
            c2_xavier_fill(conv)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        keys = cfg.MODEL.MASK_FORMER
        return {
            "input_shape": input_shape,
            "out_channels": cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM,
            "num_heads": keys.NHEADS,
            "num_layers": keys.ENC_LAYERS,
            "feedforward_dim": keys.ENC_DIM_FEEDFORWARD,
        }

    def forward(self, features: dict[str, Tensor]) -> list[Tensor]:
        """Fuse the levels.

        Args:
            features: "res2".."res5", (B, C_i, H / s_i, W / s_i).

        Returns:
            the mask features (B, C, H / s_0, W / s_0), then the encoded levels from fine to coarse,
            (B, C, H / s_i, W / s_i).
        """
        finest, *coarse = [features[name] for name in self.in_features]
        projected = [
            project(level) for project, level in zip(self.input_proj, reversed(coarse), strict=True)
        ]
        memories = self.transformer(projected)[::-1]  # from fine to coarse
        lateral = self.adapter_1(finest)
        upsampled = F.interpolate(
            memories[0], size=lateral.shape[-2:], mode="bilinear", align_corners=False
        )
        return [self.mask_features(self.layer_1(lateral + upsampled)), *memories]


def _check(
    input_shape: dict[str, ShapeSpec],
    out_channels: int,
    num_heads: int,
    num_layers: int,
    feedforward_dim: int,
) -> None:
    strides = [shape.stride for shape in input_shape.values()]
    if len(strides) < 2 or any(fine >= coarse for fine, coarse in pairwise(strides)):
        raise ValueError(
            "`MODEL.SEM_SEG_HEAD.IN_FEATURES` of MSDeformAttnPixelDecoder must be at least two "
            f"levels of increasing strides, but they are {strides}."
        )
    if out_channels < 1 or out_channels % NORM_GROUPS:
        raise ValueError(
            f"`MODEL.SEM_SEG_HEAD.CONVS_DIM` must be a positive multiple of {NORM_GROUPS}, but is "
            f"{out_channels}."
        )
    if num_heads < 1 or out_channels % num_heads:
        raise ValueError(
            "`MODEL.MASK_FORMER.NHEADS` must divide `MODEL.SEM_SEG_HEAD.CONVS_DIM` "
            f"{out_channels}, but is {num_heads}."
        )
    for key, value in (("ENC_LAYERS", num_layers), ("ENC_DIM_FEEDFORWARD", feedforward_dim)):
        if value < 1:
            raise ValueError(f"`MODEL.MASK_FORMER.{key}` must be at least 1, but is {value}.")
