"""Base of the meta-architectures, after Detectron2's contract: dicts in, predictions out.

From an image to its label map: normalise, pad, backbone and head (:meth:`Segmentor.forward_scores`
of the kind of model), window by window if asked for (:func:`.inference.score_bands`), resize and
argmax together (:func:`.scores.label_map`).

Shapes: B batch, K classes, H x W the network's input.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import (
    SEM_SEG_HEADS_REGISTRY,
    Backbone,
    build_backbone,
    build_sem_seg_head,
)
from torch import Tensor, nn

from offseg_d2.modeling.meta_arch.common import batches_by_size, common_size, group_by_size, pad_to
from offseg_d2.modeling.meta_arch.inference import (
    InferenceSettings,
    predict,
    resize_logits,
    score_bands,
)
from offseg_d2.modeling.meta_arch.scores import ScoreBands, Scores, label_map


class Segmentor(nn.Module, ABC):
    """Semantic segmentation of images of any sizes.

    A kind of model says how its head's output is compared with targets (:meth:`losses`) and how it
    becomes scores of classes (:meth:`forward_network`, and the same in parts,
    :meth:`forward_scores`).

    Args:
        backbone: image -> feature pyramid; its ``size_divisibility`` is respected by padding.
        sem_seg_head: feature pyramid -> what the kind of model needs, see :meth:`takes_head`.
        pixel_mean: per channel, in the value range 0..255.
        pixel_std: per channel, in the value range 0..255.
        train_size: (height, width) to which smaller training images are padded, in pixels.
        inference: whole image or sliding window.
        freeze_batch_norm: keep the backbone's batch norms in evaluation mode while training.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    head_kind: ClassVar[str]  # what its heads are, with an example

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
        train_size: tuple[int, int] = (0, 0),
        inference: InferenceSettings | None = None,
        freeze_batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.train_size = train_size
        self.inference = inference or InferenceSettings()
        self.freeze_batch_norm = freeze_batch_norm
        mean, std = torch.tensor(pixel_mean), torch.tensor(pixel_std)
        self.register_buffer("pixel_mean", mean.view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", std.view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        backbone = build_backbone(cfg)
        cropped = cfg.INPUT.CROP.ENABLED and cfg.INPUT.CROP.TYPE == "absolute"
        return {
            "backbone": backbone,
            "sem_seg_head": cls._build_head(cfg, backbone.output_shape()),
            "pixel_mean": tuple(cfg.MODEL.PIXEL_MEAN),
            "pixel_std": tuple(cfg.MODEL.PIXEL_STD),
            "train_size": tuple(cfg.INPUT.CROP.SIZE) if cropped else (0, 0),
            "inference": InferenceSettings.from_config(cfg),
            "freeze_batch_norm": cfg.MODEL.BACKBONE.FREEZE_BATCH_NORM,
        }

    @classmethod
    def _build_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module:
        name = cfg.MODEL.SEM_SEG_HEAD.NAME
        entry = SEM_SEG_HEADS_REGISTRY.get(name)
        if isinstance(entry, type):  # before anything is built that only fits the wrong kind
            cls._check_head(entry, name)
        head = build_sem_seg_head(cfg, input_shape)
        cls._check_head(type(head), name)
        return head

    @classmethod
    def _check_head(cls, head: type, name: str) -> None:
        if not cls.takes_head(head):
            raise ValueError(
                f"`MODEL.SEM_SEG_HEAD.NAME` of {cls.__name__} must be {cls.head_kind}, "
                f"but is {name!r}."
            )

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def train(self, mode: bool = True) -> "Segmentor":
        super().train(mode)
        if self.freeze_batch_norm:
            for module in self.backbone.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Losses in training, predictions otherwise.

        Args:
            batched_inputs: one dict per image:

                * "image": (3, H, W) uint8 or float, value range 0..255, channels as `INPUT.FORMAT`;
                * in training what :meth:`losses` needs;
                * "height", "width": size of the result, by default that of "image".

        Returns:
            in training a dictionary of losses; otherwise a list with one
            ``{"sem_seg": (K, height, width) scores}`` per image. The images of a batch do not
            influence each other, whatever their sizes.
        """
        images = self._normalised(batched_inputs)
        if self.training:
            return self.losses(images, batched_inputs)
        results: list[dict[str, Tensor]] = [{} for _ in images]
        for same_size, batch in batches_by_size(images):
            for i, logits in zip(
                same_size, predict(self.forward_network, batch, self.inference), strict=True
            ):
                size = _result_size(batched_inputs[i])
                results[i]["sem_seg"] = resize_logits(logits[None], size)[0]
        return results

    @torch.no_grad()
    def predict_label_maps(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        """The best class of each pixel, without ever holding the scores of all classes.

        Args:
            batched_inputs: as :meth:`forward` takes them in evaluation.

        Returns:
            one ``{"sem_seg": (height, width) class ids}`` per image, in the smallest common integer
            type: the argmax of what :meth:`forward` gives, but for ties within rounding.
        """
        results: list[dict[str, Tensor]] = [{} for _ in batched_inputs]
        for i, scores in self.stream_scores(batched_inputs):
            results[i]["sem_seg"] = label_map(scores, _result_size(batched_inputs[i]))
        return results

    def stream_scores(
        self, batched_inputs: list[dict[str, Any]]
    ) -> Iterator[tuple[int, ScoreBands]]:
        """Scores of images as streams from top to bottom, at the size of the network's input.

        Yields:
            index of an image and its scores, to be read before the next are asked for.
        """
        images = self._normalised(batched_inputs)
        # Offsets see every pixel of their input, so images are never padded to a common size.
        for same_size, batch in batches_by_size(images):
            yield from zip(
                same_size, score_bands(self.forward_scores, batch, self.inference), strict=True
            )

    @classmethod
    @abstractmethod
    def takes_head(cls, head: type) -> bool:
        """Check that a class of heads has what this kind of model needs."""

    @abstractmethod
    def losses(
        self, images: Tensor | list[Tensor], batched_inputs: list[dict[str, Any]]
    ) -> dict[str, Tensor]:
        """Losses of normalised images: (3, H, W) of any sizes, or a tensor of them."""

    @abstractmethod
    def forward_network(self, images: Tensor) -> Tensor:
        """Normalised (B, 3, H, W) of any size -> scores (B, K, H, W)."""

    @abstractmethod
    def forward_scores(self, images: Tensor) -> list[Scores]:
        """Scores of each image as of :meth:`forward_network`, computed when they are read."""

    @abstractmethod
    def probabilities(self, scores: Tensor) -> Tensor:
        """(K, h, w) scores -> class probabilities, which test-time augmentation averages."""

    def normalise(self, image: Tensor) -> Tensor:
        """(..., 3, H, W) in 0..255 -> zero mean and unit variance, on the model's device."""
        values = self.to_device(image).to(self.pixel_mean.dtype)
        return (values - self.pixel_mean) / self.pixel_std

    def to_device(self, values: Tensor) -> Tensor:
        """Copy in the type that it has; from pinned memory without waiting for the device."""
        return values.to(self.device, non_blocking=True)

    def _normalised(self, samples: list[dict[str, Any]]) -> Tensor | list[Tensor]:
        images = [self.to_device(sample["image"]) for sample in samples]
        if self.device.type != "cpu" and len(group_by_size(images)) == 1:  # few operations
            return self.normalise(torch.stack(images))
        return [self.normalise(image) for image in images]

    def _padded(self, images: Tensor) -> Tensor:
        """Zero-pad (right, bottom) to what the backbone needs; the result is cut off again.

        That is a multiple of its ``size_divisibility``, and a pixel at the coarsest level.
        """
        least = max([shape.stride for shape in self.backbone.output_shape().values()])
        height, width = common_size([images], (least, least), self.backbone.size_divisibility)
        return images if images.shape[-2:] == (height, width) else pad_to(images, height, width)


def _result_size(sample: dict[str, Any]) -> tuple[int, int]:
    """(height, width) of the result in pixels: what the sample asks for, else its image's."""
    height, width = sample["image"].shape[-2:]
    return sample.get("height", height), sample.get("width", width)
