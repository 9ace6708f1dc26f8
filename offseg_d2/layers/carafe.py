"""CARAFE: content-aware reassembly of features, in pure PyTorch.

Wang et al., "CARAFE: Content-Aware ReAssembly of FEatures", ICCV 2019 (arXiv:1905.02188), eq. 2.
Each output pixel is a weighted sum of the k x k neighbourhood of its source pixel; the weights
are given per output pixel and shared by all channels.

The usual formulation unfolds the features into a k^2-fold tensor. Here the output is accumulated
tap by tap: the s^2 sub-grids of the output (pixels with equal coordinates modulo s) read the very
same low-resolution neighbours, so a tap is one shifted view of the padded features, multiplied
with one map of weights per sub-grid. The largest temporary is the output itself; the backward pass
recomputes the views and is accumulated the same way.

Shapes: B batch, C channels, h x w low resolution, s scale, k kernel size, r = (k - 1) / 2.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from offseg_d2.layers.first_derivative import first_derivative_only
from offseg_d2.layers.kernels import carafe_kernel, kernels_apply

_CPU_CHUNK = 2**19  # output values that are worked on at once


def carafe(features: Tensor, kernels: Tensor, kernel_size: int, scale: int = 1) -> Tensor:
    """Reassemble ``features`` with one k x k kernel for each output pixel.

    ``out[b, c, y, x] = sum_{dy,dx} kernels[b, (dy + r) k + dx + r, y, x]
    * features[b, c, y // s + dy, x // s + dx]``, features being zero outside.

    Args:
        features: (B, C, h, w).
        kernels: (B, k * k, s * h, s * w), one kernel (row-major taps) for each output pixel.
        kernel_size: k, odd.
        scale: s, output pixels per input pixel along each axis.

    Returns:
        (B, C, s * h, s * w).

    Raises:
        ValueError: if k is even or ``kernels`` has not the shape above.
    """
    batch, _, height, width = features.shape
    expected = (batch, kernel_size**2, scale * height, scale * width)
    if kernel_size % 2 != 1:
        raise ValueError(f"`kernel_size` must be odd, but is {kernel_size}.")
    if tuple(kernels.shape) != expected:
        raise ValueError(f"`kernels` must have shape {expected}, but has {tuple(kernels.shape)}.")
    if kernels_apply(features, kernels):
        return carafe_kernel(features, kernels, kernel_size, scale)
    # Under autocast the two may differ; 25 products are summed, so the wider type it is.
    dtype = torch.promote_types(features.dtype, kernels.dtype)
    out_dtype = features.dtype
    features, kernels = features.to(dtype), _split_sub_grids(kernels.to(dtype), scale)
    if features.device.type == "cpu" and not torch.compiler.is_compiling():
        # In small parts of the batch the maps stay in the cache; a GPU would rather see it whole.
        samples = max(1, _CPU_CHUNK * batch // (features.numel() * scale * scale))
        pairs = zip(features.split(samples), kernels.split(samples), strict=True)
        out = torch.cat([_apply(f, k, kernel_size) for f, k in pairs])
    else:
        out = _apply(features, kernels, kernel_size)
    return _merge_sub_grids(out, scale).to(out_dtype)


def _apply(features: Tensor, kernels: Tensor, kernel_size: int) -> Tensor:
    if torch.is_grad_enabled() and (features.requires_grad or kernels.requires_grad):
        return _Reassemble.apply(features, kernels, kernel_size)
    return _reassemble(features, kernels, kernel_size)  # plain operations, for tracing and export


def _split_sub_grids(kernels: Tensor, scale: int) -> Tensor:
    """(B, k^2, s h, s w) -> (B, s^2, k^2, h, w): output pixels grouped by position modulo s."""
    batch, taps, height, width = kernels.shape
    grid = kernels.reshape(batch, taps, height // scale, scale, width // scale, scale)
    grid = grid.permute(0, 3, 5, 1, 2, 4)
    return grid.reshape(batch, scale * scale, taps, height // scale, width // scale)


def _merge_sub_grids(out: Tensor, scale: int) -> Tensor:
    """(B, s^2, C, h, w) -> (B, C, s h, s w): inverse of the grouping above."""
    if scale == 1:
        return out[:, 0]
    batch, _, channels, height, width = out.shape
    grid = out.reshape(batch, scale, scale, channels, height, width).permute(0, 3, 4, 1, 5, 2)
    return grid.reshape(batch, channels, scale * height, scale * width)


def _tap_views(padded: Tensor, kernel_size: int, height: int, width: int) -> list[Tensor]:
    """The k^2 shifted (B, C, h, w) views of the padded features, in row-major tap order."""
    return [
        padded[:, :, dy : dy + height, dx : dx + width]
        for dy in range(kernel_size)
        for dx in range(kernel_size)
    ]


def _reassemble(features: Tensor, kernels: Tensor, kernel_size: int) -> Tensor:
    """(B, C, h, w), (B, S, k^2, h, w) -> (B, S, C, h, w) with S sub-grids."""
    batch, channels, height, width = features.shape
    padded = F.pad(features, [kernel_size // 2] * 4)
    out = features.new_zeros(batch, kernels.shape[1], channels, height, width)
    for tap, view in enumerate(_tap_views(padded, kernel_size, height, width)):
        out.addcmul_(view[:, None], kernels[:, :, tap, None])
    return out


class _Reassemble(torch.autograd.Function):
    """Autograd would keep a gradient buffer for each of the k^2 views; this keeps one."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, kernels: Tensor, kernel_size: int) -> Tensor:
        ctx.save_for_backward(features, kernels)
        ctx.kernel_size = kernel_size
        return _reassemble(features, kernels, kernel_size)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        features, kernels = ctx.saved_tensors
        height, width = features.shape[-2:]
        margin = [ctx.kernel_size // 2] * 4
        padded = F.pad(features, margin)
        grad_padded = torch.zeros_like(padded)
        grad_kernels = torch.empty_like(kernels)
        products = torch.empty_like(grad_out)  # one buffer for all taps
        views = _tap_views(padded, ctx.kernel_size, height, width)
        grad_views = _tap_views(grad_padded, ctx.kernel_size, height, width)
        for tap, (view, grad_view) in enumerate(zip(views, grad_views, strict=True)):
            for sub_grid in range(kernels.shape[1]):
                grad_view.addcmul_(grad_out[:, sub_grid], kernels[:, sub_grid, tap, None])
            torch.mul(grad_out, view[:, None], out=products)
            torch.sum(products, dim=2, out=grad_kernels[:, :, tap])
        grad_features = F.pad(grad_padded, [-m for m in margin])
        return grad_features, grad_kernels, None
