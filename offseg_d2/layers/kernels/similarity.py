"""Cosine with eight neighbours as one Triton kernel forward and one backward."""

from typing import Any

import torch
from torch import Tensor

from offseg_d2.layers.first_derivative import first_derivative_only
from offseg_d2.layers.kernels.launch import blocks, launch

PIXELS = 64  # of a program
GRAD_PIXELS, GRAD_CHANNELS = 128, 8


@torch.library.custom_op("offseg_d2::neighbour_similarity", mutates_args=())
def neighbour_similarity(
    features: Tensor, dilation: int, smallest_norm: float
) -> tuple[Tensor, Tensor]:
    """See ``offseg_d2.layers.neighbour_similarity``.

    Args:
        features: (B, C, H, W).
        dilation: distance of the neighbours in pixels.
        smallest_norm: what a pixel is divided by at least.

    Returns:
        cosines (B, 8, H, W) and norms (B, H, W), both float32.
    """
    from offseg_d2.layers.kernels.similarity_triton import forward_kernel

    similarity, norm = _empty_similarity(features, dilation, smallest_norm)
    batch, channels, height, width = features.shape
    grid = (blocks(height * width, PIXELS), batch)
    launch(
        forward_kernel, grid, features, similarity, norm, channels, height, width,
        dilation, smallest_norm, *features.stride(), PIXELS=PIXELS,
    )  # fmt: skip
    return similarity, norm


@neighbour_similarity.register_fake
def _empty_similarity(
    features: Tensor, dilation: int, smallest_norm: float
) -> tuple[Tensor, Tensor]:
    batch, _, height, width = features.shape
    similarity = features.new_empty(batch, 8, height, width, dtype=torch.float32)
    return similarity, similarity.new_empty(batch, height, width)


@torch.library.custom_op("offseg_d2::neighbour_similarity_grad", mutates_args=())
def grad_features(
    grad: Tensor,
    features: Tensor,
    similarity: Tensor,
    norm: Tensor,
    dilation: int,
    smallest_norm: float,
) -> Tensor:
    """Gradient (B, C, H, W) from that of the cosines (B, 8, H, W)."""
    from offseg_d2.layers.kernels.similarity_triton import grad_kernel

    out = _empty_grad(grad, features)
    batch, channels, height, width = features.shape
    grid = (blocks(height * width, GRAD_PIXELS), blocks(channels, GRAD_CHANNELS), batch)
    launch(
        grad_kernel, grid, grad, features, similarity, norm, out, channels, height, width,
        dilation, smallest_norm, *grad.stride(), *features.stride(),
        PIXELS=GRAD_PIXELS, CHANNELS=GRAD_CHANNELS,
    )  # fmt: skip
    return out


@grad_features.register_fake
def _empty_grad(grad: Tensor, features: Tensor, *_: Any) -> Tensor:
    return features.new_empty(features.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    features, *ctx.options = inputs
    ctx.save_for_backward(features, *output)
    ctx.set_materialize_grads(False)  # the norms have no gradient


@first_derivative_only
def _backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, None, None]:
    result = None if grad is None else grad_features(grad, *ctx.saved_tensors, *ctx.options)
    return result, None, None


neighbour_similarity.register_autograd(_backward, setup_context=_save)
