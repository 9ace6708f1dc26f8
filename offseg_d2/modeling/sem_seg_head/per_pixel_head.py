"""The head of all per-pixel hosts: pixel decoder, then classifier.

Which pixel decoder and which classifier is a matter of configuration; there is one head.
"""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from offseg_d2.layers import resized_cross_entropy
from offseg_d2.modeling.classifiers import build_classifier
from offseg_d2.modeling.pixel_decoder import build_pixel_decoder
from offseg_d2.modeling.sem_seg_head.common import select_features


@SEM_SEG_HEADS_REGISTRY.register()
class PerPixelHead(nn.Module):
    """Backbone features -> class logits at the pixel decoder's stride, and their loss.

    Args:
        pixel_decoder: features dict -> list of maps, finest first.
        classifier: (B, C, h, w) -> (B, K, h, w).
        ignore_value: label of pixels that do not count.
        loss_weight: factor on the loss.
    """

    @configurable
    def __init__(
        self,
        *,
        pixel_decoder: nn.Module,
        classifier: nn.Module,
        ignore_value: int = 255,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.classifier = classifier
        self.ignore_value = ignore_value
        self.loss_weight = loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        head = cfg.MODEL.SEM_SEG_HEAD
        pixel_decoder = build_pixel_decoder(cfg, select_features(cfg, input_shape))
        return {
            "pixel_decoder": pixel_decoder,
            "classifier": build_classifier(
                head.CLASSIFIER,
                pixel_decoder.out_channels,
                head.NUM_CLASSES,
                class_offset=head.CLASS_OFFSET,
                feature_offset=head.FEATURE_OFFSET,
                class_norm=head.CLASS_NORM,
                offset_init_std=head.OFFSET_INIT_STD,
                dropout=head.DROPOUT,
            ),
            "ignore_value": head.IGNORE_VALUE,
            "loss_weight": head.LOSS_WEIGHT,
        }

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """(B, C_i, H / s_i, W / s_i) per level -> logits (B, K, H / s, W / s)."""
        pixel_features = self.pixel_decoder(features)[0]
        return self.classifier(pixel_features)

    def losses(
        self, logits: Tensor, targets: Tensor, size: tuple[int, int] | None = None
    ) -> dict[str, Tensor]:
        """Cross-entropy, summed over the labelled pixels and divided by *all* pixels.

        Dividing by all pixels, ignored and padded ones included, is what the authors' training
        does; it weighs batches with few labelled pixels less.

        Args:
            logits: (B, K, h, w).
            targets: (B, H, W) int64, class ids or ``ignore_value``.
            size: (height, width) to which the logits are resized, a few rows at a time; the upper
                left H x W of them count. None if the logits have the size of the targets.
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        size = size or (logits.shape[-2], logits.shape[-1])
        loss = resized_cross_entropy(logits, targets, size, ignore_index=self.ignore_value)
        return {"loss_sem_seg": loss * (self.loss_weight / targets.numel())}
