"""Registry of pixel decoders: features dict -> list of maps, finest first."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry
from torch import nn

PIXEL_DECODER_REGISTRY = Registry("PIXEL_DECODER")
PIXEL_DECODER_REGISTRY.__doc__ = """
Called as ``decoder(cfg, input_shape)``; ``input_shape`` is ordered from fine to coarse. A decoder
has ``out_channels`` and ``out_stride`` (of element 0 of its output, the map that is classified).
"""


def build_pixel_decoder(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """The pixel decoder that `MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME` names.

    Raises:
        ValueError: if there is no such pixel decoder.
    """
    name = cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME
    if name not in PIXEL_DECODER_REGISTRY:
        choices = sorted(key for key, _ in PIXEL_DECODER_REGISTRY)
        raise ValueError(
            f"`MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME` must be one of {choices}, but is {name!r}."
        )
    return PIXEL_DECODER_REGISTRY.get(name)(cfg, input_shape)
