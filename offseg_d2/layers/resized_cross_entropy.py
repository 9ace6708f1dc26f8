"""Cross-entropy of resized logits, without the resized logits.

A segmentation loss compares logits at stride 4 or 8 with labels at full size. Resizing them all
first stores K values for each pixel, several times over: the resized logits, their log-softmax,
and the gradients of both. Here a few rows are resized at a time, and their gradient is carried back
to the stride of the logits at once. What is kept for the backward pass is as large as the logits.

Bilinear resizing is linear in the rows and in the columns: resized = R logits C^T, and the
gradient is R^T G C.

Shapes: B batch, K classes, h x w logits, H x W labels.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from offseg_d2.layers.first_derivative import first_derivative_only
from offseg_d2.layers.kernels import cross_entropy_of_pixels, kernels_apply
from offseg_d2.layers.resampling import bilinear

# Resized logits that exist at once: on a CPU they should stay in the cache.
_BAND_VALUES = {"cpu": 5 * 2**18}
_BAND_VALUES_ELSEWHERE = 2**25


def resized_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    size: tuple[int, int],
    *,
    ignore_index: int,
    weight: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of bilinearly resized logits (half-pixel centres), summed over the pixels.

    Args:
        logits: (B, K, h, w), float32 or float64, finite, any memory layout.
        targets: (B, H, W) int64, class ids or ``ignore_index``.
        size: (height, width) that the logits are resized to; the upper left H x W of them count.
        ignore_index: label of pixels that do not count.
        weight: (K,) factors on the losses of the pixels of each class, of the logits' type.

    Returns:
        a scalar; its gradient cannot be differentiated again.

    Raises:
        ValueError: if the targets are larger than ``size``.
        IndexError: if a target is no class id; on a GPU the loss is NaN or CUDA reports it.
    """
    height, width = targets.shape[-2:]
    if height > size[0] or width > size[1]:
        raise ValueError(f"`targets` must be at most {size} pixels, but are {(height, width)}.")
    if tuple(logits.shape[-2:]) == tuple(size):
        cut = logits[..., :height, :width]
        return F.cross_entropy(cut, targets, weight, ignore_index=ignore_index, reduction="sum")
    if kernels_apply(logits):
        loss, _ = cross_entropy_of_pixels(logits, targets, *size, ignore_index)
        if weight is not None:
            loss = loss * weight[targets.masked_fill(targets == ignore_index, 0)]
        return loss.sum()
    if not logits.is_cpu:
        return _few_kernels(logits, targets, size, ignore_index, weight)
    with_gradient = torch.is_grad_enabled() and logits.requires_grad
    with torch.autocast(logits.device.type, enabled=False):
        return _ResizedCrossEntropy.apply(
            logits, targets, size, ignore_index, weight, with_gradient
        )


def _few_kernels(
    logits: Tensor,
    targets: Tensor,
    size: tuple[int, int],
    ignore_index: int,
    weight: Tensor | None = None,
) -> Tensor:
    """The loss on devices where starting an operation costs more than a value in memory."""
    height, width = targets.shape[-2:]
    with torch.autocast(logits.device.type, enabled=False):
        resized = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        cut = resized[..., :height, :width]
        return F.cross_entropy(cut, targets, weight, ignore_index=ignore_index, reduction="sum")


