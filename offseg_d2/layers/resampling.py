"""Linear resampling along one axis, written out as weights, so that steps can be composed and cut.

Two bilinear resizes in a row with a crop between them are one linear map of the rows and one of
the columns. Knowing them, any block of the result can be computed from the few input values that
it depends on.

Shapes: K classes, h x w score map, H x W result, n output positions, T taps
(input positions that an output position may depend on).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Resampling:
    """``output[i] = sum over t of weights[i, t] * input[start[i] + t]``.

    Attributes:
        start: (n,) int64, first input position with a weight.
        weights: (n, T), of which only the first ``span[i]`` belong to output ``i``; the rest is 0.
        span: (n,) int64 in 1..T.
    """

    start: Tensor
    weights: Tensor
    span: Tensor

    def __len__(self) -> int:
        """Number of output positions."""
        return len(self.start)

    @property
    def end(self) -> Tensor:
        """(n,) int64, one past the last input position with a weight."""
        return self.start + self.span

    @property
    def is_identity(self) -> bool:
        """True if the output is the input, perhaps without its end."""
        ones = bool((self.weights[:, 0] == 1).all()) and bool((self.span == 1).all())
        return ones and torch.equal(self.start, torch.arange(len(self), device=self.start.device))

    def extent(self) -> tuple[int, int]:
        """First input position with a weight, and one past the last."""
        return int(self.start.min()), int(self.end.max())

    def positions(self) -> Tensor:
        """(n, T) int64 input positions; those beyond the span repeat its last one."""
        taps = torch.arange(self.weights.shape[1], device=self.start.device)
        return self.start[:, None] + torch.minimum(taps, self.span[:, None] - 1)

    def cut(self, begin: int, end: int, origin: int = 0) -> "Resampling":
        """The outputs ``begin`` to ``end``, of an input that lacks its first ``origin`` values."""
        part = slice(begin, end)
        return Resampling(self.start[part] - origin, self.weights[part], self.span[part])

    def then(self, other: "Resampling") -> "Resampling":
        """This resampling followed by another one of its result."""
        middle = other.positions()  # (n, S)
        positions = self.positions()[middle]  # (n, S, T)
        weights = other.weights[..., None] * self.weights[middle]
        return _from_weights(positions.flatten(1), weights.flatten(1))


def identity(length: int, *, dtype: torch.dtype, device: torch.device) -> Resampling:
    """The resampling that changes nothing."""
    start = torch.arange(length, device=device)
    return Resampling(start, torch.ones(length, 1, dtype=dtype, device=device), start * 0 + 1)


def bilinear(
    in_size: int, out_size: int, *, dtype: torch.dtype, device: torch.device
) -> Resampling:
    """One axis of ``F.interpolate(mode="bilinear", align_corners=False)``.

    The weights are read off PyTorch's own interpolation of signals that distinguish the input
    positions. A formula of our own would have to round as the kernel of each device does; source
    positions near 1000 are only good to 6e-5 in float32.
    """
    if in_size == out_size:
        return identity(in_size, dtype=dtype, device=device)
    if in_size == 1:
        ones = torch.ones(out_size, 1, dtype=dtype, device=device)
        span = torch.ones(out_size, dtype=torch.int64, device=device)
        return Resampling(span * 0, ones, span)
    positions = torch.arange(in_size, device=device)
    signals = torch.stack([(positions % 3 == residue).to(dtype) for residue in range(3)])
    shares = F.interpolate(
        signals[None, :, :, None], size=(out_size, 1), mode="bilinear", align_corners=False
    )[0, :, :, 0].mT  # (n, 3), weight of the neighbour whose position has each residue
    source = (torch.arange(out_size, dtype=torch.float64, device=device) + 0.5) * in_size / out_size
    nearest = (source - 0.5).round().long().clamp(0, in_size - 1)
    # Both neighbours are among the three around the nearest position, whatever the rounding.
    around = nearest[:, None] + torch.arange(-1, 2, device=device)
    weights = shares.gather(1, around % 3)
    inside = (around >= 0) & (around < in_size)
    return _from_weights(around.clamp(0, in_size - 1), weights * inside)


def _from_weights(positions: Tensor, weights: Tensor) -> Resampling:
    """Sum the weights (n, M) that belong to the same input position (n, M)."""
    used = weights != 0
    far = torch.iinfo(positions.dtype).max
    start = positions.masked_fill(~used, far).amin(1)
    span = positions.masked_fill(~used, -1).amax(1) - start + 1
    taps = int(span.max()) if len(span) else 1
    offsets = (positions - start[:, None]).clamp(0, taps - 1)
    summed = weights.new_zeros(len(positions), taps).scatter_add_(1, offsets, weights * used)
    return Resampling(start, summed, span)


def resample(scores: Tensor, rows: Resampling, columns: Resampling) -> Tensor:
    """Apply both axes.

    Args:
        scores: (K, h, w), any memory layout.
        rows: h -> H.
        columns: w -> W.

    Returns:
        (K, H, W), laid out with the classes innermost; a view if nothing changes.
    """
    part = scores.permute(1, 2, 0)  # (h, w, K)
    if rows.is_identity:
        part = part[: len(rows)]
    else:
        top, bottom = rows.extent()
        vectors = part[top:bottom].flatten(1)
        positions = rows.positions() - top
        part = weighted_sums(vectors, positions, rows.weights).unflatten(1, part.shape[1:])
    if columns.is_identity:
        return part[:, : len(columns)].permute(2, 0, 1)
    height, width = part.shape[:2]
    first = torch.arange(height, device=part.device)[:, None, None] * width
    positions = (first + columns.positions()).flatten(0, 1)  # (H W, T)
    weights = columns.weights.repeat(height, 1)
    part = weighted_sums(part.flatten(0, 1), positions, weights).unflatten(
        0, (height, len(columns))
    )
    return part.permute(2, 0, 1)


def weighted_sums(vectors: Tensor, positions: Tensor, weights: Tensor) -> Tensor:
    """Sums of S of the (N, C) vectors: (P, S) positions and weights -> (P, C)."""
    # One fused pass; indexing, multiplying and adding would each store (P, C).
    return F.embedding_bag(positions, vectors, mode="sum", per_sample_weights=weights)
