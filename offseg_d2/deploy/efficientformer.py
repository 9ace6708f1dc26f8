"""EfficientFormerV2 deployed: folded blocks, attention with biases that are worked out once.

* Batch norms, layer scales and the attention's scale are part of convolutions; activations and
  residual sums happen in the same pass as the convolution before them.
* Talking heads are small matrix products over the heads. The first one also applies the scale and
  adds the bias, which it has been applied to beforehand.
* Attention goes through blocks of queries, whose similarities stay in the processor's cache.

Shapes: B batch, C channels, h heads, d channels of a head, Nq queries, Nk keys.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offseg_d2.deploy.attention_bias import ResizedBias
from offseg_d2.deploy.feed_forward import DepthwiseFeedForward
from offseg_d2.deploy.folding import fold
from offseg_d2.deploy.packed import PackedConv2d, PackedLinear
from offseg_d2.modeling.backbone.efficientformer_v2 import (
    AttentionDownsample,
    Block,
    Downsample,
    EfficientFormerV2,
)
from offseg_d2.modeling.backbone.efficientformer_v2_attention import (
    NUM_HEADS,
    Attention,
    DownsamplingAttention,
)

_BLOCK_VALUES = 1 << 19  # similarities that are worked on at once


class FastBlock(nn.Module):
    """The same function as a trained ``Block``.

    Args:
        block: in evaluation mode.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        mixer, mlp = block.token_mixer, block.mlp
        self.token_mixer = None if mixer is None else FastAttention(mixer, block.layer_scale_1)
        self.mlp = DepthwiseFeedForward(
            PackedLinear.of(fold(mlp.fc1, mlp.norm1), gelu=True),
            PackedConv2d(fold(mlp.mid, mlp.mid_norm), gelu=True),
            PackedLinear.of(fold(mlp.fc2, mlp.norm2, block.layer_scale_2)),
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), channels innermost."""
        tokens = _tokens(features)
        if self.token_mixer is not None:
            tokens = self.token_mixer(tokens)
        return _maps(self.mlp(tokens))


def _tokens(features: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C) contiguous; a view of a channels_last tensor."""
    return features.permute(0, 2, 3, 1).contiguous()


def _maps(tokens: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W), a view."""
    return tokens.permute(0, 3, 1, 2)


def _by_head(tokens: Tensor) -> Tensor:
    """(B, H, W, h * d) -> (B, h, N, d)."""
    return tokens.flatten(1, 2).unflatten(2, (NUM_HEADS, -1)).transpose(1, 2)


def _query_blocks(num_queries: int, num_keys: int) -> list[tuple[int, int]]:
    step = max(_BLOCK_VALUES // (NUM_HEADS * num_keys), 1)
    return [(i, min(i + step, num_queries)) for i in range(0, num_queries, step)]


class _HeadMix(nn.Module):
    """A 1x1 convolution over the heads as a matrix product: (h, ...) -> (h, ...)."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().flatten(1).clone())  # (h, h)
        self.bias = nn.Parameter(bias.detach().view(-1, 1).clone())  # (h, 1)

    def forward(self, per_head: Tensor, bias: Tensor | None = None) -> Tensor:
        summand = self.bias if bias is None else bias.reshape(NUM_HEADS, -1)
        return torch.addmm(summand, self.weight, per_head.flatten(1)).view(per_head.shape)


class FastAttention(nn.Module):
    """The same function as a trained ``Attention``, the layer scale after it and the residual sum.

    Args:
        attention: in evaluation mode.
        layer_scale: (C, 1, 1).
    """

    def __init__(self, attention: Attention, layer_scale: Tensor) -> None:
        super().__init__()
        stride_conv = attention.stride_conv
        self.stride_conv = None if stride_conv is None else PackedConv2d(fold(*stride_conv))
        # One product for queries and keys; the values are separate, as a depth-wise convolution
        # reads them next and wants them without gaps.
        qk = [fold(*attention.q), fold(*attention.k)]
        self.qk = PackedLinear(
            torch.cat([conv.weight.flatten(1) for conv in qk]),
            torch.cat([conv.bias for conv in qk]),
        )
        self.v = PackedLinear.of(fold(*attention.v))
        self.v_local = PackedConv2d(fold(*attention.v_local))
        head1, head2 = attention.talking_head1, attention.talking_head2
        self.head1 = _HeadMix(head1.weight * attention.scale, head1.bias)
        self.head2 = _HeadMix(head2.weight, head2.bias)
        self.bias = ResizedBias(attention.bias, head1)
        self.proj = PackedLinear.of(fold(*attention.proj, layer_scale))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        reduced = tokens
        if self.stride_conv is not None:
            reduced = _tokens(self.stride_conv(_maps(tokens)))
        values = self.v(reduced)
        out = _tokens(self.v_local(_maps(values)))
        queries, keys = (_by_head(x) for x in self.qk(reduced).chunk(2, dim=3))
        for of_image in zip(out.flatten(1, 2), queries, keys, _by_head(values), strict=True):
            self._attend(*of_image)
        if self.stride_conv is not None:
            size = (tokens.shape[1], tokens.shape[2])
            out = _tokens(F.interpolate(_maps(out), size, mode="bilinear", align_corners=False))
        return self.proj(torch.ops.aten.gelu_(out), tokens)

    def _attend(self, out: Tensor, queries: Tensor, keys: Tensor, values: Tensor) -> None:
        """Add to ``out`` (N, h d) what queries, keys, values (h, N, d) of one image give."""
        count = keys.shape[1]
        for begin, end in _query_blocks(count, count):
            similarity = queries[:, begin:end] @ keys.mT  # (h, n, N)
            bias = self.bias.rows(count, count, begin, end)
            attention = self.head2(self.head1(similarity, bias).softmax(dim=-1))
            out[begin:end].unflatten(1, (NUM_HEADS, -1)).add_((attention @ values).transpose(0, 1))


