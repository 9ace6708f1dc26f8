"""Conversion of a model's prediction to a map of class ids."""

import numpy as np
import torch
from torch import Tensor


def to_class_ids(sem_seg: Tensor, num_classes: int, file_name: str) -> np.ndarray:
    """Choose the best class of each pixel, unless the model has done so already.

    Args:
        sem_seg: (K, H, W) scores, or (H, W) integer class ids, on any device.
        num_classes: K.
        file_name: of the image, for the error.

    Returns:
        (H, W) integers on the CPU; among equal scores the first class wins.

    Raises:
        ValueError: ``sem_seg`` is neither; names the file.
    """
    if sem_seg.dim() == 2 and not (sem_seg.is_floating_point() or sem_seg.is_complex()):
        return sem_seg.cpu().numpy()
    if sem_seg.dim() != 3 or sem_seg.shape[0] != num_classes:
        raise ValueError(
            f"The prediction for `{file_name}` must be ({num_classes}, H, W) scores or an (H, W) "
            f"integer map, but is a {tuple(sem_seg.shape)} tensor of {sem_seg.dtype}."
        )
    best = sem_seg.argmax(dim=0)
    if num_classes <= 32768:  # fewer bytes to copy
        best = best.to(torch.uint8 if num_classes <= 256 else torch.int16)
    return best.cpu().numpy()
