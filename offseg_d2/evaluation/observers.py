"""Observers of an evaluation: reports and pictures of the images that an evaluator counts.

:class:`~offseg_d2.evaluation.SemSegEvaluator` counts; everything else that wants to see label and
prediction of each image is an observer, given to the evaluator as ``observers=[...]``.

K classes, H x W pixels.

**Several processes.** Each process evaluates its own share of the images with its own observers.
When all are done the evaluator collects :meth:`EvaluationObserver.state` of every process, merges
the dictionaries (an image that several processes have seen, as samplers that pad their shares
cause, is there once) and calls :meth:`EvaluationObserver.finish` on the main process alone.
Observers thus never communicate themselves.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class EvaluatedImage:
    """One image as it was counted; its arrays are not to be changed, nor stored for many images.

    Attributes:
        file_name: identifies the image.
        label: (H, W) integer class ids of the ground truth, with the ignored value in it.
        prediction: (H, W) integer class ids, on the CPU.
        counts: (K + 1, K + 1) int64, the confusion matrix of this image alone; rows are labels,
            columns predictions, the last of each ids outside 0..K-1.
    """

    file_name: str
    label: np.ndarray
    prediction: np.ndarray
    counts: np.ndarray


class EvaluationObserver(ABC):
    """Sees every image that is evaluated. In the order of calls: ``reset``, ``process`` for each
    image, ``state`` once, ``finish`` on the main process."""

    def reset(self) -> None:  # noqa: B027  (many observers store nothing)
        """Forget all images: an evaluation begins."""

    @abstractmethod
    def process(self, image: EvaluatedImage) -> None:
        """Look at one image; called on the process that evaluates it, once for each file name."""

    def state(self) -> Mapping[str, Any]:
        """Results of this process, keyed by the images' file names.

        Values must be picklable and small: those of all images meet in the main process.
        """
        return {}

    def finish(  # noqa: B027  (many observers have done all in `process`)
        self,
        results: Mapping[str, float],
        confusion_matrix: np.ndarray,
        images: Mapping[str, Any],
    ) -> None:
        """Conclude; called on the main process only, when all processes are done.

        Args:
            results: of the evaluator for "sem_seg": "mIoU", "IoU-<class>", ..., percent.
            confusion_matrix: (K + 1, K + 1) int64 over all images and processes.
            images: the :meth:`state` of all processes, each image once, sorted by file name.
        """
