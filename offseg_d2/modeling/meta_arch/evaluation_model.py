"""Wrappers for evaluation: label maps, or test-time augmentation.

Test-time augmentation predicts an image at several sizes, each also mirrored, and averages the
class probabilities. Sizes are relative to the original image, not to the test scale, and images
are resized by OpenCV's bilinear rule on 8-bit values, as everywhere in the authors' pipeline.

Shapes: K classes, H x W original image.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from offseg_d2.layers import label_dtype
from offseg_d2.modeling.meta_arch.scores import resized_blocks
from offseg_d2.modeling.meta_arch.segmentor import Segmentor


@dataclass(frozen=True)
class AugmentationSettings:
    """Views of an image.

    Attributes:
        ratios: sizes of the views, relative to the image.
        flip: use each view mirrored, too.
    """

    ratios: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    flip: bool = True

    def __post_init__(self) -> None:
        if not self.ratios or not all(r > 0 and math.isfinite(r) for r in self.ratios):
            raise ValueError(
                f"`TEST.SEM_SEG.TTA.RATIOS` must be positive numbers, but is {list(self.ratios)}."
            )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "AugmentationSettings":
        """Read `TEST.SEM_SEG.TTA`."""
        keys = cfg.TEST.SEM_SEG.TTA
        return cls(ratios=tuple(float(ratio) for ratio in keys.RATIOS), flip=keys.FLIP)

    def sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """(height, width) of the views of an image in pixels, rounded half up."""
        return [
            (max(int(height * ratio + 0.5), 1), max(int(width * ratio + 0.5), 1))
            for ratio in self.ratios
        ]


class _Wrapper(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training  # so that an evaluation can put the model back into it


class LabelMapModel(_Wrapper):
    """A model whose predictions are class ids instead of scores.

    Args:
        model: a meta-architecture of this package.
    """

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        """One ``{"sem_seg": (height, width) class ids}`` per image, see ``predict_label_maps``."""
        return self.model.predict_label_maps(batched_inputs)


class AugmentedModel(_Wrapper):
    """A model with test-time augmentation.

    Whole image or sliding window is as the model itself has it; each view goes through it on its
    own. Of the views' scores only a band exists at a time; the sum of probabilities is (K, H, W).

    Args:
        model: a meta-architecture of this package.
        settings: the views.
    """

    def __init__(self, model: nn.Module, settings: AugmentationSettings) -> None:
        super().__init__(model)
        self.settings = settings

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        """The best class of each pixel.

        Args:
            batched_inputs: dicts as the model takes them, but with "image" (3, H, W) uint8 as it
                is in its file, *not* resized to the test scale.

        Returns:
            one ``{"sem_seg": (height, width) class ids}`` per image.
        """
        results = []
        for sample in batched_inputs:
            total = self.mean_probabilities(sample)
            labels = total.argmax(dim=0).to(label_dtype(len(total)))
            results.append({"sem_seg": labels})
        return results

    @torch.no_grad()
    def mean_probabilities(self, sample: dict[str, Any]) -> Tensor:
        """Class probabilities of one image, averaged over the views: (K, height, width).

        Raises:
            ValueError: if the image is not of 8-bit values.
        """
        image = sample["image"]
        if image.dtype != torch.uint8:
            raise ValueError(f"`image` must be of uint8 for augmentation, but is {image.dtype}.")
        size = (sample.get("height", image.shape[1]), sample.get("width", image.shape[2]))
        total: Tensor | None = None
        views = self.settings.sizes(*image.shape[1:])
        for view_size in views:
            for first, block in self._probabilities(_resize(image, view_size), size):
                if total is None:  # classes innermost, as the blocks are
                    total = block.new_zeros(*size, len(block)).permute(2, 0, 1)
                total[:, first : first + block.shape[1]] += block
        assert total is not None, "an image has at least one view"
        return total.div_(len(views) * (1 + self.settings.flip))

    def _probabilities(self, view: Tensor, size: tuple[int, int]) -> Iterator[tuple[int, Tensor]]:
        """Blocks (K, n, width) of the probabilities of a view and of its mirror image."""
        sample = {"height": size[0], "width": size[1]}
        batch = [sample | {"image": view}]
        if self.settings.flip:
            batch.append(sample | {"image": view.flip(2)})
        for is_mirrored, scores in self.model.stream_scores(batch):
            for first, block in resized_blocks(scores, size):
                probabilities = self.model.probabilities(block)
                yield first, probabilities.flip(2) if is_mirrored else probabilities


def build_evaluation_model(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Wrap a model for evaluation: augmented if `TEST.SEM_SEG.TTA.ENABLED`, class ids otherwise.

    A model that is no meta-architecture of this package (Detectron2's own, or one that is wrapped
    already) is returned as it is.

    Raises:
        ValueError: if augmentation is asked for and the model cannot have it, or a key cannot be
            used.
    """
    is_own = isinstance(model, Segmentor)
    if cfg.TEST.SEM_SEG.TTA.ENABLED:
        settings = AugmentationSettings.from_config(cfg)
        if is_own:
            return AugmentedModel(model, settings)
        if not any(isinstance(module, AugmentedModel) for module in model.modules()):
            raise ValueError(
                f"`TEST.SEM_SEG.TTA.ENABLED` must be False for {type(model).__name__}, which "
                "is no meta-architecture of offseg_d2, but is True."
            )
    return LabelMapModel(model) if is_own else model


def _resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(3, H, W) uint8 -> (3, *size), bilinear without low-pass filter; channels do not mix."""
    if tuple(image.shape[1:]) == size:
        return image
    pixels = image.permute(1, 2, 0).contiguous().cpu().numpy()
    resized = cv2.resize(pixels, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return torch.from_numpy(resized).permute(2, 0, 1)
