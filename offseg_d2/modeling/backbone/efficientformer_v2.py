"""EfficientFormerV2, the backbone of OffSeg.

Li et al., "Rethinking Vision Transformers for MobileNet Size and Speed", ICCV 2023
(arXiv:2212.08059). Four convolutional stages at strides 4, 8, 16, 32; the last blocks of the two
coarse stages add attention. As OffSeg uses it: no norm on the outputs, and attention biases for an
input of 512 x 512, resized to other inputs as OffSeg's models do (``AttentionBias``).

Shapes: B batch, C channels.
"""

from dataclasses import dataclass

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import BACKBONE_REGISTRY, ShapeSpec
from torch import Tensor, nn

from offseg_d2.layers import ConvBN, DropPath, drop_path_rates, norm_gelu_conv
from offseg_d2.modeling.backbone.efficientformer_v2_attention import (
    Attention,
    DownsamplingAttention,
)
from offseg_d2.modeling.backbone.freezing import FreezableBackbone

NOMINAL_INPUT_SIZE = 512
STRIDES = (4, 8, 16, 32)


@dataclass(frozen=True)
class EfficientFormerV2Variant:
    """One size of the network.

    Attributes:
        widths: channels of the four stages.
        mlp_ratios: for each stage, hidden / input channels of the MLP of each block.
        num_attention_blocks: trailing blocks with attention, in each of the two coarse stages.
        drop_path_rate: stochastic depth rate of the last block.
    """

    widths: tuple[int, int, int, int]
    mlp_ratios: tuple[tuple[int, ...], ...]
    num_attention_blocks: int
    drop_path_rate: float = 0.0


EFFICIENTFORMER_V2_VARIANTS = {
    "s0": EfficientFormerV2Variant(
        widths=(32, 48, 96, 176),
        mlp_ratios=((4,) * 2, (4,) * 2, (4, 3, 3, 3, 4, 4), (4, 3, 3, 4)),
        num_attention_blocks=2,
    ),
    "s1": EfficientFormerV2Variant(
        widths=(32, 48, 120, 224),
        mlp_ratios=((4,) * 3, (4,) * 3, (4, 4, 3, 3, 3, 3, 4, 4, 4), (4, 4, 3, 3, 4, 4)),
        num_attention_blocks=2,
    ),
    "s2": EfficientFormerV2Variant(
        widths=(32, 64, 144, 288),
        mlp_ratios=(
            (4,) * 4,
            (4,) * 4,
            (4, 4, 3, 3, 3, 3, 3, 3, 4, 4, 4, 4),
            (4, 4, 3, 3, 3, 3, 4, 4),
        ),
        num_attention_blocks=4,
        drop_path_rate=0.02,
    ),
    "l": EfficientFormerV2Variant(
        widths=(40, 80, 192, 384),
        mlp_ratios=(
            (4,) * 5,
            (4,) * 5,
            (4, 4, 4, 4, 3, 3, 3, 3, 3, 3, 3, 4, 4, 4, 4),
            (4, 4, 4, 3, 3, 3, 3, 4, 4, 4),
        ),
        num_attention_blocks=6,
        drop_path_rate=0.1,
    ),
}


class ConvMlp(nn.Module):
    """MLP of 1 x 1 convolutions with a depth-wise 3 x 3 in the middle, all batch-normalised."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden_dim, 1)
        self.norm1 = nn.BatchNorm2d(hidden_dim)
        self.mid = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim)
        self.mid_norm = nn.BatchNorm2d(hidden_dim)
        self.fc2 = nn.Conv2d(hidden_dim, dim, 1)
        self.norm2 = nn.BatchNorm2d(dim)
        for layer in (self.fc1, self.fc2):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        hidden = norm_gelu_conv(self.fc1(features), self.norm1, self.mid)
        return self.norm2(norm_gelu_conv(hidden, self.mid_norm, self.fc2))


class Block(nn.Module):
    """Residual block: optional attention, then the MLP, each with layer scale and drop path."""

    def __init__(
        self,
        dim: int,
        mlp_ratio: int,
        token_mixer: Attention | None,
        drop_path: float,
        layer_scale_init: float,
    ) -> None:
        super().__init__()
        self.token_mixer = token_mixer
        if token_mixer is not None:
            self.layer_scale_1 = nn.Parameter(torch.full((dim, 1, 1), layer_scale_init))
        self.mlp = ConvMlp(dim, dim * mlp_ratio)
        self.layer_scale_2 = nn.Parameter(torch.full((dim, 1, 1), layer_scale_init))
        self.drop_path = DropPath(drop_path)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if self.token_mixer is not None:
            branch = self.drop_path(self.token_mixer(features))
            features = torch.addcmul(features, self.layer_scale_1, branch)
        return torch.addcmul(features, self.layer_scale_2, self.drop_path(self.mlp(features)))


class Downsample(nn.Module):
    """Halves the resolution: strided convolution and norm, plus attention before the last stage.

    The children's names differ as their weight decay does: `norm` is exempt, `bn` is not.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_dim, out_dim, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(out_dim)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, ceil(H / 2), ceil(W / 2))."""
        return self.norm(self.proj(features))


