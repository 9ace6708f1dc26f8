"""The best class of each pixel of resized scores, as one Triton kernel."""

import torch
from torch import Tensor

from offseg_d2.layers.kernels.launch import blocks, launch

PIXELS, CLASSES = 128, 4  # of a program


@torch.library.custom_op("offseg_d2::resized_argmax", mutates_args=())
def resized_argmax(
    scores: Tensor, height: int, width: int, rows: int, columns: int, dtype: torch.dtype
) -> Tensor:
    """Resize scores bilinearly (half-pixel centres) and choose the best class of each pixel.

    The resized scores are not stored. Not differentiable.

    Args:
        scores: (B, K, h, w), float16, bfloat16 or float32.
        height: rows that the scores are resized to.
        width: columns that they are resized to.
        rows: H, how many of the rows are wanted, from the top.
        columns: W, how many of the columns are wanted, from the left.
        dtype: an integer type that holds K - 1.

    Returns:
        (B, H, W) of that type; of equal scores the smaller class.
    """
    from offseg_d2.layers.kernels.resized_triton import argmax_kernel

    out = _empty_labels(scores, height, width, rows, columns, dtype)
    launch(
        argmax_kernel, (blocks(rows * columns, PIXELS), len(scores)), scores, out,
        *scores.shape[1:], rows, columns, scores.shape[2] / height, scores.shape[3] / width,
        *scores.stride(), PIXELS=PIXELS, CLASSES=CLASSES,
    )  # fmt: skip
    return out


@resized_argmax.register_fake
def _empty_labels(
    scores: Tensor, height: int, width: int, rows: int, columns: int, dtype: torch.dtype
) -> Tensor:
    return scores.new_empty(len(scores), rows, columns, dtype=dtype)
