"""Rule for the meta-architecture of the mask-query hosts: class scores in small blocks.

Shapes: Q queries, K classes, (H, W) the network's input.
"""

import copy

import torch
from torch import Tensor

from offseg_d2.deploy.packed import PackedMatrix
from offseg_d2.deploy.rules import rule
from offseg_d2.modeling.meta_arch.mask_segmentor import MaskSegmentor, QueryScores
from offseg_d2.modeling.meta_arch.scores import Scores

BLOCK_BYTES = 1 << 20  # of mask probabilities that are computed at once


class FastQueryScores(QueryScores):
    """:class:`QueryScores`; the probabilities of the masks never leave the cache.

    Args:
        scores: as the network gives them.
    """

    def __init__(self, scores: QueryScores) -> None:
        vars(self).update(vars(scores))
        self._classify = PackedMatrix(self._class_probabilities.mT)  # (K, Q)

    def rows(self, first: int, end: int) -> Tensor:
        """(K, end - first, W), laid out with the classes innermost."""
        queries, classes = self._class_probabilities.shape
        width = self.size[1]
        scores = self._class_probabilities.new_empty(end - first, width, classes)
        step = max(BLOCK_BYTES // (4 * queries * width), 1)
        for top in range(first, end, step):
            bottom = min(top + step, end)
            masks = self._masks.rows(top, bottom).permute(1, 2, 0).sigmoid().flatten(0, 1)
            block = self._classify(masks.to(self._class_probabilities))  # (pixels, K)
            scores[top - first : bottom - first] = block.view(bottom - top, width, classes)
        return scores.permute(2, 0, 1)


class FastMaskSegmentor(MaskSegmentor):
    """:class:`MaskSegmentor` in evaluation."""

    def forward_scores(self, images: Tensor) -> list[Scores]:
        """Normalised (B, 3, H, W) of any size -> scores of each image, computed when read."""
        return [
            FastQueryScores(scores) if type(scores) is QueryScores else scores
            for scores in super().forward_scores(images)
        ]


@rule(MaskSegmentor)
@torch.no_grad()
def fast_mask_segmentor(segmentor: MaskSegmentor) -> FastMaskSegmentor:
    """The same modules, another way to read their results."""
    fast = copy.copy(segmentor)
    fast.__class__ = FastMaskSegmentor
    return fast
