"""Rules for MiT, the backbone of SegFormer: everything on tokens with the channels innermost.

Shapes: B batch, C channels, h heads, H x W pixels, N = H W, M keys.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from offseg_d2.deploy.feed_forward import DepthwiseFeedForward
from offseg_d2.deploy.packed import PackedConv2d, PackedLinear
from offseg_d2.deploy.rules import rule
from offseg_d2.layers import ChannelLayerNorm
from offseg_d2.modeling.backbone.mit import Block, EfficientAttention


def normalised(tokens: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Layer norm over the last axis."""
    return F.layer_norm(tokens, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


class FastAttention(nn.Module):
    """:class:`EfficientAttention` with the residual connection around it."""

    def __init__(self, attention: EfficientAttention) -> None:
        super().__init__()
        dim = attention.out_proj.in_features
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        self.num_heads = attention.num_heads
        self.norm: ChannelLayerNorm | None = attention.norm
        self.reduce = None if attention.sr is None else PackedConv2d(attention.sr)
        # Without reduction all three read the same tokens: one product.
        self.query = None if self.reduce is None else PackedLinear(weight[:dim], bias[:dim])
        first = 0 if self.reduce is None else dim
        self.key_value = PackedLinear(weight[first:], bias[first:])
        self.out_proj = PackedLinear.of(attention.out_proj)

    def forward(self, tokens: Tensor, residual: Tensor) -> Tensor:
        """(B, H, W, C) and what is added to the result -> (B, H, W, C)."""
        source = tokens
        if self.reduce is not None and self.norm is not None:
            source = self.reduce(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            source = normalised(source, self.norm)
        parts = self.key_value(source.flatten(1, 2)).chunk(3 if self.query is None else 2, dim=2)
        if self.query is not None:
            parts = (self.query(tokens.flatten(1, 2)), *parts)
        query, key, value = (
            part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in parts
        )  # (B, h, N or M, C / h)
        out = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        return self.out_proj(out.reshape(tokens.shape), residual)


class FastBlock(nn.Module):
    """:class:`Block` of MiT."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.attn = FastAttention(block.attn)
        ffn = block.ffn
        self.ffn = DepthwiseFeedForward(
            PackedLinear.of(ffn.fc1), ffn.dwconv, PackedLinear.of(ffn.fc2)
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), channels innermost."""
        tokens = features.permute(0, 2, 3, 1).contiguous()
        tokens = self.attn(normalised(tokens, self.norm1), tokens)
        tokens = self.ffn(normalised(tokens, self.norm2), tokens)
        return tokens.permute(0, 3, 1, 2)


@rule(Block)
def fast_mit_block(block: Block) -> nn.Module:
    """Merged projections, fused attention, hidden maps in bands."""
    return FastBlock(block)
