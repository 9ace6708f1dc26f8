"""The attention of EfficientFormerV2: biases by distance, talking heads, downsampling.

Li et al., "Rethinking Vision Transformers for MobileNet Size and Speed", ICCV 2023
(arXiv:2212.08059), with the biases of OffSeg's models (see :class:`AttentionBias`).

Shapes: B batch, C channels, h heads, d channels of a head, Nq queries, Nk keys.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offseg_d2.layers import ConvBN, DepthwiseConvBN

NUM_HEADS = 8


class AttentionBias(nn.Module):
    """Learned attention bias that depends on the distance between query and key.

    The table has one entry per head and pair of distances (|rows|, |columns|) on the key grid of
    the nominal input. For another input the (Nq, Nk) matrix of biases is resized like an image, on
    the *flattened* token axes; that mixes image lines, but trained weights expect it.

    Args:
        query_grid: side of the square grid of queries at the nominal input size.
        key_grid: side of the square grid of keys, a multiple of ``query_grid``.
    """

    indices: Tensor

    def __init__(self, query_grid: int, key_grid: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(NUM_HEADS, key_grid**2))
        queries = torch.arange(query_grid) * (key_grid // query_grid)
        distance = (queries[:, None] - torch.arange(key_grid)).abs()  # (query_grid, key_grid)
        indices = distance[:, None, :, None] * key_grid + distance[None, :, None, :]
        indices = indices.reshape(query_grid**2, key_grid**2)
        self.register_buffer("indices", indices, persistent=False)
        self._cached: tuple[tuple, Tensor, Tensor] | None = None

    def forward(self, num_queries: int, num_keys: int) -> Tensor:
        """The biases for this many tokens: (1, h, Nq, Nk).

        In evaluation the last result is kept, for as long as neither sizes nor weights change.
        """
        table = self.table
        changing = self.training or torch.is_grad_enabled() or torch.compiler.is_compiling()
        # Of a model made under `torch.inference_mode()` changes are not counted.
        if changing or table.is_inference():
            self._cached = None
            return self._resized(num_queries, num_keys)
        # `_version` counts changes in place, loading weights among them.
        key = (num_queries, num_keys, table.data_ptr(), table._version, table.dtype, table.device)
        cached = self._cached  # read once: another thread may be at an image of another size
        if cached is None or cached[0] != key:
            # The table is kept too: its address then cannot become another table's.
            cached = (key, self._resized(num_queries, num_keys), table.detach())
            self._cached = cached
        return cached[1]

    def _resized(self, num_queries: int, num_keys: int) -> Tensor:
        bias = self.table[:, self.indices][None]
        if bias.shape[-2:] == (num_queries, num_keys):
            return bias
        size = (num_queries, num_keys)
        return F.interpolate(bias, size=size, mode="bicubic", align_corners=False)


def _to_heads(features: Tensor) -> Tensor:
    """(B, h * d, H, W), head-major -> (B, h, H * W, d)."""
    return features.flatten(2).unflatten(1, (NUM_HEADS, -1)).mT


def _attend(attention: Tensor, values: Tensor) -> Tensor:
    """(B, h, Nq, Nk), (B, h, Nk, d) -> (B, h * d, Nq)."""
    return (attention @ values).mT.flatten(1, 2)


class Attention(nn.Module):
    """Multi-head attention with talking heads and a local branch on the values.

    Args:
        dim: C.
        stride: 2 computes the attention at half resolution and upsamples the result.
        grid: side of the token grid at the nominal input size.
    """

    def __init__(self, dim: int, stride: int, grid: int) -> None:
        super().__init__()
        query_dim, value_dim = 32 * NUM_HEADS, 128 * NUM_HEADS
        self.scale = 32**-0.5
        self.stride_conv = DepthwiseConvBN(dim, stride=2) if stride == 2 else None
        self.q = ConvBN(dim, query_dim)
        self.k = ConvBN(dim, query_dim)
        self.v = ConvBN(dim, value_dim)
        self.v_local = DepthwiseConvBN(value_dim)
        self.bias = AttentionBias(grid, grid)
        self.talking_head1 = nn.Conv2d(NUM_HEADS, NUM_HEADS, 1)
        self.talking_head2 = nn.Conv2d(NUM_HEADS, NUM_HEADS, 1)
        self.proj = ConvBN(value_dim, dim)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        tokens = features if self.stride_conv is None else self.stride_conv(features)
        height, width = tokens.shape[-2:]
        values = self.v(tokens)
        similarity = _to_heads(self.q(tokens)) @ _to_heads(self.k(tokens)).mT * self.scale
        similarity = similarity + self.bias(height * width, height * width)
        attention = self.talking_head2(self.talking_head1(similarity).softmax(dim=-1))
        out = _attend(attention, _to_heads(values)).unflatten(2, (height, width))
        out = out + self.v_local(values)
        if self.stride_conv is not None:
            out = F.interpolate(out, scale_factor=2, mode="bilinear", align_corners=False)
        return self.proj(F.gelu(out))


class DownsamplingAttention(nn.Module):
    """Attention from a grid of half resolution to the full one, which halves the resolution.

    Args:
        in_dim: C of the input.
        out_dim: C of the output.
        grid: side of the query grid at the nominal input size.
    """

    def __init__(self, in_dim: int, out_dim: int, grid: int) -> None:
        super().__init__()
        query_dim, value_dim = 16 * NUM_HEADS, 64 * NUM_HEADS
        self.scale = 16**-0.5
        self.q_local = nn.Conv2d(in_dim, in_dim, 3, stride=2, padding=1, groups=in_dim)
        self.q = ConvBN(in_dim, query_dim)
        self.k = ConvBN(in_dim, query_dim)
        self.v = ConvBN(in_dim, value_dim)
        self.v_local = DepthwiseConvBN(value_dim, stride=2)
        self.bias = AttentionBias(grid, 2 * grid)
        self.proj = ConvBN(value_dim, out_dim)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C_in, H, W), even sizes -> (B, C_out, H / 2, W / 2)."""
        height, width = features.shape[-2:]
        queries = self.q(self.q_local(features) + features[..., ::2, ::2])
        values = self.v(features)
        similarity = _to_heads(queries) @ _to_heads(self.k(features)).mT * self.scale
        attention = (similarity + self.bias(*similarity.shape[-2:])).softmax(dim=-1)
        out = _attend(attention, _to_heads(values)).unflatten(2, (height // 2, width // 2))
        return self.proj(F.gelu(out + self.v_local(values)))