class AttentionDownsample(ConvBN):
    """Strided convolution and norm plus :class:`DownsamplingAttention`."""

    def __init__(self, in_dim: int, out_dim: int, grid: int) -> None:
        super().__init__(in_dim, out_dim, 3, stride=2)
        self.attn = DownsamplingAttention(in_dim, out_dim, grid)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C_in, H, W), even sizes -> (B, C_out, H / 2, W / 2)."""
        return self.bn(self.conv(features)) + self.attn(features)


@BACKBONE_REGISTRY.register()
class EfficientFormerV2(FreezableBackbone):
    """EfficientFormerV2 without its classification head.

    Args:
        variant: a key of ``EFFICIENTFORMER_V2_VARIANTS``.
        drop_path_rate: stochastic depth rate of the last block; None means the variant's own.
        layer_scale_init: initial value of the layer scales.
        out_features: which of "res2", "res3", "res4", "res5" to return.
        freeze_at: first parts that are not trained, see :meth:`.FreezableBackbone.freeze`.

    Raises:
        ValueError: if ``variant`` or an output is unknown.
    """

    # Channels innermost: depth-wise convolutions on a CPU are faster so, 1x1 ones no slower.
    memory_format = torch.channels_last

    @configurable
    def __init__(
        self,
        *,
        variant: str,
        drop_path_rate: float | None = None,
        layer_scale_init: float = 1e-5,
        out_features: tuple[str, ...] = ("res2", "res3", "res4", "res5"),
        freeze_at: int = 0,
    ) -> None:
        super().__init__()
        if variant not in EFFICIENTFORMER_V2_VARIANTS:
            raise ValueError(
                "`MODEL.EFFICIENTFORMER_V2.VARIANT` must be one of "
                f"{sorted(EFFICIENTFORMER_V2_VARIANTS)}, but is {variant!r}."
            )
        spec = EFFICIENTFORMER_V2_VARIANTS[variant]
        widths = spec.widths
        levels = {f"res{i + 2}": i for i in range(4)}
        unknown = sorted(set(out_features) - set(levels))
        if unknown:
            raise ValueError(f"`out_features` must be among {sorted(levels)}, but has {unknown}.")
        self.stem = nn.Sequential(
            ConvBN(3, widths[0] // 2, 3, stride=2),
            nn.GELU(),
            ConvBN(widths[0] // 2, widths[0], 3, stride=2),
            nn.GELU(),
        )
        rate = spec.drop_path_rate if drop_path_rate is None else drop_path_rate
        self.stages = _build_stages(spec, rate, layer_scale_init)
        last_grid = NOMINAL_INPUT_SIZE // STRIDES[3]
        self.downsamples = nn.ModuleList(
            [
                Downsample(widths[0], widths[1]),
                Downsample(widths[1], widths[2]),
                AttentionDownsample(widths[2], widths[3], last_grid),
            ]
        )
        self._out_features = list(out_features)
        self._out_feature_channels = {name: widths[i] for name, i in levels.items()}
        self._out_feature_strides = {name: STRIDES[i] for name, i in levels.items()}
        self.freeze(freeze_at)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        keys = cfg.MODEL.EFFICIENTFORMER_V2
        return {
            "variant": keys.VARIANT,
            "drop_path_rate": None if keys.DROP_PATH_RATE < 0 else keys.DROP_PATH_RATE,
            "layer_scale_init": keys.LAYER_SCALE_INIT,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
        }

    def parts(self) -> list[tuple[nn.Module, ...]]:
        """The stem, then the stages, all but the first one with its downsampling."""
        later = zip(self.downsamples, self.stages[1:], strict=True)
        return [(self.stem,), (self.stages[0],), *later]

    @property
    def size_divisibility(self) -> int:
        """Input sizes must be multiples of this: attention halves the stride-16 map exactly."""
        return 32

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Compute the feature pyramid.

        Args:
            image: (B, 3, H, W), normalised; H and W multiples of 32.

        Returns:
            "res2".."res5" at strides 4, 8, 16, 32.
        """
        features = self.stem(image.contiguous(memory_format=self.memory_format))
        outputs = {}
        for level, stage in enumerate(self.stages):
            if level > 0:
                features = self.downsamples[level - 1](features)
            features = stage(features)
            outputs[f"res{level + 2}"] = features
        return {name: outputs[name] for name in self._out_features}


def _build_stages(
    spec: EfficientFormerV2Variant, drop_path_rate: float, layer_scale_init: float
) -> nn.ModuleList:
    rates = iter(drop_path_rates(drop_path_rate, sum(len(r) for r in spec.mlp_ratios)))
    # The stride-16 stage attends at half its resolution, so both stages see the same grid.
    grid = NOMINAL_INPUT_SIZE // STRIDES[3]
    stages = nn.ModuleList()
    for level, (dim, ratios) in enumerate(zip(spec.widths, spec.mlp_ratios, strict=True)):
        stage = nn.Sequential()
        for block, ratio in enumerate(ratios):
            has_attention = level >= 2 and block >= len(ratios) - spec.num_attention_blocks
            mixer = Attention(dim, 2 if level == 2 else 1, grid) if has_attention else None
            stage.append(Block(dim, ratio, mixer, next(rates), layer_scale_init))
        stages.append(stage)
    return stages