class _ResizedCrossEntropy(torch.autograd.Function):
    """Computes the gradient in the forward pass, when the resized logits are there anyway."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        size: tuple[int, int],
        ignore_index: int,
        weight: Tensor | None,
        with_gradient: bool,
    ) -> Tensor:
        gradient = torch.empty_like(logits) if with_gradient else None
        axes = [
            _weights(n, out, logits)[:used]
            for n, out, used in zip(logits.shape[-2:], size, targets.shape[-2:], strict=True)
        ]
        losses = []
        for sample, (scores, labels) in enumerate(zip(logits, targets, strict=True)):
            # Classes innermost: the softmax of a pixel then reads one piece of memory.
            pixels = scores.permute(1, 2, 0).contiguous()
            image = _Image(pixels, labels, axes[0], axes[1], ignore_index, weight)
            loss, own = image.loss(with_gradient)
            losses.append(loss)
            if gradient is not None and own is not None:
                gradient[sample] = own.permute(2, 0, 1)
        ctx.save_for_backward(gradient)
        return torch.stack(losses).sum()

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, None, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_loss, None, None, None, None, None


@dataclass(frozen=True)
class _Image:
    """One image: logits (h, w, K), labels (H, W), weights of rows (H, h) and columns (W, w)."""

    logits: Tensor
    labels: Tensor
    rows: Tensor
    columns: Tensor
    ignore_index: int
    weight: Tensor | None  # (K,)

    def loss(self, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
        """Sum of the loss, and its gradient (h, w, K)."""
        logits, (height, width) = self.logits, self.labels.shape
        classes = logits.shape[-1]
        limit = _BAND_VALUES.get(logits.device.type, _BAND_VALUES_ELSEWHERE)
        step = min(height, max(1, limit // (width * classes)))
        # Buffers that are written again and again: fresh memory costs more than the work on it.
        band, log_probabilities = logits.new_empty(2, step * width, classes)
        gradient = torch.zeros_like(logits) if with_gradient else None
        losses = []
        for top in range(0, height, step):
            labels = self.labels[top : top + step].flatten()
            weights, first, end = _used(self.rows[top : top + step])
            resized = torch.matmul(self.columns, logits[first:end]).flatten(1)  # (rows, W K)
            scores, out = band[: len(labels)], log_probabilities[: len(labels)]
            torch.mm(weights, resized, out=scores.view(len(weights), -1))
            losses.append(self._loss_of_band(scores, labels, out, with_gradient))
            if gradient is not None:
                # The resized rows have done their part: their gradient takes their place.
                torch.mm(weights.T, out.view(len(weights), -1), out=resized)
                own = resized.view(end - first, width, classes)
                gradient[first:end] += torch.matmul(self.columns.T, own)
        return torch.stack(losses).sum(), gradient

    def _loss_of_band(self, scores: Tensor, labels: Tensor, out: Tensor, gradient: bool) -> Tensor:
        """Sum of the loss of (P, K) scores; ``out`` then holds its gradient, if that is wanted."""
        torch.log_softmax(scores, dim=1, out=out)
        ignored = labels == self.ignore_index
        classes = labels.masked_fill(ignored, 0).unsqueeze(1)
        _check_classes(classes, scores.shape[1])
        losses = -out.gather(1, classes).squeeze(1).masked_fill(ignored, 0)
        weights = None if self.weight is None else self.weight[classes]
        loss = losses.sum() if weights is None else losses.dot(weights.squeeze(1))
        if gradient:  # softmax minus one at the right class
            out.exp_().scatter_add_(1, classes, -torch.ones_like(scores[:, :1]))
            if weights is not None:
                out.mul_(weights)
            out.index_fill_(0, ignored.nonzero().squeeze(1), 0)
        return loss


def _weights(in_size: int, out_size: int, like: Tensor) -> Tensor:
    """(out_size, in_size): each output of a bilinear resize as weights of the inputs."""
    axis = bilinear(in_size, out_size, dtype=like.dtype, device=like.device)
    dense = like.new_zeros(out_size, in_size)
    return dense.scatter_add_(1, axis.positions(), axis.weights)


def _used(weights: Tensor) -> tuple[Tensor, int, int]:
    """Of the weights (n, h) of some rows: the columns that are not all zero, first and end."""
    used = weights.any(dim=0).nonzero().squeeze(1)
    first, end = int(used[0]), int(used[-1]) + 1
    return weights[:, first:end], first, end


def _check_classes(classes: Tensor, number: int) -> None:
    # CUDA's own check stops the process; asking for the extremes would wait for the device.
    if classes.device.type != "cpu":
        return
    low, high = (int(x) for x in classes.aminmax())
    if low < 0 or high >= number:
        bad = low if low < 0 else high
        raise IndexError(f"Target {bad} is out of bounds: there are {number} classes.")
