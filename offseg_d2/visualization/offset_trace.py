"""The offsets of a trained model in one image: tensors, before anything is drawn.

:func:`trace_offsets` runs a model on an image and keeps what its last layer was given; the terms of
the method (:mod:`offseg_d2.modeling.offset_learning`) are then computed from that, one by one.

Shapes: K classes (or queries), N = h w pixels, C channels.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offseg_d2.modeling.classifiers import OffsetClassifier, OffsetMaskPredictor
from offseg_d2.modeling.offset_learning import OffsetLearning


@dataclass(frozen=True)
class OffsetTrace:
    """The terms of offset learning on one image.

    Attributes:
        pixel_features: X (N, C).
        representations: W (K, C), class vectors or mask embeddings.
        offset_learning: the layer.
        norm: of the class scores; None in the mask-query form.
        size: (h, w) of the map of features.
        padded_size: (H', W') of the padded image that this map covers.
        image_size: (H, W), its upper left part.
        class_probabilities: (Q, K) of each query, in the mask-query form.
    """

    pixel_features: Tensor
    representations: Tensor
    offset_learning: OffsetLearning
    norm: nn.Module | None
    size: tuple[int, int]
    padded_size: tuple[int, int]
    image_size: tuple[int, int]
    class_probabilities: Tensor | None = None

    @property
    def compares_classes(self) -> bool:
        """True if the scores of a pixel are compared with each other, as in the per-pixel form."""
        return self.class_probabilities is None

    @property
    def num_classes(self) -> int:
        """Classes, also where the rows of W are queries."""
        if self.class_probabilities is None:
            return len(self.representations)
        return self.class_probabilities.shape[1]

    @cached_property
    def coupled_similarity(self) -> Tensor:
        """A = X W^T (eq. A): (N, K)."""
        return self.pixel_features @ self.representations.mT

    @cached_property
    @torch.no_grad()
    def _aligned(self) -> tuple[Tensor, Tensor]:
        pixels, classes = self.offset_learning(self.pixel_features[None], self.representations)
        return pixels[0], classes[0]

    @property
    def aligned_pixels(self) -> Tensor:
        """X' (N, C) (eq. X')."""
        return self._aligned[0]

    @property
    def aligned_classes(self) -> Tensor:
        """W' (K, C) (eq. W')."""
        return self._aligned[1]

    @property
    def class_offset(self) -> Tensor:
        """W' - W: (K, C)."""
        return self.aligned_classes - self.representations

    def relative_feature_offset(self) -> Tensor:
        """Length of each pixel's offset over that of the pixel: (h, w)."""
        moved = (self.aligned_pixels - self.pixel_features).norm(dim=1)
        return (moved / self.pixel_features.norm(dim=1).clamp_min(1e-12)).view(self.size)

    def attention_to_pixels(self, index: int) -> Tensor:
        """Attention of class ``index`` to the pixels, a softmax over them: (h, w)."""
        return self.coupled_similarity[:, index].softmax(dim=0).view(self.size)

    @torch.no_grad()
    def scores(self, *, offsets: bool = True) -> Tensor:
        """Scores as the layer gives them, or with both offsets set to zero: (N, K).

        The other weights are those that were trained with offsets: this shows what the offsets
        change in this model, not what a model trained without them would say.
        """
        pixels, classes = self._aligned if offsets else (self.pixel_features, self.representations)
        scores = pixels @ classes.mT
        return scores if self.norm is None else self.norm(scores)

    def class_scores(self, *, offsets: bool = True) -> Tensor:
        """Scores of the classes: those of the layer, or the queries' masks and classes together.

        In the mask-query form only the last prediction is without offsets; the masks that steer the
        attention before it stay.

        Returns:
            (N, K).
        """
        scores = self.scores(offsets=offsets)
        if self.class_probabilities is None:
            return scores
        return scores.sigmoid() @ self.class_probabilities

    def labels(self, *, offsets: bool = True) -> Tensor:
        """Class of the highest score of each pixel of the image: (H, W)."""
        scores = self.class_scores(offsets=offsets).mT.unflatten(1, self.size)
        return self.to_image(scores).argmax(dim=0)

    def to_image(self, values: Tensor) -> Tensor:
        """Resize (..., h, w) to the image, bilinearly: (..., H, W)."""
        maps = values.reshape(1, -1, *self.size)
        resized = F.interpolate(maps, self.padded_size, mode="bilinear", align_corners=False)
        height, width = self.image_size
        return resized[..., :height, :width].reshape(*values.shape[:-2], height, width)

    def row_of(self, class_id: int) -> int:
        """Row of W that stands for a class: itself, or the query that is surest of it."""
        if self.class_probabilities is None:
            return class_id
        return int(self.class_probabilities[:, class_id].argmax())


