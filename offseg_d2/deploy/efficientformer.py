"""Rules for EfficientFormerV2: folded blocks, attention with biases that are worked out once.

* Batch norms, layer scales and the attention's scale are part of convolutions.
* Activations and residual additions are in place: a new tensor of some megabytes costs a CPU more
  than the arithmetic on it, as its pages are mapped anew.
* Talking heads are small matrix products over the heads. The first one also applies the scale and
  adds the bias, which it has been applied to beforehand.
* Attention goes through blocks of queries, whose similarities stay in the processor's cache.

Shapes: B batch, C channels, h heads, d channels of a head, Nq queries, Nk keys.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offseg_d2.deploy.attention_bias import ResizedBias
from offseg_d2.deploy.folding import affine_after, fold_conv_bn, side_by_side
from offseg_d2.deploy.rules import rule
from offseg_d2.layers import ConvBN
from offseg_d2.modeling.backbone.efficientformer_v2 import (
    AttentionDownsample,
    Block,
    EfficientFormerV2,
)
from offseg_d2.modeling.backbone.efficientformer_v2_attention import (
    NUM_HEADS,
    Attention,
    DownsamplingAttention,
)

_BLOCK_VALUES = 1 << 19  # similarities that are worked on at once
_STRIPE_BYTES = 2 << 20  # of the wide maps inside an MLP that are worked on at once
_LEAST_ROWS = 16  # of a stripe: two more rows are computed for each


def gelu_in_place(features: Tensor) -> Tensor:
    """The exact GELU; the argument is overwritten."""
    return torch.ops.aten.gelu_(features)


class ConvGelu(nn.Module):
    """Convolution, then GELU in place."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, features: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H', W')."""
        return gelu_in_place(self.conv(features))


class FastBlock(nn.Module):
    """The same function as a trained ``Block``.

    Args:
        block: in evaluation mode.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        mixer, mlp = block.token_mixer, block.mlp
        self.token_mixer = None if mixer is None else FastAttention(mixer, block.layer_scale_1)
        self.fc1 = ConvGelu(fold_conv_bn(mlp.fc1, mlp.norm1))
        self.mid = ConvGelu(fold_conv_bn(mlp.mid, mlp.mid_norm))
        self.fc2 = affine_after(fold_conv_bn(mlp.fc2, mlp.norm2), block.layer_scale_2)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if self.token_mixer is not None:
            features = self.token_mixer(features).add_(features)
        rows = self._rows_at_once(features)
        if rows >= features.shape[2]:
            return self.fc2(self.mid(self.fc1(features))).add_(features)
        result = torch.empty_like(features)
        for before, after in zip(features.split(1), result.split(1), strict=True):
            for first in range(0, features.shape[2], rows):
                self._mlp_of_rows(before, after, first, min(first + rows, features.shape[2]))
        return result

    def _rows_at_once(self, features: Tensor) -> int:
        """Rows of which the wide maps inside the MLP are not too large."""
        row_bytes = features.shape[3] * self.mid.conv.out_channels * features.element_size()
        total = features.shape[0] * features.shape[2] * row_bytes
        if total <= 2 * _STRIPE_BYTES or not features.is_contiguous(
            memory_format=torch.channels_last
        ):
            return features.shape[2]
        return max(_STRIPE_BYTES // row_bytes, _LEAST_ROWS)

    def _mlp_of_rows(self, features: Tensor, result: Tensor, first: int, end: int) -> None:
        """Write the rows ``first`` to ``end`` (excluded) of the result, both (1, C, H, W)."""
        top, bottom = max(first - 1, 0), min(end + 1, features.shape[2])
        hidden = self.mid.conv(self.fc1(features[:, :, top:bottom]))
        # The rows beside the stripe are there for the 3x3 convolution to read.
        hidden = gelu_in_place(hidden[:, :, first - top : end - top])
        torch.add(self.fc2(hidden), features[:, :, first:end], out=result[:, :, first:end])


def _tokens(features: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C); a view of a channels_last tensor."""
    return features.flatten(2).mT


