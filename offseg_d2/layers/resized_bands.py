"""Functions of resized logits, a few rows at a time.

For losses that need something else of the resized logits than :mod:`.resized_cross_entropy`: each
band of rows is resized, reduced and forgotten, and computed again in the backward pass.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from offseg_d2.layers.resampling import Resampling, bilinear, resample

_BAND_VALUES = {"cpu": 2**20}  # resized logits at once
_BAND_VALUES_ELSEWHERE = 2**25


def map_resized_bands(
    function: Callable[[Tensor, Tensor], Tensor],
    logits: Tensor,
    targets: Tensor,
    size: tuple[int, int],
) -> Iterator[Tensor]:
    """Yield ``function(scores, labels)`` of each band of rows, image by image from top to bottom.

    Args:
        function: of resized logits (K, n, W) and their labels (n, W); its result should be small.
        logits: (B, K, h, w), float32 or float64.
        targets: (B, H, W) int64.
        size: (height, width) that the logits are resized to, bilinearly with half-pixel centres;
            the upper left H x W of them count.
    """
    rows, columns = (
        bilinear(n, out, dtype=logits.dtype, device=logits.device).cut(0, used)
        for n, out, used in zip(logits.shape[-2:], size, targets.shape[-2:], strict=True)
    )
    limit = _BAND_VALUES.get(logits.device.type, _BAND_VALUES_ELSEWHERE)
    step = max(1, limit // (logits.shape[1] * targets.shape[2]))

    def of_band(scores: Tensor, labels: Tensor, band: Resampling) -> Tensor:
        return function(resample(scores, band, columns), labels)

    for scores, labels in zip(logits, targets, strict=True):
        for top in range(0, len(rows), step):
            arguments = (scores, labels[top : top + step], rows.cut(top, top + step))
            if torch.is_grad_enabled() and logits.requires_grad:
                yield checkpoint(of_band, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                yield of_band(*arguments)