def offset_layer(model: nn.Module) -> OffsetClassifier | OffsetMaskPredictor:
    """The last layer of a model.

    Raises:
        ValueError: the model has no offsets.
    """
    layers = [
        module
        for module in model.modules()
        if isinstance(module, OffsetClassifier | OffsetMaskPredictor)
    ]
    if len(layers) != 1:
        raise ValueError(
            "`MODEL.SEM_SEG_HEAD.CLASSIFIER` must be 'offset' to show offsets, but the model has "
            f"{len(layers)} layers with offsets."
        )
    return layers[0]


@torch.no_grad()
def relative_offsets(layer: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, float]:
    """Mean lengths of the offsets of one image over those of what they move.

    Args:
        layer: offset classifier or mask predictor.
        inputs: what it was called with, batch 1.

    Returns:
        "class" and "feature"; 0 where that offset is switched off.
    """
    features = inputs[-1][0].to(torch.promote_types(inputs[-1].dtype, torch.float32))
    pixels = features.flatten(1).mT
    classes = (
        layer.class_representations if isinstance(layer, OffsetClassifier) else inputs[0][0]
    ).to(pixels.dtype)
    with torch.autocast(pixels.device.type, enabled=False):
        moved_pixels, moved_classes = layer.offset_learning(pixels[None], classes)

    def ratio(moved: Tensor, before: Tensor) -> float:
        return float(((moved - before).norm(dim=1) / before.norm(dim=1).clamp_min(1e-12)).mean())

    return {
        "class": ratio(moved_classes[0], classes),
        "feature": ratio(moved_pixels[0], pixels),
    }


@torch.no_grad()
def trace_offsets(model: nn.Module, sample: dict[str, Any]) -> OffsetTrace:
    """Run a model on one image and keep the terms of its offsets.

    Args:
        model: with an offset classifier or mask predictor, in evaluation mode. In the mask-query
            form the last of its predictions is kept.
        sample: one element of the model's input, such as ``{"image": (3, H, W)}``.

    Returns:
        the terms for the whole image, in float32 on the model's device. The image is not cut into
        windows, whatever the configuration says: offsets belong to what is looked at at once.

    Raises:
        ValueError: the model has no offsets.
    """
    layer = offset_layer(model)
    inputs: list[tuple[Tensor, ...]] = []
    handle = layer.register_forward_pre_hook(lambda _, args: inputs.append(args))
    try:
        image = model.normalise(sample["image"])
        padded = model._padded(image[None])  # as it predicts: offsets see the padding, too
        output = model.sem_seg_head(model.backbone(padded))
    finally:
        handle.remove()
    features = inputs[-1][-1]
    if isinstance(layer, OffsetClassifier):
        representations, norm, classes = layer.class_representations.detach(), layer.norm, None
    else:
        representations, norm = inputs[-1][0][0], None
        classes = output["pred_logits"][0].to(torch.float32).softmax(dim=1)[:, :-1]
    dtype = torch.promote_types(features.dtype, torch.float32)
    return OffsetTrace(
        features[0].to(dtype).flatten(1).mT,
        representations.to(dtype),
        layer.offset_learning,
        norm,
        size=tuple(features.shape[-2:]),
        padded_size=tuple(padded.shape[-2:]),
        image_size=tuple(image.shape[-2:]),
        class_probabilities=classes,
    )