def _by_head(tokens: Tensor) -> Tensor:
    """(B, N, h * d) -> (B, h, N, d)."""
    return tokens.unflatten(2, (NUM_HEADS, -1)).transpose(1, 2)


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
    """The same function as a trained ``Attention`` and the layer scale after it.

    Args:
        attention: in evaluation mode.
        layer_scale: (C, 1, 1).
    """

    def __init__(self, attention: Attention, layer_scale: Tensor) -> None:
        super().__init__()
        stride_conv = attention.stride_conv
        self.stride_conv = None if stride_conv is None else fold_conv_bn(*stride_conv)
        # One convolution for queries and keys; the values are separate, as a depth-wise
        # convolution reads them next and wants them without gaps.
        self.qk = side_by_side([fold_conv_bn(*attention.q), fold_conv_bn(*attention.k)])
        self.v = fold_conv_bn(*attention.v)
        self.v_local = fold_conv_bn(*attention.v_local)
        head1, head2 = attention.talking_head1, attention.talking_head2
        self.head1 = _HeadMix(head1.weight * attention.scale, head1.bias)
        self.head2 = _HeadMix(head2.weight, head2.bias)
        self.bias = ResizedBias(attention.bias, head1)
        self.proj = affine_after(fold_conv_bn(*attention.proj), layer_scale)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        reduced = features if self.stride_conv is None else self.stride_conv(features)
        values = self.v(reduced)
        out = self.v_local(values)
        queries, keys = (_by_head(x) for x in _tokens(self.qk(reduced)).chunk(2, dim=2))
        tokens = zip(_tokens(out), queries, keys, _by_head(_tokens(values)), strict=True)
        for of_image in tokens:
            self._attend(*of_image)
        if self.stride_conv is not None:
            out = F.interpolate(out, scale_factor=2, mode="bilinear", align_corners=False)
        return self.proj(gelu_in_place(out))

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
        self.q_local = affine_after(attention.q_local, 1.0)
        self.q_local.weight.data[:, :, 1, 1] += 1
        self.q = affine_after(fold_conv_bn(*attention.q), attention.scale)
        self.k = fold_conv_bn(*attention.k)
        self.v = fold_conv_bn(*attention.v)
        self.v_local = fold_conv_bn(*attention.v_local)
        self.bias = ResizedBias(attention.bias)
        self.proj = fold_conv_bn(*attention.proj)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C_in, H, W), even sizes -> (B, C_out, H / 2, W / 2)."""
        values = self.v(features)
        out = self.v_local(values)
        queries = self.q(self.q_local(features))
        tokens = [_by_head(_tokens(x)) for x in (queries, self.k(features), values)]
        for of_image in zip(_tokens(out), *tokens, strict=True):
            self._attend(*of_image)
        return self.proj(gelu_in_place(out))

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
        self.conv = fold_conv_bn(downsample.conv, downsample.bn)
        self.attn = FastDownsamplingAttention(downsample.attn)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C_in, H, W), even sizes -> (B, C_out, H / 2, W / 2)."""
        return self.conv(features).add_(self.attn(features))


@rule(Block)
def _fast_block(block: Block) -> nn.Module:
    return FastBlock(block)


@rule(AttentionDownsample)
def _fast_downsample(downsample: AttentionDownsample) -> nn.Module:
    return FastAttentionDownsample(downsample)


@rule(EfficientFormerV2)
def _fast_backbone(backbone: EfficientFormerV2) -> nn.Module:
    """Only the stem is this rule's; the backbone goes on telling its shapes itself."""
    if isinstance(backbone.stem[0], ConvBN):  # else it was optimized before
        convs = [fold_conv_bn(*layer) for layer in backbone.stem[::2]]
        backbone.stem = nn.Sequential(*map(ConvGelu, convs))
    return backbone
