"""Mix Transformer (MiT), the backbone of SegFormer.

Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers",
NeurIPS 2021 (arXiv:2105.15203), section 3.1. Four transformer stages at strides 4, 8, 16, 32 with
overlapping patches; attention reads from a map of reduced resolution; a depth-wise convolution in
the feed-forward network takes the place of position encodings.

Shapes: B batch, C channels, h heads, N = H W tokens, M tokens after reduction.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import BACKBONE_REGISTRY, ShapeSpec
from torch import Tensor, nn

from offseg_d2.layers import ChannelLayerNorm, DropPath, drop_path_rates, fan_out_normal_
from offseg_d2.modeling.backbone.freezing import FreezableBackbone

STRIDES = (4, 8, 16, 32)
NUM_HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)
MLP_RATIO = 4
NORM_EPS = 1e-6
DROP_PATH_RATE = 0.1


@dataclass(frozen=True)
class MiTVariant:
    """One size of the network.

    Attributes:
        dims: channels of the four stages.
        depths: blocks of the four stages.
    """

    dims: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]


_DIMS = (64, 128, 320, 512)
MIT_VARIANTS = {
    "b0": MiTVariant(dims=(32, 64, 160, 256), depths=(2, 2, 2, 2)),
    "b1": MiTVariant(dims=_DIMS, depths=(2, 2, 2, 2)),
    "b2": MiTVariant(dims=_DIMS, depths=(3, 4, 6, 3)),
    "b3": MiTVariant(dims=_DIMS, depths=(3, 4, 18, 3)),
    "b4": MiTVariant(dims=_DIMS, depths=(3, 8, 27, 3)),
    "b5": MiTVariant(dims=_DIMS, depths=(3, 6, 40, 3)),
}


def _layer_norm(dim: int) -> ChannelLayerNorm:
    return ChannelLayerNorm(dim, eps=NORM_EPS)


class OverlapPatchEmbed(nn.Module):
    """Strided convolution whose windows overlap, then layer norm."""

    def __init__(self, in_dim: int, dim: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_dim, dim, kernel, stride=stride, padding=kernel // 2)
        self.norm = _layer_norm(dim)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, ceil(H / stride), ceil(W / stride))."""
        return self.norm(self.proj(features))


