"""Cross-entropy of resized logits as one Triton kernel forward and one backward.

Neither stores the resized logits: two values are kept for each pixel. No sum depends on the order
in which programs run.
"""

from typing import Any

import torch
from torch import Tensor

from offseg_d2.layers.first_derivative import first_derivative_only
from offseg_d2.layers.kernels.launch import blocks, launch

PIXELS, CLASSES = 128, 4  # of a program
GRAD_PIXELS, GRAD_CLASSES = 32, 16


@torch.library.custom_op("offseg_d2::resized_cross_entropy", mutates_args=())
def cross_entropy_of_pixels(
    logits: Tensor, targets: Tensor, height: int, width: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Loss of each pixel, and what the backward pass needs.

    Args:
        logits: (B, K, h, w), float16, bfloat16 or float32; resized to ``height`` x ``width``.
        targets: (B, H, W) int64, for the upper left H x W.
        height: rows that the logits are resized to.
        width: columns that they are resized to.
        ignore_index: label of pixels whose loss is 0.

    Returns:
        (B, H, W) float32, NaN where a label is no class; log-sum-exp of the logits (B, H, W).
    """
    from offseg_d2.layers.kernels.resized_triton import loss_kernel

    loss, log_sum = _empty_loss(logits, targets, height, width, ignore_index)
    grid = (blocks(targets[0].numel(), PIXELS), len(targets))
    launch(
        loss_kernel, grid, logits, targets, loss, log_sum, *logits.shape[1:], *targets.shape[1:],
        logits.shape[2] / height, logits.shape[3] / width, ignore_index,
        *logits.stride(), *targets.stride(), PIXELS=PIXELS, CLASSES=CLASSES,
    )  # fmt: skip
    return loss, log_sum


@cross_entropy_of_pixels.register_fake
def _empty_loss(
    logits: Tensor, targets: Tensor, height: int, width: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    loss = logits.new_empty(targets.shape, dtype=torch.float32)
    return loss, torch.empty_like(loss)


@torch.library.custom_op("offseg_d2::resized_cross_entropy_grad", mutates_args=())
def grad_logits(
    grad: Tensor,
    logits: Tensor,
    targets: Tensor,
    log_sum: Tensor,
    height: int,
    width: int,
    ignore_index: int,
) -> Tensor:
    """Gradient (B, K, h, w) from that of the loss of each pixel (B, H, W)."""
    from offseg_d2.layers.kernels.resized_triton import grad_kernel

    out = _empty_grad(grad, logits, targets, log_sum, height, width, ignore_index)
    batch, classes, rows, columns = logits.shape
    grid = (rows * blocks(columns, GRAD_PIXELS), blocks(classes, GRAD_CLASSES), batch)
    launch(
        grad_kernel, grid, grad, logits, targets, log_sum, out,
        *logits.shape[1:], *targets.shape[1:], rows / height, columns / width, ignore_index,
        *grad.stride(), *logits.stride(), *targets.stride(),
        PIXELS=GRAD_PIXELS, CLASSES=GRAD_CLASSES,
    )  # fmt: skip
    return out


@grad_logits.register_fake
def _empty_grad(grad: Tensor, logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty(logits.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, targets, *ctx.sizes = inputs
    ctx.save_for_backward(logits, targets, output[1])
    ctx.set_materialize_grads(False)  # the second result has no gradient


@first_derivative_only
def _backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    result = None if grad is None else grad_logits(grad, *ctx.saved_tensors, *ctx.sizes)
    return result, None, None, None, None


cross_entropy_of_pixels.register_autograd(_backward, setup_context=_save)
