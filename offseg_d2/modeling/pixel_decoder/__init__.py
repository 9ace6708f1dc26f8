"""Pixel decoders: features dict -> list of maps, finest first; element 0 gets classified."""

from offseg_d2.modeling.pixel_decoder.build import PIXEL_DECODER_REGISTRY, build_pixel_decoder
from offseg_d2.modeling.pixel_decoder.light_ham import LightHamPixelDecoder
from offseg_d2.modeling.pixel_decoder.msdeformattn import MSDeformAttnPixelDecoder
from offseg_d2.modeling.pixel_decoder.offseg import OffSegPixelDecoder
from offseg_d2.modeling.pixel_decoder.segformer import SegFormerPixelDecoder

__all__ = [
    "PIXEL_DECODER_REGISTRY",
    "LightHamPixelDecoder",
    "MSDeformAttnPixelDecoder",
    "OffSegPixelDecoder",
    "SegFormerPixelDecoder",
    "build_pixel_decoder",
]
