"""Attention of SegFormer and of the mask-query hosts in the authors' order of operations.

Shapes: B batch, C channels, h heads, N tokens, Q queries, S pixels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from offseg_d2.layers import MSDeformAttn
from offseg_d2.modeling.backbone.mit import EfficientAttention
from offseg_d2.modeling.transformer_decoder.masked_attention import MultiheadAttention


def attend(query: Tensor, key: Tensor, value: Tensor, blocked: Tensor | None = None) -> Tensor:
    """Attention step by step.

    Args:
        query: (B, h, N, C / h).
        key: (B, h, S, C / h).
        value: (B, h, S, C / h).
        blocked: (B, h, N, S) bool, what may not be read.

    Returns:
        (B, h, N, C / h).
    """
    similarity = (query * query.shape[-1] ** -0.5) @ key.mT
    if blocked is not None:
        similarity = similarity.masked_fill(blocked, float("-inf"))
    return similarity.softmax(dim=-1) @ value


class AuthorsEfficientAttention(EfficientAttention):
    """Queries, keys and values projected one by one; no fused attention."""

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        size = features.shape[-2:]
        source = features
        if self.sr is not None and self.norm is not None:
            source = self.norm(self.sr(features))
        parts = zip(
            (features, source, source),
            self.in_proj_weight.chunk(3),
            self.in_proj_bias.chunk(3),
            strict=True,
        )
        heads = (
            F.linear(x.flatten(2).mT, weight, bias)
            .unflatten(2, (self.num_heads, -1))
            .transpose(1, 2)
            for x, weight, bias in parts
        )
        out = self.out_proj(attend(*heads).transpose(1, 2).flatten(2))  # (B, N, C)
        return out.mT.unflatten(2, size)


class AuthorsMultiheadAttention(MultiheadAttention):
    """Attention that is not fused; the mask is repeated for every head."""

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, allowed: Tensor | None = None
    ) -> Tensor:
        """(B, Q, C), (B, S, C), (B, S, C), allowed (B, Q, S) -> (B, Q, C)."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        heads = (
            F.linear(tokens, weight, bias).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for tokens, weight, bias in zip((queries, keys, values), weights, biases, strict=True)
        )
        blocked = None if allowed is None else (~allowed)[:, None].repeat(1, self.num_heads, 1, 1)
        return self.out_proj(attend(*heads, blocked).transpose(1, 2).flatten(2))


class AuthorsMSDeformAttn(MSDeformAttn):
    """Points of all levels sampled and stacked, then weighted and summed; no compiled operator."""

    def forward(
        self,
        queries: Tensor,
        pixels: Tensor,
        reference_points: Tensor,
        level_sizes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """(B, Q, C), (B, S, C), (Q, 2) and the levels' (height, width) -> (B, Q, C)."""
        heads, levels, points = self.points_shape
        batch, number = queries.shape[:2]
        values = self.value_proj(pixels).unflatten(2, (heads, -1))
        offsets = self.sampling_offsets(queries).unflatten(2, (*self.points_shape, 2))
        weights = self.attention_weights(queries).unflatten(2, (heads, -1)).softmax(dim=3)
        extent = offsets.new_tensor([(width, height) for height, width in level_sizes])
        locations = reference_points[:, None, None, None] + offsets / extent[:, None]
        grids = 2 * locations - 1  # (B, Q, h, L, P, 2)
        sampled = []
        areas = [height * width for height, width in level_sizes]
        for index, level in enumerate(values.split(areas, dim=1)):
            maps = level.flatten(2).mT.reshape(batch * heads, -1, *level_sizes[index])
            grid = grids[:, :, :, index].transpose(1, 2).flatten(0, 1)  # (B h, Q, P, 2)
            sampled.append(F.grid_sample(maps, grid, align_corners=False))  # (B h, C / h, Q, P)
        weights = weights.transpose(1, 2).reshape(batch * heads, 1, number, levels * points)
        read = (torch.stack(sampled, dim=-2).flatten(-2) * weights).sum(dim=-1)
        return self.output_proj(read.view(batch, -1, number).mT)
