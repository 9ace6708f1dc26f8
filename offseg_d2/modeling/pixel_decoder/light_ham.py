"""The pixel decoder of SegNeXt: the coarser levels together, with global context by Hamburger.

Guo et al., "SegNeXt: Rethinking Convolutional Attention Design for Semantic Segmentation",
NeurIPS 2022 (arXiv:2209.08575), section 3.2. The finest level of the backbone is left out.
"""

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from offseg_d2.layers import NMF2D, ContiguousGroupNorm, Hamburger
from offseg_d2.modeling.pixel_decoder.build import PIXEL_DECODER_REGISTRY
from offseg_d2.modeling.pixel_decoder.level_fusion import LevelFusion
from offseg_d2.modeling.pixel_decoder.offseg import NORM_GROUPS, conv_norm_relu


@PIXEL_DECODER_REGISTRY.register()
class LightHamPixelDecoder(nn.Module):
    """Fuses all given levels into one map at the stride of the finest.

    Args:
        input_shape: channels and strides of the backbone's outputs, from fine to coarse.
        ham_channels: channels inside the Hamburger, a multiple of 32 (group norm).
        out_channels: channels of the result, a multiple of 32.
        random_bases: see :class:`offseg_d2.layers.NMF2D`.

    Raises:
        ValueError: if ``ham_channels`` is not a multiple of 32.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        ham_channels: int = 256,
        out_channels: int = 256,
        random_bases: bool = False,
    ) -> None:
        super().__init__()
        if ham_channels % NORM_GROUPS:
            raise ValueError(
                f"`MODEL.LIGHT_HAM.CHANNELS` must be a multiple of {NORM_GROUPS}, but is "
                f"{ham_channels}."
            )
        self.in_features = list(input_shape)
        channels = [shape.channels for shape in input_shape.values()]
        norm = ContiguousGroupNorm(NORM_GROUPS, ham_channels)
        self.squeeze = LevelFusion(channels, ham_channels, norm)
        decomposition = NMF2D(ham_channels, random_bases=random_bases)
        self.hamburger = Hamburger(ham_channels, decomposition, NORM_GROUPS)
        self.align = conv_norm_relu(ham_channels, out_channels)
        self.out_channels = out_channels
        self.out_stride = next(iter(input_shape.values())).stride

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        return {
            "input_shape": input_shape,
            "ham_channels": cfg.MODEL.LIGHT_HAM.CHANNELS,
            "out_channels": cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM,
            "random_bases": cfg.MODEL.LIGHT_HAM.RANDOM_BASES,
        }

    def forward(self, features: dict[str, Tensor]) -> list[Tensor]:
        """Fuse the levels.

        Args:
            features: "res3".."res5", (B, C_i, H / s_i, W / s_i); sizes need not halve exactly.

        Returns:
            one map, (B, out_channels, H / 8, W / 8).
        """
        fused = self.squeeze([features[name] for name in self.in_features])
        return [self.align(self.hamburger(fused))]
