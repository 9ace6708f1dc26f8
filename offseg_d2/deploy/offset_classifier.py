"""The offset classifier deployed: blocks of pixels, one map of scores that is overwritten.

The mathematics is that of ``OffsetLearning.scores``. Its tensors of one value per pixel and class
would each be some megabytes, which go through the memory several times. Here there is one: it holds
the coupled similarity and then, block by block, the logits. All else is as large as a block.

Shapes: B batch, K classes, C channels, N = H W pixels, n pixels of a block.
"""

import torch
from torch import Tensor, nn

from offseg_d2.deploy.packed import PackedLinear
from offseg_d2.modeling.classifiers import OffsetClassifier

_BLOCK_VALUES = 1 << 20  # of a block of pixel features
_FOLD = 16  # rows of which the largest values are taken at once


class FastOffsetClassifier(nn.Module):
    """The same function as a trained ``OffsetClassifier``.

    Args:
        classifier: in evaluation mode; its weights are shared.
    """

    def __init__(self, classifier: OffsetClassifier) -> None:
        super().__init__()
        self.class_representations = classifier.class_representations
        self.similarity = PackedLinear(classifier.class_representations, None)
        self.norm = classifier.norm
        learning = classifier.offset_learning
        self.class_offset_proj = learning.class_offset_proj
        projected = None
        if learning.feature_offset_proj is not None:
            with torch.no_grad():  # W P_f^T, which depends on weights only
                projected = learning.feature_offset_proj(self.class_representations)
        self.register_buffer("projected", projected)

    def forward(self, pixel_features: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, K, H, W), laid out with the classes innermost."""
        size = pixel_features.shape[2:]
        with torch.autocast(pixel_features.device.type, enabled=False):
            dtype = torch.promote_types(pixel_features.dtype, torch.float32)
            pixels = pixel_features.to(dtype).permute(0, 2, 3, 1).flatten(1, 2)  # (B, N, C)
            logits = [self._logits(of_image) for of_image in pixels]
        result = logits[0][None] if len(logits) == 1 else torch.stack(logits)
        return result.unflatten(1, size).permute(0, 3, 1, 2)

    def _logits(self, pixels: Tensor) -> Tensor:
        """(N, C) -> (N, K)."""
        classes = self.class_representations
        scores = self.similarity(pixels)  # A                                       eq. A
        step = max(_BLOCK_VALUES // pixels.shape[1], 1)
        blocks = list(zip(pixels.split(step), scores.split(step), strict=True))
        moved = None  # W'
        if self.class_offset_proj is not None:
            classes = classes + self.class_offset_proj(_mean_features(blocks, _largest(scores)))
            moved = PackedLinear(classes, None)
        mixing = None  # transpose of M (K, K)
        if self.projected is not None:
            mixing = PackedLinear(classes @ self.projected.mT, None)
        for features, part in blocks:
            logits = part if moved is None else moved(features)
            if mixing is not None:
                logits = mixing(part.softmax(dim=1), logits)
            part.copy_(self.norm(logits))
        return scores


def _largest(scores: Tensor) -> Tensor:
    """The largest value of each column of (N, K): (K,).

    Some rows at a time become one, which is done along the memory; column by column it is not.
    """
    while len(scores) >= _FOLD:
        rows = len(scores) // _FOLD * _FOLD
        folded = scores[:rows].view(_FOLD, -1, scores.shape[1]).amax(0)
        scores = folded if rows == len(scores) else torch.cat([folded, scores[rows:]])
    return scores.amax(0)


def _mean_features(blocks: list[tuple[Tensor, Tensor]], largest: Tensor) -> Tensor:
    """Mean pixel of each class, weighted with the softmax of its similarities over the pixels.

    Args:
        blocks: pairs of pixel features (n, C) and similarities (n, K).
        largest: (K,) largest similarity of each class.

    Returns:
        (K, C).
    """
    # A product of its own for each thread takes less time than one that they share.
    shares = torch.get_num_threads() if largest.is_cpu else 1
    total = largest.new_zeros(shares, len(largest), blocks[0][0].shape[1])
    weight = torch.zeros_like(largest)
    for features, similarity in blocks:
        exponentials = (similarity - largest).exp_()
        weight += exponentials.sum(0)
        if len(features) % shares:
            total[0].addmm_(exponentials.mT, features)
        else:
            left, right = (x.unflatten(0, (shares, -1)) for x in (exponentials, features))
            total.baddbmm_(left.mT, right)
    return total.sum(0).div_(weight[:, None])
