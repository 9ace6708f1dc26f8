"""Classifiers, losses and meta-architectures in the authors' order of operations.

Shapes: B batch, C channels, K classes, Q queries, N = H W pixels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from offseg_d2.modeling import MaskSegmentor, PerPixelHead, PerPixelSegmentor
from offseg_d2.modeling.classifiers import OffsetClassifier, OffsetMaskPredictor
from offseg_d2.modeling.meta_arch.inference import resize_logits


class AuthorsOffsetClassifier(OffsetClassifier):
    """Both sides are moved, then multiplied."""

    def forward(self, pixel_features: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, K, H, W)."""
        pixels = pixel_features.flatten(2).mT  # (B, N, C)
        with torch.autocast(pixels.device.type, enabled=False):  # the authors never use autocast
            pixels = pixels.to(torch.promote_types(pixels.dtype, torch.float32))
            aligned = self.offset_learning(pixels, self.class_representations)
            logits = self.norm(aligned[0] @ aligned[1].mT)  # (B, N, K)
        # In this order of views resizing sees that the classes are innermost; otherwise it copies.
        return logits.unflatten(1, pixel_features.shape[-2:]).permute(0, 3, 1, 2)


class AuthorsOffsetMaskPredictor(OffsetMaskPredictor):
    """Both sides are moved, then multiplied."""

    def forward(self, mask_embeddings: Tensor, mask_features: Tensor) -> Tensor:
        """(B, Q, C) and (B, C, H, W) -> mask logits (B, Q, H, W)."""
        pixels = mask_features.flatten(2).mT  # (B, N, C)
        with torch.autocast(pixels.device.type, enabled=False):
            dtype = torch.promote_types(pixels.dtype, torch.float32)
            pairs = self.offset_learning(pixels.to(dtype), mask_embeddings.to(dtype))
            masks = pairs[1] @ pairs[0].mT  # (B, Q, N)
        return masks.unflatten(2, mask_features.shape[-2:])


class AuthorsPerPixelHead(PerPixelHead):
    """The loss of logits that were resized as a whole."""

    def losses(
        self, logits: Tensor, targets: Tensor, size: tuple[int, int] | None = None
    ) -> dict[str, Tensor]:
        """Logits (B, K, h, w) and class ids (B, H, W) -> cross-entropy, mean over all pixels."""
        height, width = targets.shape[-2:]
        resized = resize_logits(logits, size or (height, width))[..., :height, :width]
        loss = F.cross_entropy(resized, targets, ignore_index=self.ignore_value, reduction="sum")
        return {"loss_sem_seg": loss * (self.loss_weight / targets.numel())}


class AuthorsPerPixelSegmentor(PerPixelSegmentor):
    """Per-pixel model that resizes all logits and then compares them."""

    def forward_network(self, images: Tensor) -> Tensor:
        """Normalised (B, 3, H, W) of any size -> logits (B, K, H, W)."""
        height, width = images.shape[-2:]
        padded = self._padded(images)
        logits = self.sem_seg_head(self.backbone(padded))
        return resize_logits(logits, padded.shape[-2:])[..., :height, :width]

    @torch.no_grad()
    def predict_label_maps(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        """One ``{"sem_seg": (height, width) class ids}`` for each sample."""
        return [{"sem_seg": result["sem_seg"].argmax(dim=0)} for result in self(batched_inputs)]


class AuthorsMaskSegmentor(MaskSegmentor):
    """The masks of all queries are resized, then combined."""

    def forward_network(self, images: Tensor) -> Tensor:
        """Normalised (B, 3, H, W) of any size -> scores (B, K, H, W)."""
        height, width = images.shape[-2:]
        padded = self._padded(images)
        outputs = self.sem_seg_head(self.backbone(padded))
        masks = resize_logits(outputs["pred_masks"], padded.shape[-2:])
        masks = masks[..., :height, :width].sigmoid()
        classes = outputs["pred_logits"].softmax(dim=-1)[..., :-1]
        return torch.einsum("bqk,bqhw->bkhw", classes, masks)

    predict_label_maps = AuthorsPerPixelSegmentor.predict_label_maps