class FastDownsamplingAttention(nn.Module):
    """The same function as a trained ``DownsamplingAttention``.

    Args:
        attention: in evaluation mode.
    """

    def __init__(self, attention: DownsamplingAttention) -> None:
        super().__init__()
        # Every other pixel is what the centre tap of the strided convolution reads.
        q_local = copy.deepcopy(attention.q_local)
        q_local.weight.data[:, :, 1, 1] += 1
        self.q_local = PackedConv2d(q_local)
        self.q = PackedLinear.of(fold(*attention.q, attention.scale))
        self.k = PackedLinear.of(fold(*attention.k))
        self.v = PackedLinear.of(fold(*attention.v))
        self.v_local = PackedConv2d(fold(*attention.v_local))
        self.bias = ResizedBias(attention.bias)
        self.proj = PackedLinear.of(fold(*attention.proj))

    def forward(self, features: Tensor) -> Tensor:
        """(B, C_in, H, W), even sizes -> (B, C_out, H / 2, W / 2)."""
        tokens = _tokens(features)
        values = self.v(tokens)
        out = _tokens(self.v_local(_maps(values)))
        queries = self.q(_tokens(self.q_local(features)))
        parts = [_by_head(x) for x in (queries, self.k(tokens), values)]
        for of_image in zip(out.flatten(1, 2), *parts, strict=True):
            self._attend(*of_image)
        return _maps(self.proj(torch.ops.aten.gelu_(out)))

    def _attend(self, out: Tensor, queries: Tensor, keys: Tensor, values: Tensor) -> None:
        """Add to ``out`` (Nq, h d) what queries (h, Nq, d), keys and values (h, Nk, d) give."""
        num_queries, num_keys = queries.shape[1], keys.shape[1]
        for begin, end in _query_blocks(num_queries, num_keys):
            bias = self.bias.rows(num_queries, num_keys, begin, end)
            attention = torch.baddbmm(bias, queries[:, begin:end], keys.mT).softmax(dim=-1)
            out[begin:end].unflatten(1, (NUM_HEADS, -1)).add_((attention @ values).transpose(0, 1))


class FastAttentionDownsample(nn.Module):
    """The same function as a trained ``AttentionDownsample``.

    Args:
        downsample: in evaluation mode.
    """

    def __init__(self, downsample: AttentionDownsample) -> None:
        super().__init__()
        self.conv = PackedConv2d(fold(downsample.conv, downsample.bn))
        self.attn = FastDownsamplingAttention(downsample.attn)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C_in, H, W), even sizes -> (B, C_out, H / 2, W / 2)."""
        return self.conv(features, self.attn(features))


def optimize_backbone(backbone: EfficientFormerV2) -> None:
    """Replace stem, blocks and downsamplings by fast ones, in place."""
    stem = [PackedConv2d(fold(*layer), gelu=True) for layer in backbone.stem[::2]]
    backbone.stem = nn.Sequential(*stem)
    stages = [nn.Sequential(*map(FastBlock, stage)) for stage in backbone.stages]
    backbone.stages = nn.ModuleList(stages)
    backbone.downsamples = nn.ModuleList(map(_fast_downsample, backbone.downsamples))


def _fast_downsample(downsample: Downsample | AttentionDownsample) -> nn.Module:
    if isinstance(downsample, AttentionDownsample):
        return FastAttentionDownsample(downsample)
    return PackedConv2d(fold(downsample.proj, downsample.norm))
