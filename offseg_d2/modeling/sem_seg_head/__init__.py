"""Segmentation heads: they see a backbone only through its output shapes."""

from offseg_d2.modeling.sem_seg_head.mask_former_head import MaskFormerHead
from offseg_d2.modeling.sem_seg_head.per_pixel_head import PerPixelHead

__all__ = ["MaskFormerHead", "PerPixelHead"]
