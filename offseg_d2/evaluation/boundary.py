"""Boundary IoU of each class: how well the rims of the regions agree.

Paper: Cheng, Girshick, Dollar, Berg, Kirillov, "Boundary IoU: Improving Object-Centric Image
Segmentation Evaluation", CVPR 2021 (arXiv 2103.16562), section 4: with G_d and P_d the pixels
within distance d of the contours of the masks G and P,

    Boundary IoU = |(G_d and G) and (P_d and P)| / |(G_d and G) or (P_d and P)|,

where d is 2 % of the image's diagonal. As in the authors' procedure, (G_d and G) is what d
erosions with a 3x3 kernel take away from G, and what lies outside of the image belongs to no mask,
so that the image's border is a contour too.

Beyond the paper, which treats one mask:

* The masks of class c are its labelled pixels and, **among the labelled pixels**, those predicted
  as c. An ignored pixel belongs to no mask, like one outside of the image; a prediction that is
  right on all labelled pixels thus has Boundary IoU 1, whatever it says on the ignored ones.
* Over a data set intersections and unions are summed, as those of the IoU are.

K classes, H x W pixels.
"""

import math

import cv2
import numpy as np
from torch import Tensor

from .confusion import check_absent_classes, divide, fold_ids, histogram

DILATION_RATIO = 0.02  # of the image's diagonal, the paper's default


def boundary_distance(height: int, width: int, dilation_ratio: float = DILATION_RATIO) -> int:
    """Width of the rim in pixels, at least 1."""
    return max(1, round(dilation_ratio * math.hypot(height, width)))


def boundary_pixels(class_ids: np.ndarray, distance: int) -> np.ndarray:
    """Pixels that ``distance`` erosions would take away from the mask of their own class.

    Args:
        class_ids: (H, W) unsigned integers.
        distance: number of erosions with a 3x3 kernel.

    Returns:
        (H, W) bool.
    """
    square = np.ones((2 * distance + 1, 2 * distance + 1), dtype=np.uint8)
    # All classes at once: a pixel belongs to the rim of its own class's mask exactly if the square
    # around it holds another class or leaves the image. (Detectron2's evaluator subtracts the
    # *eroded ids* from the ids instead: where 3 meets 5 it counts class 2.)
    # Both filters leave out the pixels outside of the image, which are added below.
    boundary = cv2.erode(class_ids, square) != cv2.dilate(class_ids, square)
    boundary[:distance] = boundary[-distance:] = True
    boundary[:, :distance] = boundary[:, -distance:] = True
    return boundary


def count_boundaries(
    label: np.ndarray | Tensor,
    prediction: np.ndarray | Tensor,
    num_classes: int,
    ignore_value: int,
    dilation_ratio: float = DILATION_RATIO,
) -> np.ndarray:
    """Count the rims of one image.

    Args:
        label: (H, W) integer class ids of the ground truth.
        prediction: (H, W) integer class ids.
        num_classes: K.
        ignore_value: label of pixels that do not count at all.
        dilation_ratio: width of the rims, relative to the image's diagonal.

    Returns:
        (3, K) int64: pixels of each class in the rims of both, of the label, of the prediction.
    """
    rows, columns = fold_ids(label, prediction, num_classes, ignore_value)
    ignored = rows > num_classes
    columns[ignored] = rows[ignored]
    distance = boundary_distance(*rows.shape, dilation_ratio)
    of_label = boundary_pixels(rows, distance)
    of_prediction = boundary_pixels(columns, distance)
    of_both = of_label & of_prediction & (rows == columns)
    rims = ((rows, of_both), (rows, of_label), (columns, of_prediction))
    return np.stack([histogram([ids], [num_classes + 2], rim)[:num_classes] for ids, rim in rims])


def boundary_iou(counts: np.ndarray, absent_classes: str = "zero") -> np.ndarray:
    """Boundary IoU of each class as a fraction, NaN for classes that do not count.

    Args:
        counts: (3, K) as of :func:`count_boundaries`, summed over images.
        absent_classes: rule for classes that are absent from the ground truth, see
            :mod:`.confusion`.
    """
    hits, labelled, predicted = counts.astype(np.float64)
    union = labelled + predicted - hits
    if check_absent_classes(absent_classes) == "skip":
        union = np.where(labelled > 0, union, 0.0)
    return divide(hits, union)