class EfficientAttention(nn.Module):
    """Multi-head attention whose keys and values come from a map of reduced resolution.

    The projections of queries, keys and values are packed into one matrix, as in
    ``nn.MultiheadAttention``.

    Args:
        dim: C.
        num_heads: h.
        reduction: side of the patches that become one key; 1 reads the map itself.
    """

    def __init__(self, dim: int, num_heads: int, reduction: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        self.sr, self.norm = None, None
        if reduction > 1:
            self.sr = nn.Conv2d(dim, dim, reduction, stride=reduction)
            self.norm = _layer_norm(dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.trunc_normal_(self.out_proj.weight, std=0.02)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        dim, height, width = features.shape[1:]
        source = features
        if self.sr is not None and self.norm is not None:
            source = self.norm(self.sr(features))
        query_weight, source_weight = self.in_proj_weight.split([dim, 2 * dim])
        query_bias, source_bias = self.in_proj_bias.split([dim, 2 * dim])
        queries = F.linear(features.flatten(2).mT, query_weight, query_bias)  # (B, N, C)
        projected = F.linear(source.flatten(2).mT, source_weight, source_bias)  # (B, M, 2 C)
        keys, values = projected.chunk(2, dim=2)
        out = F.scaled_dot_product_attention(
            self._to_heads(queries), self._to_heads(keys), self._to_heads(values)
        )
        out = self.out_proj(out.transpose(1, 2).flatten(2))  # (B, N, C)
        return out.mT.unflatten(2, (height, width))

    def _to_heads(self, tokens: Tensor) -> Tensor:
        """(B, N, C) -> (B, h, N, C / h)."""
        return tokens.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class MixFFN(nn.Module):
    """Feed-forward network with a depth-wise 3 x 3 convolution, which sees positions."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden_dim, 1)
        self.dwconv = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim)
        self.fc2 = nn.Conv2d(hidden_dim, dim, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.fc2(F.gelu(self.dwconv(self.fc1(features))))


class Block(nn.Module):
    """Transformer block with norms in front: attention, then the feed-forward network."""

    def __init__(self, dim: int, num_heads: int, reduction: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = _layer_norm(dim)
        self.attn = EfficientAttention(dim, num_heads, reduction)
        self.norm2 = _layer_norm(dim)
        self.ffn = MixFFN(dim, MLP_RATIO * dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        features = features + self.drop_path(self.attn(self.norm1(features)))
        return features + self.drop_path(self.ffn(self.norm2(features)))


class Stage(nn.Module):
    """Patch embedding, blocks, and a last layer norm.

    The last one is not named `norm` as its weight decay differs: norms named `norm...` are exempt,
    `out_ln` is not (see ``solver/param_groups.py``).
    """

    def __init__(self, patch_embed: OverlapPatchEmbed, blocks: list[Block], dim: int) -> None:
        super().__init__()
        self.patch_embed = patch_embed
        self.blocks = nn.Sequential(*blocks)
        self.out_ln = _layer_norm(dim)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, ceil(H / stride), ceil(W / stride))."""
        return self.out_ln(self.blocks(self.patch_embed(features)))


@BACKBONE_REGISTRY.register()
class MiT(FreezableBackbone):
    """Mix Transformer without its classification head.

    Args:
        variant: a key of ``MIT_VARIANTS``.
        drop_path_rate: stochastic depth rate of the last block.
        freeze_at: first parts that are not trained, see :meth:`.FreezableBackbone.freeze`.

    Raises:
        ValueError: if ``variant`` is unknown.
    """

    @configurable
    def __init__(
        self, *, variant: str, drop_path_rate: float = DROP_PATH_RATE, freeze_at: int = 0
    ) -> None:
        super().__init__()
        if variant not in MIT_VARIANTS:
            raise ValueError(
                f"`MODEL.MIT.VARIANT` must be one of {sorted(MIT_VARIANTS)}, but is {variant!r}."
            )
        spec = MIT_VARIANTS[variant]
        rates = iter(drop_path_rates(drop_path_rate, sum(spec.depths)))
        self.stages = nn.ModuleList()
        in_dim = 3
        for level, (dim, depth) in enumerate(zip(spec.dims, spec.depths, strict=True)):
            kernel, stride = (7, 4) if level == 0 else (3, 2)
            blocks = [
                Block(dim, NUM_HEADS[level], REDUCTIONS[level], next(rates)) for _ in range(depth)
            ]
            self.stages.append(Stage(OverlapPatchEmbed(in_dim, dim, kernel, stride), blocks, dim))
            in_dim = dim
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out_normal_(module)
        self._out_features = [f"res{level + 2}" for level in range(4)]
        self._out_feature_channels = dict(zip(self._out_features, spec.dims, strict=True))
        self._out_feature_strides = dict(zip(self._out_features, STRIDES, strict=True))
        self.freeze(freeze_at)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        keys = cfg.MODEL.MIT
        rate = DROP_PATH_RATE if keys.DROP_PATH_RATE < 0 else keys.DROP_PATH_RATE
        return {
            "variant": keys.VARIANT,
            "drop_path_rate": rate,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
        }

    def parts(self) -> list[list[nn.Module]]:
        """The first patch embedding, then the stages."""
        return [[self.stages[0].patch_embed], *([stage] for stage in self.stages)]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Compute the feature pyramid.

        Args:
            image: (B, 3, H, W), normalised; H and W at least 29 (the attention of the first stage
                reads one key from 8 x 8 positions at stride 4).

        Returns:
            "res2".."res5" at strides 4, 8, 16, 32.

        Raises:
            ValueError: if the image is too small.
        """
        if min(image.shape[-2:]) < 29:
            raise ValueError(
                f"`image` must be at least 29 x 29 pixels for MiT, but is {tuple(image.shape)}."
            )
        outputs = {}
        features = image
        for name, stage in zip(self._out_features, self.stages, strict=True):
            features = stage(features)
            outputs[name] = features
        return outputs
