"""MSCAN, the backbone of SegNeXt.

Guo et al., "SegNeXt: Rethinking Convolutional Attention Design for Semantic Segmentation",
NeurIPS 2022 (arXiv:2209.08575), section 3.1. Four convolutional stages at strides 4, 8, 16, 32;
attention is a gate computed by large depth-wise strip convolutions at three scales.

Shapes: B batch, C channels.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import BACKBONE_REGISTRY, ShapeSpec
from torch import Tensor, nn

from offseg_d2.layers import ChannelLayerNorm, ConvBN, DropPath, drop_path_rates, fan_out_normal_
from offseg_d2.modeling.backbone.efficientformer_v2 import Downsample
from offseg_d2.modeling.backbone.freezing import FreezableBackbone

STRIDES = (4, 8, 16, 32)
MLP_RATIOS = (8, 8, 4, 4)
STRIP_SIZES = (7, 11, 21)
LAYER_SCALE_INIT = 1e-2
NORM_EPS = 1e-5


@dataclass(frozen=True)
class MSCANVariant:
    """One size of the network.

    Attributes:
        dims: channels of the four stages.
        depths: blocks of the four stages.
        drop_path_rate: stochastic depth rate of the last block.
    """

    dims: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    drop_path_rate: float = 0.1


_DIMS = (64, 128, 320, 512)
MSCAN_VARIANTS = {
    "t": MSCANVariant(dims=(32, 64, 160, 256), depths=(3, 3, 5, 2)),
    "s": MSCANVariant(dims=_DIMS, depths=(2, 2, 4, 2)),
    "b": MSCANVariant(dims=_DIMS, depths=(3, 3, 12, 3)),
    "l": MSCANVariant(dims=_DIMS, depths=(3, 5, 27, 3), drop_path_rate=0.3),
}


def _depthwise(dim: int, height: int, width: int) -> nn.Conv2d:
    """Depth-wise convolution that keeps the size."""
    return nn.Conv2d(dim, dim, (height, width), padding=(height // 2, width // 2), groups=dim)


class SpatialGate(nn.Module):
    """Multiplies a map by a gate that looks at 5 x 5, 7 x 7, 11 x 11 and 21 x 21 neighbourhoods.

    A k x k kernel is a horizontal strip followed by a vertical one.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv0 = _depthwise(dim, 5, 5)
        self.horizontal = nn.ModuleList(_depthwise(dim, 1, size) for size in STRIP_SIZES)
        self.vertical = nn.ModuleList(_depthwise(dim, size, 1) for size in STRIP_SIZES)
        self.mix = nn.Conv2d(dim, dim, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        near = self.conv0(features)
        scales = near
        for horizontal, vertical in zip(self.horizontal, self.vertical, strict=True):
            scales = scales + vertical(horizontal(near))
        return self.mix(scales) * features


class SpatialAttention(nn.Module):
    """The gate between two 1 x 1 convolutions, with a residual connection of its own."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj_1 = nn.Conv2d(dim, dim, 1)
        self.gate = SpatialGate(dim)
        self.proj_2 = nn.Conv2d(dim, dim, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.proj_2(self.gate(F.gelu(self.proj_1(features)))) + features


class ConvMlp(nn.Module):
    """MLP of 1 x 1 convolutions with a depth-wise 3 x 3 in the middle, without norms."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden_dim, 1)
        self.dwconv = _depthwise(hidden_dim, 3, 3)
        self.fc2 = nn.Conv2d(hidden_dim, dim, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.fc2(F.gelu(self.dwconv(self.fc1(features))))


class Block(nn.Module):
    """Residual block: attention, then the MLP, each with norm, layer scale and drop path."""

    def __init__(self, dim: int, mlp_ratio: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(dim)
        self.attn = SpatialAttention(dim)
        self.layer_scale_1 = nn.Parameter(torch.full((dim,), LAYER_SCALE_INIT))
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp = ConvMlp(dim, mlp_ratio * dim)
        self.layer_scale_2 = nn.Parameter(torch.full((dim,), LAYER_SCALE_INIT))
        self.drop_path = DropPath(drop_path)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        scale_1, scale_2 = (x[:, None, None] for x in (self.layer_scale_1, self.layer_scale_2))
        features = features + self.drop_path(scale_1 * self.attn(self.norm1(features)))
        return features + self.drop_path(scale_2 * self.mlp(self.norm2(features)))


class Stage(nn.Module):
    """Blocks and a last layer norm, whose result the next stage reads too."""

    def __init__(self, dim: int, blocks: list[Block]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.norm = ChannelLayerNorm(dim, eps=NORM_EPS)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.norm(self.blocks(features))


@BACKBONE_REGISTRY.register()
class MSCAN(FreezableBackbone):
    """MSCAN without its classification head.

    The batch norms of the stem are named `bn`, all other norms `norm...`, as their weight decay
    differs: the latter are exempt (see ``solver/param_groups.py``).

    Args:
        variant: a key of ``MSCAN_VARIANTS``.
        drop_path_rate: stochastic depth rate of the last block; None means the variant's own.
        freeze_at: first parts that are not trained, see :meth:`.FreezableBackbone.freeze`.

    Raises:
        ValueError: if ``variant`` is unknown.
    """

    @configurable
    def __init__(
        self, *, variant: str, drop_path_rate: float | None = None, freeze_at: int = 0
    ) -> None:
        super().__init__()
        if variant not in MSCAN_VARIANTS:
            choices = sorted(MSCAN_VARIANTS)
            raise ValueError(f"`MODEL.MSCAN.VARIANT` must be one of {choices}, but is {variant!r}.")
        spec = MSCAN_VARIANTS[variant]
        dims = spec.dims
        # No activation after the second norm, in the paper's models too.
        self.stem = nn.Sequential(
            ConvBN(3, dims[0] // 2, 3, stride=2),
            nn.GELU(),
            ConvBN(dims[0] // 2, dims[0], 3, stride=2),
        )
        self.downsamples = nn.ModuleList(Downsample(dims[i], dims[i + 1]) for i in range(3))
        rate = spec.drop_path_rate if drop_path_rate is None else drop_path_rate
        rates = iter(drop_path_rates(rate, sum(spec.depths)))
        self.stages = nn.ModuleList(
            Stage(dim, [Block(dim, ratio, next(rates)) for _ in range(depth)])
            for dim, ratio, depth in zip(dims, MLP_RATIOS, spec.depths, strict=True)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out_normal_(module)
        self._out_features = [f"res{level + 2}" for level in range(4)]
        self._out_feature_channels = dict(zip(self._out_features, dims, strict=True))
        self._out_feature_strides = dict(zip(self._out_features, STRIDES, strict=True))
        self.freeze(freeze_at)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        keys = cfg.MODEL.MSCAN
        rate = None if keys.DROP_PATH_RATE < 0 else keys.DROP_PATH_RATE
        return {
            "variant": keys.VARIANT,
            "drop_path_rate": rate,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
        }

    def parts(self) -> list[tuple[nn.Module, ...]]:
        """The stem, then the stages, all but the first one with its downsampling."""
        later = zip(self.downsamples, self.stages[1:], strict=True)
        return [(self.stem,), (self.stages[0],), *later]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Compute the feature pyramid.

        Args:
            image: (B, 3, H, W), normalised, of any size.

        Returns:
            "res2".."res5" at strides 4, 8, 16, 32.
        """
        # Depth-wise strips on a CPU are faster with the channels innermost, which the last norm of
        # a stage leaves behind anyway. Elsewhere the usual layout is restored.
        on_cpu = image.device.type == "cpu"
        layout = torch.channels_last if on_cpu else torch.contiguous_format
        features = self.stem(image.contiguous(memory_format=layout))
        outputs = {}
        for level, (name, stage) in enumerate(zip(self._out_features, self.stages, strict=True)):
            if level > 0:
                features = self.downsamples[level - 1](features)
            features = stage(features).contiguous(memory_format=layout)
            outputs[name] = features
        return outputs
