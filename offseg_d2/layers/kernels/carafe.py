"""CARAFE as operators of one Triton kernel each: forward, and the gradient of either input.

Shapes as in ``offseg_d2.layers.carafe``: features (B, C, h, w), weights (B, k^2, s h, s w), result
(B, C, s h, s w) in the type of the features. Triton is imported when an operator first runs.
"""

from typing import Any

import torch
from torch import Tensor

from offseg_d2.layers.first_derivative import first_derivative_only
from offseg_d2.layers.kernels.launch import blocks, launch

PIXELS, CHANNELS = 128, 8  # of a program
KERNEL_PIXELS, TAPS = 64, 16  # of the gradient of the weights


@torch.library.custom_op("offseg_d2::carafe", mutates_args=())
def carafe(features: Tensor, weights: Tensor, kernel_size: int, scale: int) -> Tensor:
    """(B, C, h, w), (B, k^2, s h, s w) -> (B, C, s h, s w)."""
    from offseg_d2.layers.kernels.carafe_triton import forward_kernel

    batch, channels, height, width = features.shape
    out = _empty_output(features, weights, kernel_size, scale)
    grid = (blocks(scale * scale * height * width, PIXELS), blocks(channels, CHANNELS), batch)
    launch(
        forward_kernel, grid, features, weights, out, channels, height, width,
        *features.stride(), *weights.stride(),
        K=kernel_size, S=scale, PIXELS=PIXELS, CHANNELS=CHANNELS,
    )  # fmt: skip
    return out


@carafe.register_fake
def _empty_output(features: Tensor, weights: Tensor, kernel_size: int, scale: int) -> Tensor:
    return features.new_empty(*features.shape[:2], *weights.shape[2:])


@torch.library.custom_op("offseg_d2::carafe_grad_features", mutates_args=())
def grad_features(
    grad: Tensor, weights: Tensor, dtype: torch.dtype, kernel_size: int, scale: int
) -> Tensor:
    """(B, C, s h, s w), (B, k^2, s h, s w) -> (B, C, h, w) of the type ``dtype``."""
    from offseg_d2.layers.kernels.carafe_triton import grad_features_kernel

    out = _empty_features(grad, weights, dtype, kernel_size, scale)
    batch, channels, height, width = out.shape
    grid = (blocks(height * width, PIXELS), blocks(channels, CHANNELS), batch)
    launch(
        grad_features_kernel, grid, grad, weights, out, channels, height, width,
        *grad.stride(), *weights.stride(),
        K=kernel_size, S=scale, PIXELS=PIXELS, CHANNELS=CHANNELS,
    )  # fmt: skip
    return out


@grad_features.register_fake
def _empty_features(
    grad: Tensor, weights: Tensor, dtype: torch.dtype, kernel_size: int, scale: int
) -> Tensor:
    batch, channels, height, width = grad.shape
    return grad.new_empty(batch, channels, height // scale, width // scale, dtype=dtype)


@torch.library.custom_op("offseg_d2::carafe_grad_weights", mutates_args=())
def grad_weights(
    grad: Tensor, features: Tensor, dtype: torch.dtype, kernel_size: int, scale: int
) -> Tensor:
    """(B, C, s h, s w), (B, C, h, w) -> (B, k^2, s h, s w) of the type ``dtype``."""
    from offseg_d2.layers.kernels.carafe_triton import grad_weights_kernel

    out = _empty_weights(grad, features, dtype, kernel_size, scale)
    batch, channels, height, width = features.shape
    area = scale * scale * height * width
    grid = (blocks(area, KERNEL_PIXELS), blocks(kernel_size**2, TAPS), batch)
    launch(
        grad_weights_kernel, grid, grad, features, out, channels, height, width,
        *grad.stride(), *features.stride(),
        K=kernel_size, S=scale, PIXELS=KERNEL_PIXELS, TAPS=TAPS,
    )  # fmt: skip
    return out


@grad_weights.register_fake
def _empty_weights(
    grad: Tensor, features: Tensor, dtype: torch.dtype, kernel_size: int, scale: int
) -> Tensor:
    return grad.new_empty(len(grad), kernel_size**2, *grad.shape[2:], dtype=dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, weights, *ctx.sizes = inputs
    ctx.save_for_backward(features, weights)


@first_derivative_only
def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
    features, weights = ctx.saved_tensors
    of_features = of_weights = None
    if ctx.needs_input_grad[0]:
        of_features = grad_features(grad, weights, features.dtype, *ctx.sizes)
    if ctx.needs_input_grad[1]:
        of_weights = grad_weights(grad, features, weights.dtype, *ctx.sizes)
    return of_features, of_weights, None, None


carafe.register_autograd(_backward, setup_context=_save)
