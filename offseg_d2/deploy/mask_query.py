"""Rule for the transformer decoder of Mask2Former: masks are read where they are used.

Nine of ten predictions only tell the next layer which pixels of a coarse level to read: the
resized mask logits are compared with 0. Resizing and the product with the mask embeddings are
linear and work on different axes, so the *features* are resized, once, and the masks are computed
at the level's own size. With offsets, the class offset still reads all pixels; the feature offset
is a softmax at each pixel, which is computed for the pixels that the resize reads, then resized.

Shapes: B batch, Q queries, C channels, N = H W pixels of the mask features, S of a level.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offseg_d2.deploy.packed import PackedLinear, PackedMatrix
from offseg_d2.deploy.rules import rule
from offseg_d2.deploy.size_cache import SizeCache
from offseg_d2.layers import bilinear, sine_position_encoding
from offseg_d2.modeling.classifiers import OffsetMaskPredictor, PlainMaskPredictor
from offseg_d2.modeling.offset_learning import OffsetLearning
from offseg_d2.modeling.transformer_decoder.masked_attention import (
    CrossAttentionLayer,
    FeedForwardLayer,
    MaskedAttentionDecoder,
    MultiheadAttention,
    SelfAttentionLayer,
)

Size = tuple[int, int]


class AxisResize:
    """One axis of a bilinear resize: the positions that it reads, and their weights."""

    def __init__(self, before: int, after: int, like: Tensor) -> None:
        resampling = bilinear(before, after, dtype=like.dtype, device=like.device)
        matrix = like.new_zeros(after, before)
        matrix.scatter_add_(1, resampling.positions(), resampling.weights)
        self.read = matrix.any(dim=0).nonzero()[:, 0]
        self.weights = matrix[:, self.read]  # (after, positions read)


class LevelResize:
    """Maps of the mask features' size to the size of a level."""

    def __init__(self, before: Size, after: Size, like: Tensor) -> None:
        self._before = before
        self._rows = AxisResize(before[0], after[0], like)
        self._columns = AxisResize(before[1], after[1], like)

    def pixels(self, maps: Tensor) -> Tensor:
        """The pixels that are read, of maps (Q, N): (Q, rows, columns)."""
        maps = maps.unflatten(1, self._before)
        if len(self._rows.read) < self._before[0]:
            maps = maps.index_select(1, self._rows.read)
        if len(self._columns.read) < self._before[1]:
            maps = maps.index_select(2, self._columns.read)
        return maps

    def resized(self, pixels: Tensor) -> Tensor:
        """What :meth:`pixels` gives -> maps (Q, S)."""
        return (self._rows.weights @ (pixels @ self._columns.weights.mT)).flatten(1)


class ImageMasks:
    """Masks of one image, at full size or at that of a level.

    Args:
        features: X (C, H, W), the mask features.
        offsets: None compares embeddings and features as they are.
        resizes: from (H, W) to the size of each level.
        sizes: (height, width) of each level.
    """

    def __init__(
        self,
        features: Tensor,
        offsets: OffsetLearning | None,
        resizes: Sequence[LevelResize],
        sizes: Sequence[Size],
    ) -> None:
        self._offsets, self._resizes = offsets, resizes
        self._pixels = features.flatten(1).mT  # (N, C)
        self._by_pixel = PackedMatrix(self._pixels)
        self._levels = []
        for size in sizes:
            level = F.interpolate(features[None], size=size, mode="bilinear", align_corners=False)
            self._levels.append(PackedMatrix(level[0].flatten(1).mT))  # (S, C)

    def of_level(self, embeddings: Tensor, level: int) -> Tensor:
        """Mask embeddings (Q, C) -> mask logits (Q, S), resized to the level."""
        if self._offsets is None:
            return self._levels[level](embeddings)
        resize = self._resizes[level]
        similarity = self._by_pixel(embeddings)  # (Q, N)                             eq. A
        aligned, mixing = self._aligned(embeddings, similarity)
        logits = self._levels[level](aligned)
        if mixing is not None:
            shares = resize.pixels(similarity).softmax(dim=0)
            logits = torch.addmm(logits, mixing.mT, resize.resized(shares))
        return logits

    def full(self, embeddings: Tensor) -> Tensor:
        """Mask embeddings (Q, C) -> mask logits (Q, N)."""
        similarity = self._by_pixel(embeddings)
        if self._offsets is None:
            return similarity
        aligned, mixing = self._aligned(embeddings, similarity)
        logits = self._by_pixel(aligned) if self._offsets.class_offset_proj else similarity
        if mixing is not None:
            logits = torch.addmm(logits, mixing.mT, similarity.softmax(dim=0))
        return logits

    def _aligned(self, embeddings: Tensor, similarity: Tensor) -> tuple[Tensor, Tensor | None]:
        """W' (Q, C) and M (Q, Q), see :meth:`OffsetLearning.scores`."""
        assert self._offsets is not None
        aligned, mixing = embeddings, None
        if self._offsets.class_offset_proj is not None:
            read = similarity.softmax(dim=1) @ self._pixels  # (Q, C)
            aligned = embeddings + self._offsets.class_offset_proj(read)  #            eq. W'
        if self._offsets.feature_offset_proj is not None:
            mixing = self._offsets.feature_offset_proj(embeddings) @ aligned.mT
        return aligned, mixing


