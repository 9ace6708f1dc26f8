"""The transformer decoder of Mask2Former: queries that look where their own masks are.

Paper: Mask2Former (arXiv:2112.01527), section 3.2. Learned queries read the encoded levels in turn,
from coarse to fine; each reads only those pixels that its mask of the layer before covers (masked
attention). Every layer predicts classes and masks, and so do the queries before the first layer.

OffSeg (arXiv:2508.08811) aligns mask embeddings and mask features before *every* prediction, with
one shared module, and starts from the same mask features each time; as the masks of a layer guide
the next one, its attention follows the aligned masks. As in the models of OffSeg, the layers'
matrices start Xavier-normal (Mask2Former: Xavier-uniform).

Shapes: B batch, Q queries, K classes, C channels, h heads, S pixels of a level.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from offseg_d2.layers import sine_position_encoding
from offseg_d2.modeling.classifiers import build_mask_predictor

Prediction = dict[str, Tensor]


class MultiheadAttention(nn.MultiheadAttention):
    """Attention of PyTorch, with one mask for all heads that is never copied per head.

    Args:
        dim: C.
        num_heads: h.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__(dim, num_heads, batch_first=True)
        nn.init.xavier_normal_(self.in_proj_weight)
        nn.init.xavier_normal_(self.out_proj.weight)  # all biases start at zero

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, allowed: Tensor | None = None
    ) -> Tensor:
        """Read the values where the keys resemble the queries.

        Args:
            queries: (B, Q, C).
            keys: (B, S, C).
            values: (B, S, C).
            allowed: (B, Q, S) bool, which pixels each query may read: at least one.

        Returns:
            (B, Q, C).
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        query, key, value = (
            F.linear(tokens, weight, bias).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for tokens, weight, bias in zip((queries, keys, values), weights, biases, strict=True)
        )  # (B, h, Q or S, C / h)
        mask = None if allowed is None else allowed.unsqueeze(1)
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out_proj(read.transpose(1, 2).flatten(2))


class CrossAttentionLayer(nn.Module):
    """The queries read a level; residual and layer norm."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.multihead_attn = MultiheadAttention(dim, num_heads)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, queries: Tensor, position: Tensor, keys: Tensor, values: Tensor, allowed: Tensor
    ) -> Tensor:
        """Queries (B, Q, C) with position (Q, C), keys and values (B, S, C) -> (B, Q, C)."""
        return self.norm(queries + self.multihead_attn(queries + position, keys, values, allowed))


class SelfAttentionLayer(nn.Module):
    """The queries read each other; residual and layer norm."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(dim, num_heads)
        self.norm = nn.LayerNorm(dim)

    def forward(self, queries: Tensor, position: Tensor) -> Tensor:
        """Queries (B, Q, C) with position (Q, C) -> (B, Q, C)."""
        placed = queries + position
        return self.norm(queries + self.self_attn(placed, placed, queries))


class FeedForwardLayer(nn.Module):
    """Two linear layers for each query alone; residual and layer norm."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, dim)
        self.norm = nn.LayerNorm(dim)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_normal_(linear.weight)

    def forward(self, queries: Tensor) -> Tensor:
        """(B, Q, C) -> (B, Q, C)."""
        return self.norm(queries + self.linear2(self.linear1(queries).relu_()))


