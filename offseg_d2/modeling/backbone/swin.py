"""Swin Transformer: Detectron2's own network, with our names of levels and a table of sizes.

Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021
(arXiv:2103.14030). Parameters have Detectron2's names, which are those of Mask2Former's checkpoints
and of the original weights.

Shapes: B batch, C channels.
"""

from dataclasses import dataclass

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import BACKBONE_REGISTRY, ShapeSpec
from detectron2.modeling.backbone.swin import SwinTransformer
from torch import Tensor, nn

from offseg_d2.layers import DropPath, drop_path_rates
from offseg_d2.modeling.backbone.freezing import FreezableBackbone

DROP_PATH_RATE = 0.3
SIZE_DIVISIBILITY = 32


@dataclass(frozen=True)
class SwinVariant:
    """One size of the network.

    Attributes:
        dim: channels of the first stage; they double from stage to stage.
        depths: blocks of the four stages.
        num_heads: attention heads of the four stages.
        window_size: side of an attention window in tokens.
    """

    dim: int
    depths: tuple[int, int, int, int]
    num_heads: tuple[int, int, int, int]
    window_size: int


# Windows of 12 tokens: the weights for 384 x 384 images, from which Mask2Former starts b and l.
SWIN_VARIANTS = {
    "t": SwinVariant(96, (2, 2, 6, 2), (3, 6, 12, 24), window_size=7),
    "s": SwinVariant(96, (2, 2, 18, 2), (3, 6, 12, 24), window_size=7),
    "b": SwinVariant(128, (2, 2, 18, 2), (4, 8, 16, 32), window_size=12),
    "l": SwinVariant(192, (2, 2, 18, 2), (6, 12, 24, 48), window_size=12),
}


@BACKBONE_REGISTRY.register()
class Swin(FreezableBackbone, SwinTransformer):
    """Swin Transformer with features at strides 4, 8, 16 and 32.

    Args:
        variant: key of ``SWIN_VARIANTS``.
        drop_path_rate: largest stochastic depth rate; negative means 0.3.
        window_size: side of an attention window in tokens; 0 means the variant's own.
        freeze_at: first parts that are not trained, see :meth:`.FreezableBackbone.freeze`.

    Raises:
        ValueError: if the variant is unknown or the window size negative.
    """

    @configurable
    def __init__(
        self,
        *,
        variant: str = "t",
        drop_path_rate: float = -1.0,
        window_size: int = 0,
        freeze_at: int = 0,
    ) -> None:
        if variant not in SWIN_VARIANTS:
            raise ValueError(
                f"`MODEL.SWIN.VARIANT` must be one of {sorted(SWIN_VARIANTS)}, but is {variant!r}."
            )
        if window_size < 0:
            raise ValueError(
                f"`MODEL.SWIN.WINDOW_SIZE` must not be negative, but is {window_size}."
            )
        table = SWIN_VARIANTS[variant]
        # Detectron2 reads values of tensors while it builds, so there have to be values.
        device = torch.empty(0).device
        with torch.device("cpu" if device.type == "meta" else device):
            super().__init__(
                embed_dim=table.dim,
                depths=table.depths,
                num_heads=table.num_heads,
                window_size=window_size or table.window_size,
                drop_path_rate=0.0,
            )
        self.to(device)
        self._set_drop_path(DROP_PATH_RATE if drop_path_rate < 0 else drop_path_rate)
        # Detectron2's "p0".."p3" -> "res2".."res5"
        self.levels = {f"p{i}": f"res{i + 2}" for i in range(4)}
        self._out_features = list(self.levels.values())
        self._out_feature_channels = {f"res{i + 2}": table.dim * 2**i for i in range(4)}
        self._out_feature_strides = {f"res{i + 2}": 2 ** (i + 2) for i in range(4)}
        self.freeze(freeze_at)

    def _set_drop_path(self, largest: float) -> None:
        """Set our own stochastic depth in place of Detectron2's."""
        # Detectron2's needs timm, and imports it from a path that has moved.
        blocks = [block for layer in self.layers for block in layer.blocks]
        for block, rate in zip(blocks, drop_path_rates(largest, len(blocks)), strict=True):
            block.drop_path = DropPath(rate) if rate > 0 else nn.Identity()

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        keys = cfg.MODEL.SWIN
        return {
            "variant": keys.VARIANT,
            "drop_path_rate": keys.DROP_PATH_RATE,
            "window_size": keys.WINDOW_SIZE,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
        }

    def parts(self) -> list[list[nn.Module]]:
        """The patch embedding, then the stages, each with the merging of patches before it."""
        layers = list(self.layers)
        merges = [[layer.downsample] for layer in layers[:-1]]
        return [
            [self.patch_embed],
            *(
                [*merge, *layer.blocks, self.get_submodule(f"norm{i}")]
                for i, (merge, layer) in enumerate(zip([[], *merges], layers, strict=True))
            ),
        ]

    @property
    def size_divisibility(self) -> int:
        """Images are padded to a multiple of this, so that the levels halve exactly."""
        return SIZE_DIVISIBILITY

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W), normalised, of multiples of 32 -> "res2".."res5" at strides 4 to 32."""
        features = super().forward(image)
        return {ours: features[theirs] for theirs, ours in self.levels.items()}
