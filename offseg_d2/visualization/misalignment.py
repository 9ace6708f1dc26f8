"""Misalignment: how far the pixels of a class lie from its vector, before and after the offsets."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from offseg_d2.visualization.offset_trace import OffsetTrace

_NO_CLASS = -1


class Misalignment(NamedTuple):
    """Angles of the classes of one image.

    Attributes:
        before: (K,) angle in degrees between the mean feature of the class's pixels and its
            vector; NaN for classes without a pixel.
        after: the same of the features and vectors that the offsets moved.
        common: share (0 to 1) of the class offsets that is the same for all classes, as part of
            their squared lengths; NaN without class offsets.
    """

    before: Tensor
    after: Tensor
    common: float


def misalignment(trace: OffsetTrace, labels: Tensor) -> Misalignment:
    """Measure the angles between class vectors and the mean features of their pixels.

    What all class vectors share changes all scores of a pixel alike, and says nothing about its
    class: it is left out, except in the mask-query form, which does not compare them.

    Args:
        trace: of one image.
        labels: (H, W) class of each pixel of the image, predicted or from the data set; values
            outside of 0 to K - 1 are left out. A feature has the class of the pixel in its middle.
    """
    classes = _classes_of_features(trace, labels)
    before = _angles(trace.pixel_features, _vectors(trace, trace.representations), classes)
    after = _angles(trace.aligned_pixels, _vectors(trace, trace.aligned_classes), classes)
    offset = trace.class_offset
    lengths = float(offset.square().sum())
    common = float(offset.mean(dim=0).square().sum()) * len(offset)
    return Misalignment(before, after, common / lengths if lengths else float("nan"))


def _vectors(trace: OffsetTrace, representations: Tensor) -> Tensor:
    """Vectors of the classes (K, C), without what all share where they are compared."""
    if trace.compares_classes:
        representations = representations - representations.mean(dim=0)
    return representations[[trace.row_of(index) for index in range(trace.num_classes)]]


def _classes_of_features(trace: OffsetTrace, labels: Tensor) -> Tensor:
    """Class of each feature (N,), ``_NO_CLASS`` beyond the image."""
    (height, width), (padded_height, padded_width) = labels.shape, trace.padded_size
    padding = (0, padded_width - width, 0, padded_height - height)
    padded = F.pad(labels.to(torch.float32), padding, value=_NO_CLASS)
    resized = F.interpolate(padded[None, None], trace.size, mode="nearest-exact")
    return resized.flatten().to(torch.int64)


def _angles(features: Tensor, vectors: Tensor, classes: Tensor) -> Tensor:
    angles = features.new_full((len(vectors),), float("nan"))
    for index in classes.unique().tolist():
        if 0 <= index < len(vectors):
            mean = F.normalize(features[classes == index].mean(dim=0), dim=0)
            vector = F.normalize(vectors[index], dim=0)
            # Exact for small angles too, where the arc cosine is not.
            angle = 2 * torch.atan2((mean - vector).norm(), (mean + vector).norm())
            angles[index] = angle.rad2deg()
    return angles