class FastMultiheadAttention(nn.Module):
    """:class:`MultiheadAttention`, with the residual sum."""

    def __init__(self, attention: MultiheadAttention) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        self.query, self.key, self.value = map(PackedLinear, weights, biases)
        self.out_proj = PackedLinear.of(attention.out_proj)

    def forward(
        self,
        residual: Tensor,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        allowed: Tensor | None = None,
    ) -> Tensor:
        """Residual and queries (B, Q, C), keys and values (B, S, C) -> (B, Q, C).

        ``allowed`` is (B, Q, S) bool.
        """
        query, key, value = (
            x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for x in (self.query(queries), self.key(keys), self.value(values))
        )  # (B, h, Q or S, C / h)
        mask = None if allowed is None else allowed.unsqueeze(1)
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out_proj(read.transpose(1, 2).flatten(2), residual)


class FastDecoderLayer(nn.Module):
    """Cross-attention, self-attention and feed-forward network of one layer."""

    def __init__(
        self, cross: CrossAttentionLayer, own: SelfAttentionLayer, feed: FeedForwardLayer
    ) -> None:
        super().__init__()
        self.cross_attn = FastMultiheadAttention(cross.multihead_attn)
        self.self_attn = FastMultiheadAttention(own.self_attn)
        self.norm1, self.norm2, self.norm3 = cross.norm, own.norm, feed.norm
        self.linear1 = PackedLinear.of(feed.linear1, "relu")
        self.linear2 = PackedLinear.of(feed.linear2)

    def forward(
        self, queries: Tensor, position: Tensor, keys: Tensor, values: Tensor, allowed: Tensor
    ) -> Tensor:
        """Queries (B, Q, C), position (Q, C), keys and values (B, S, C) -> (B, Q, C)."""
        read = self.cross_attn(queries, queries + position, keys, values, allowed)
        queries = self.norm1(read)
        placed = queries + position
        queries = self.norm2(self.self_attn(queries, placed, placed, queries))
        return self.norm3(self.linear2(self.linear1(queries), queries))


class FastMaskedAttentionDecoder(nn.Module):
    """:class:`MaskedAttentionDecoder` in evaluation: the last prediction alone.

    Args:
        decoder: with a mask predictor of this package.
        offsets: that of its mask predictor.
    """

    def __init__(self, decoder: MaskedAttentionDecoder, offsets: OffsetLearning | None) -> None:
        super().__init__()
        self.query_feat, self.query_embed = decoder.query_feat, decoder.query_embed
        self.level_embed = decoder.level_embed
        self.layers = nn.ModuleList(
            map(
                FastDecoderLayer,
                decoder.transformer_cross_attention_layers,
                decoder.transformer_self_attention_layers,
                decoder.transformer_ffn_layers,
            )
        )
        self.decoder_norm, self.class_embed = decoder.decoder_norm, decoder.class_embed
        self.mask_embed, self.offsets = decoder.mask_embed, offsets
        self._sizes = SizeCache()

    def forward(self, mask_features: Tensor, memories: Sequence[Tensor]) -> dict:
        """See :meth:`MaskedAttentionDecoder.forward`; "aux_outputs" is empty."""
        sizes = [(memory.shape[-2], memory.shape[-1]) for memory in memories]
        whole = (mask_features.shape[-2], mask_features.shape[-1])
        resizes, codes = self._sizes.get(
            (whole, *sizes), mask_features, lambda: self._of_sizes(whole, sizes, mask_features)
        )
        levels = []
        for memory, code, embed in zip(memories, codes, self.level_embed.weight, strict=True):
            values = memory.flatten(2).mT + embed  # (B, S, C)
            levels.append((values + code, values))
        images = [ImageMasks(image, self.offsets, resizes, sizes) for image in mask_features]
        queries = self.query_feat.weight.expand(len(mask_features), -1, -1)  # (B, Q, C)
        for i, layer in enumerate(self.layers):
            level = i % len(levels)
            embeddings = self.mask_embed(self.decoder_norm(queries))
            allowed = torch.stack(
                [image.of_level(own, level) for image, own in zip(images, embeddings, strict=True)]
            ).ge(0)  # (B, Q, S)
            allowed |= ~allowed.any(dim=2, keepdim=True)
            queries = layer(queries, self.query_embed.weight, *levels[level], allowed)
        queries = self.decoder_norm(queries)
        embeddings = self.mask_embed(queries)
        masks = [image.full(own) for image, own in zip(images, embeddings, strict=True)]
        return {
            "pred_logits": self.class_embed(queries),
            "pred_masks": torch.stack(masks).unflatten(2, whole),
            "aux_outputs": [],
        }

    @staticmethod
    def _of_sizes(
        whole: Size, sizes: Sequence[Size], like: Tensor
    ) -> tuple[list[LevelResize], list[Tensor]]:
        """For each level: the resize to it, and its position code (S, C)."""
        codes = [
            sine_position_encoding(*size, like.shape[1], dtype=like.dtype, device=like.device)
            for size in sizes
        ]
        resizes = [LevelResize(whole, size, like) for size in sizes]
        return resizes, [code.flatten(1).mT.contiguous() for code in codes]


@rule(MaskedAttentionDecoder)
@torch.no_grad()
def fast_masked_attention(decoder: MaskedAttentionDecoder) -> nn.Module | None:
    """Masks at the size at which they are used."""
    predictor = decoder.mask_predictor
    if type(predictor) is OffsetMaskPredictor:
        return FastMaskedAttentionDecoder(decoder, predictor.offset_learning)
    is_plain = type(predictor) is PlainMaskPredictor
    return FastMaskedAttentionDecoder(decoder, None) if is_plain else None
