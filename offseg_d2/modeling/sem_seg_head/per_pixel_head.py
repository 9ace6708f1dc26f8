"""The head of all per-pixel hosts: pixel decoder, then classifier.

Which pixel decoder and which classifier is a matter of configuration; there is one head.
"""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from offseg_d2.layers import resized_cross_entropy
from offseg_d2.modeling.classifiers import build_classifier
from offseg_d2.modeling.losses import dice_loss, keep_hard_pixels, loss_options
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
        class_weights: one for each class; None weighs all alike. "balanced" has to become numbers
            before the first loss, see :func:`offseg_d2.data.balance_class_weights`.
        ohem_share: share of the labelled pixels, those with the highest loss, that count.
        dice_weight: factor on the dice loss; 0 leaves it out.
    """

    @configurable
    def __init__(
        self,
        *,
        pixel_decoder: nn.Module,
        classifier: nn.Module,
        ignore_value: int = 255,
        loss_weight: float = 1.0,
        class_weights: Sequence[float] | str | None = None,
        ohem_share: float = 1.0,
        dice_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.classifier = classifier
        self.ignore_value = ignore_value
        self.loss_weight = loss_weight
        self.ohem_share, self.dice_weight = ohem_share, dice_weight
        self.needs_class_weights = isinstance(class_weights, str)
        given = class_weights is not None and not self.needs_class_weights
        weights = torch.tensor(class_weights, dtype=torch.float32) if given else None
        # Not among the weights of a checkpoint: they are a setting.
        self.register_buffer("class_weights", weights, persistent=False)

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
            **loss_options(cfg),
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
        does; it weighs batches with few labelled pixels less. :mod:`offseg_d2.modeling.losses` has
        the formulas with class weights, hard pixels and dice.

        Args:
            logits: (B, K, h, w).
            targets: (B, H, W) int64, class ids or ``ignore_value``.
            size: (height, width) to which the logits are resized, a few rows at a time; the upper
                left H x W of them count. None if the logits have the size of the targets.

        Raises:
            ValueError: the class weights have not become numbers.
        """
        if self.needs_class_weights:
            raise ValueError(
                "`MODEL.SEM_SEG_HEAD.LOSS.CLASS_WEIGHTS` must be numbers before the first loss, "
                "but is 'balanced'; `offseg_d2.data.balance_class_weights(cfg)` computes them."
            )
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        size = size or (logits.shape[-2], logits.shape[-1])
        weight = None if self.class_weights is None else self.class_weights.to(logits.dtype)
        options = {"ignore_index": self.ignore_value, "weight": weight}
        counted, number = targets, targets.numel()
        if self.ohem_share < 1:
            counted = keep_hard_pixels(logits, targets, size, share=self.ohem_share, **options)
            number = (counted != self.ignore_value).sum().clamp(min=1)
        loss = resized_cross_entropy(logits, counted, size, **options)
        losses = {"loss_sem_seg": loss * (self.loss_weight / number)}
        if self.dice_weight:
            dice = dice_loss(logits, targets, size, ignore_index=self.ignore_value)
            losses["loss_dice"] = self.dice_weight * dice
        return losses
