"""Offset learning: the idea of OffSeg in one file.

Paper: OffSeg, ICCV 2025 (arXiv:2508.08811).

**The assumption.** A per-pixel classifier compares each pixel feature x_n with one fixed vector
w_k per class: ``logit[n, k] = <x_n, w_k>``. That only works if the pixels of a class gather around
its vector in every image. In small models they do not: the car pixels of this image may lie
elsewhere than those of the last one.

**The remedy.** For each image, move both sides towards each other before they are compared.
One similarity between pixels and classes (the *coupled* similarity)

    A = X W^T                                   (N, K)                           (eq. A)

is read in two directions:

    class offset    W' = W + softmax_N(A)^T X P_c^T     each class moves towards the pixels that
                                                         resemble it             (eq. W')
    feature offset  X' = X + softmax_K(A) W P_f^T        each pixel moves towards the classes it
                                                         resembles               (eq. X')

and the aligned pair is compared: ``logits = X' W'^T``. Both directions read the original X and W.

**Where the code of the paper goes beyond its text** (and checkpoints depend on it): A is not
scaled by 1/sqrt(C), the projections P_c and P_f have no bias, and the per-pixel classifier puts a
layer norm over the K class scores of each pixel (see ``classifiers.py``).

Shapes: B batch, K classes (or queries), N = H W pixels, C channels. Pixels come as (B, N, C);
a transposed view of a (B, C, H, W) map does, no copy is needed.
"""

import math

import torch
from torch import Tensor, nn

INIT_STD = 0.02  # of the authors' models


class OffsetLearning(nn.Module):
    """Aligns pixel features and class representations with each other, image by image.

    Args:
        dim: C.
        class_offset: move the class representations (eq. W').
        feature_offset: move the pixel features (eq. X').
        init_std: standard deviation of the projections' first weights. 0: nothing is moved at
            first, as by the classifier without offsets.

    Raises:
        ValueError: if ``init_std`` is negative or not finite.
    """

    def __init__(
        self,
        dim: int,
        *,
        class_offset: bool = True,
        feature_offset: bool = True,
        init_std: float = INIT_STD,
    ) -> None:
        super().__init__()
        if not 0 <= init_std < math.inf:
            raise ValueError(
                "`MODEL.SEM_SEG_HEAD.OFFSET_INIT_STD` must be finite and at least 0, but is "
                f"{init_std}."
            )
        # A switched-off branch owns no weights: unused parameters would stall distributed training.
        self.class_offset_proj = nn.Linear(dim, dim, bias=False) if class_offset else None
        self.feature_offset_proj = nn.Linear(dim, dim, bias=False) if feature_offset else None
        for proj in (self.class_offset_proj, self.feature_offset_proj):
            if proj is not None:
                nn.init.normal_(proj.weight, std=init_std)

    def forward(self, pixel_features: Tensor, representations: Tensor) -> tuple[Tensor, Tensor]:
        """The method as the paper writes it.

        Args:
            pixel_features: X (B, N, C).
            representations: W (B, K, C) or (K, C), class vectors or mask embeddings.

        Returns:
            aligned pixel features X' (B, N, C) and aligned representations W' (B, K, C).
        """
        representations = representations.expand(pixel_features.shape[0], -1, -1)
        coupled_similarity = pixel_features @ representations.mT  # (B, N, K)        eq. A
        aligned_pixels, aligned_classes = pixel_features, representations
        if self.class_offset_proj is not None:
            attention = coupled_similarity.mT.softmax(dim=2)  # (B, K, N), over the pixels
            class_offset = self.class_offset_proj(attention @ pixel_features)  # (B, K, C)
            aligned_classes = representations + class_offset  #                      eq. W'
        if self.feature_offset_proj is not None:
            attention = coupled_similarity.softmax(dim=2)  # (B, N, K), over the classes
            feature_offset = self.feature_offset_proj(attention @ representations)  # (B, N, C)
            aligned_pixels = pixel_features + feature_offset  #                      eq. X'
        return aligned_pixels, aligned_classes

    def scores(self, pixel_features: Tensor, representations: Tensor) -> Tensor:
        """``X' W'^T`` with a third fewer operations, and without ever storing X'.

        The feature offset is linear in the class attention S = softmax_K(A), so

            X' W'^T = X W'^T + S M,    M = (W P_f^T) W'^T    (K, K)

        and the N C^2 projection of all pixels shrinks to one of K classes. Equal to
        :meth:`forward` followed by the inner product, up to rounding.

        Args:
            pixel_features: X (B, N, C).
            representations: W (B, K, C) or (K, C).

        Returns:
            (B, N, K) scores of the aligned pair, a transposed view of (B, K, N).
        """
        representations = representations.expand(pixel_features.shape[0], -1, -1)
        # One row of pixels per class: both softmaxes and all products are fastest that way.
        coupled_similarity = representations @ pixel_features.mT  # (B, K, N)        eq. A
        aligned_classes, scores = representations, coupled_similarity
        if self.class_offset_proj is not None:
            attention = coupled_similarity.softmax(dim=2)  # (B, K, N), over the pixels
            class_offset = self.class_offset_proj(attention @ pixel_features)  # (B, K, C)
            aligned_classes = representations + class_offset  #                      eq. W'
            scores = aligned_classes @ pixel_features.mT
        if self.feature_offset_proj is not None:
            mixing = aligned_classes @ self.feature_offset_proj(representations).mT  # M^T (B, K, K)
            scores = torch.baddbmm(scores, mixing, coupled_similarity.softmax(dim=1))
        return scores.mT