class MLP(nn.Module):
    """Three linear layers with ReLU between them, all of one width."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(3))

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        first, second, last = self.layers
        return last(second(first(tokens).relu_()).relu_())


class MaskedAttentionDecoder(nn.Module):
    """Encoded levels and mask features -> class and mask of every query, after every layer.

    Args:
        dim: C, of levels, mask features and queries.
        num_classes: K, without the no-object class.
        mask_predictor: mask embeddings (B, Q, C), mask features (B, C, H, W) -> mask logits
            (B, Q, H, W).
        num_queries: Q.
        num_levels: encoded levels, which the layers read in turn.
        num_layers: decoder layers.
        num_heads: h, a divisor of C.
        feedforward_dim: hidden width of the feed-forward layers.
        deep_supervision: in training, return the predictions of all layers.

    Raises:
        ValueError: if there are no queries, no layers or no hidden units.
    """

    @configurable
    def __init__(
        self,
        *,
        dim: int,
        num_classes: int,
        mask_predictor: nn.Module,
        num_queries: int = 100,
        num_levels: int = 3,
        num_layers: int = 9,
        num_heads: int = 8,
        feedforward_dim: int = 2048,
        deep_supervision: bool = True,
    ) -> None:
        super().__init__()
        for key, value in (
            ("NUM_OBJECT_QUERIES", num_queries),
            ("DEC_LAYERS", num_layers),
            ("DIM_FEEDFORWARD", feedforward_dim),
        ):
            if value < 1:
                raise ValueError(f"`MODEL.MASK_FORMER.{key}` must be at least 1, but is {value}.")
        self.deep_supervision = deep_supervision
        self.query_feat = nn.Embedding(num_queries, dim)
        self.query_embed = nn.Embedding(num_queries, dim)
        self.level_embed = nn.Embedding(num_levels, dim)
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionLayer(dim, num_heads) for _ in range(num_layers)
        )
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(dim, num_heads) for _ in range(num_layers)
        )
        self.transformer_ffn_layers = nn.ModuleList(
            FeedForwardLayer(dim, feedforward_dim) for _ in range(num_layers)
        )
        self.decoder_norm = nn.LayerNorm(dim)
        self.class_embed = nn.Linear(dim, num_classes + 1)
        self.mask_embed = MLP(dim)
        self.mask_predictor = mask_predictor

    @classmethod
    def from_config(cls, cfg: CfgNode, dim: int, num_levels: int) -> dict:
        keys, head = cfg.MODEL.MASK_FORMER, cfg.MODEL.SEM_SEG_HEAD
        return {
            "dim": dim,
            "num_classes": head.NUM_CLASSES,
            "mask_predictor": build_mask_predictor(
                head.CLASSIFIER,
                dim,
                class_offset=head.CLASS_OFFSET,
                feature_offset=head.FEATURE_OFFSET,
                offset_init_std=head.OFFSET_INIT_STD,
            ),
            "num_queries": keys.NUM_OBJECT_QUERIES,
            "num_levels": num_levels,
            "num_layers": keys.DEC_LAYERS,
            "num_heads": keys.NHEADS,
            "feedforward_dim": keys.DIM_FEEDFORWARD,
            "deep_supervision": keys.DEEP_SUPERVISION,
        }

    def forward(self, mask_features: Tensor, memories: Sequence[Tensor]) -> dict:
        """Refine the queries layer by layer.

        Args:
            mask_features: (B, C, H, W), what the masks are read off.
            memories: (B, C, H_l, W_l), the encoded levels from coarse to fine.

        Returns:
            "pred_logits" (B, Q, K + 1) class logits, the last one of no object; "pred_masks"
            (B, Q, H, W) mask logits; "aux_outputs", the same two of each earlier prediction (in
            training with deep supervision, else empty).
        """
        # fp32 once, not in each of the predictions
        mask_features = mask_features.to(torch.promote_types(mask_features.dtype, torch.float32))
        sizes = [memory.shape[-2:] for memory in memories]
        levels = [
            self._keys_and_values(memory, embed)
            for memory, embed in zip(memories, self.level_embed.weight, strict=True)
        ]
        queries = self.query_feat.weight.expand(mask_features.shape[0], -1, -1)  # (B, Q, C)
        position = self.query_embed.weight
        predictions = [self.predict(queries, mask_features)]
        for i, (cross_attention, self_attention, feed_forward) in enumerate(
            zip(
                self.transformer_cross_attention_layers,
                self.transformer_self_attention_layers,
                self.transformer_ffn_layers,
                strict=True,
            )
        ):
            level = i % len(levels)
            allowed = allowed_pixels(predictions[-1]["pred_masks"], sizes[level])
            if not (self.training and self.deep_supervision):
                predictions.clear()
            queries = cross_attention(queries, position, *levels[level], allowed)
            queries = feed_forward(self_attention(queries, position))
            predictions.append(self.predict(queries, mask_features))
        return {**predictions.pop(), "aux_outputs": predictions}

    def predict(self, queries: Tensor, mask_features: Tensor) -> Prediction:
        """Class logits (B, Q, K + 1) and mask logits (B, Q, H, W) of queries (B, Q, C)."""
        queries = self.decoder_norm(queries)
        return {
            "pred_logits": self.class_embed(queries),
            "pred_masks": self.mask_predictor(self.mask_embed(queries), mask_features),
        }

    @staticmethod
    def _keys_and_values(memory: Tensor, level_embed: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels of a level (B, S, C), with and without their position code."""
        dim, height, width = memory.shape[1:]
        values = memory.flatten(2).mT + level_embed
        code = sine_position_encoding(height, width, dim, dtype=values.dtype, device=values.device)
        return values + code.flatten(1).mT, values


@torch.no_grad()
def allowed_pixels(mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The pixels of a level that each query may read: those its mask covers.

    A query whose mask covers no pixel may read them all, for attention to nothing is undefined.

    Args:
        mask_logits: (B, Q, H, W).
        size: (height, width) of the level.

    Returns:
        (B, Q, S) bool.
    """
    resized = F.interpolate(mask_logits, size=tuple(size), mode="bilinear", align_corners=False)
    allowed = resized.flatten(2) >= 0  # (B, Q, S)
    return allowed | ~allowed.any(dim=2, keepdim=True)
