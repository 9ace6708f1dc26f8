"""Is the exported file the model? Measured on images, in the runtime that will run it."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from offseg_d2.export.description import ModelDescription


class ExportMismatchError(ValueError):
    """The exported file does not compute what the model computes."""


@dataclass(frozen=True)
class Tolerance:
    """Differences that still count as the same.

    Attributes:
        difference: of scores, relative to the largest one or to 1.
        agreement: share of pixels with the same best class.
    """

    difference: float
    agreement: float


ROUNDING = Tolerance(difference=1e-3, agreement=0.9999)  # other labels are ties within rounding
# Mask-query models compare mask logits with 0 about half a million times on the way, to decide what
# a query reads: where a logit is zero within rounding, the query reads one pixel more or less.
THRESHOLDS = Tolerance(difference=5e-2, agreement=0.999)
INT8 = Tolerance(difference=math.inf, agreement=0.8)  # below, a file is broken, not merely coarse


@dataclass(frozen=True)
class Comparison:
    """Differences between an exported file and its model.

    Attributes:
        max_difference: largest difference of a score, 0 if the file gives labels.
        max_score: largest magnitude of a score, 0 if the file gives labels.
        label_agreement: share of the pixels whose best class is the same.
        images: images compared.
        tolerance: what still counts as the same.
    """

    max_difference: float
    max_score: float
    label_agreement: float
    images: int
    tolerance: Tolerance = ROUNDING

    @property
    def is_close(self) -> bool:
        """True if it is within the tolerance."""
        close = self.max_difference <= self.tolerance.difference * max(self.max_score, 1.0)
        return close and self.label_agreement >= self.tolerance.agreement

    def check(self, path: str) -> None:
        """Refuse a difference beyond the tolerance.

        Args:
            path: of the file that was to be written, for the message.

        Raises:
            ExportMismatchError: if the two are not close.
        """
        if not self.is_close:
            raise ExportMismatchError(f"`{path}` is not written, as it differs: {self}.")

    def recorded_in(self, description: ModelDescription) -> ModelDescription:
        """The description of a file that was found to differ by this much."""
        return dataclasses.replace(
            description, max_difference=self.max_difference, label_agreement=self.label_agreement
        )

    def __str__(self) -> str:
        labels = (
            f"same labels at {100 * self.label_agreement:.4f} % of the pixels, {self.images} images"
        )
        if not self.max_score and not self.max_difference:  # there are labels only
            return labels
        scores = f"of scores up to {self.max_score:.3g}"
        return f"largest difference {self.max_difference:.2e} {scores}, {labels}"


Outputs = Tensor | Sequence[Tensor]


@torch.no_grad()
def compare(
    reference: Callable[[Tensor], Outputs],
    exported: Callable[[Tensor], Outputs],
    batches: Sequence[Tensor],
    tolerance: Tolerance = ROUNDING,
) -> Comparison:
    """Run both on the same images.

    Args:
        reference: images (B, 3, H, W) -> scores (B, K, H, W), labels (B, H, W), or both in this
            order. Of labels alone no scores are compared.
        exported: the same.
        batches: images; their sizes may differ.
        tolerance: what still counts as the same.
    """
    difference = largest = 0.0
    equal = total = images = 0
    for batch in batches:
        scores, labels = _as_pair(reference(batch))
        other_scores, other_labels = _as_pair(exported(batch))
        # Not-a-number is no agreement, and would be lost in a maximum.
        gap = (scores - other_scores).abs().nan_to_num(nan=torch.inf)
        difference = max(difference, gap.max().item())
        largest = max(largest, scores.abs().max().item())
        equal += int((labels == other_labels).sum())
        total += labels.numel()
        images += len(batch)
    return Comparison(difference, largest, equal / total, images, tolerance)


def _as_pair(outputs: Outputs) -> Sequence[Tensor]:
    """Scores and labels; zero in place of scores that are not there."""
    if not isinstance(outputs, Tensor):
        return outputs if len(outputs) == 2 else _as_pair(outputs[0])
    if outputs.is_floating_point():
        return outputs, outputs.argmax(dim=1)
    return outputs.new_zeros(1, dtype=torch.float32), outputs


def sample_images(
    batch: int, size: tuple[int, int], dtype: torch.dtype, *, seed: int = 0
) -> Tensor:
    """Smooth random pictures with some noise: (batch, 3, *size), 0..255.

    Args:
        batch: B.
        size: (height, width).
        dtype: of the result.
        seed: of the pictures.
    """
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, 5, 7, generator=generator)
    smooth = F.interpolate(coarse, size=size, mode="bicubic", align_corners=False)
    noise = 0.1 * torch.randn(batch, 3, *size, generator=generator)
    return (255 * (smooth + noise)).clamp(0, 255).to(dtype)
