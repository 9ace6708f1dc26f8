"""Attention biases of EfficientFormerV2 for any input size, without resizing them at each call.

A bias matrix (Nq, Nk) is resized like an image: small ones once per size, large ones row by row.

Shapes: h heads, Nq queries, Nk keys.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offseg_d2.deploy.reassembly import weighted_sums
from offseg_d2.deploy.size_cache import SizeCache
from offseg_d2.modeling.backbone.efficientformer_v2_attention import AttentionBias

_WHOLE_BYTES = 16 << 20  # matrices up to this size are kept whole


class ResizedBias(nn.Module):
    """The biases that a trained ``AttentionBias`` gives, after a mix of the heads if there is one.

    Args:
        bias: in evaluation mode.
        mix: 1x1 convolution over the heads that follows; as it works on another axis than the
            resize does, whose weights sum to 1, it can be applied first.
    """

    nominal: Tensor

    def __init__(self, bias: AttentionBias, mix: nn.Conv2d | None = None) -> None:
        super().__init__()
        with torch.no_grad():
            nominal = bias.table[:, bias.indices][None]
            nominal = nominal if mix is None else mix(nominal)
        self.register_buffer("nominal", nominal[0].detach().contiguous())  # (h, Nq, Nk)
        self._sizes = SizeCache()

    def rows(self, num_queries: int, num_keys: int, begin: int, end: int) -> Tensor:
        """Biases of the queries ``begin`` to ``end`` (excluded): (h, end - begin, Nk)."""
        heads, nominal_queries, nominal_keys = self.nominal.shape
        if (num_queries, num_keys) == (nominal_queries, nominal_keys):
            return self.nominal[:, begin:end]
        key = (num_queries, num_keys)
        if heads * num_queries * num_keys * self.nominal.element_size() <= _WHOLE_BYTES:
            whole = self._sizes.get(key, self.nominal, lambda: self._resized(num_queries, num_keys))
            return whole[:, begin:end]
        # The resize is separable: columns are done once per size; a row is a weighted sum of four.
        table, indices, weights = self._sizes.get(
            key, self.nominal, lambda: self._by_row(num_queries, num_keys)
        )
        first = torch.arange(heads, device=indices.device, dtype=indices.dtype) * nominal_queries
        indices = (first[:, None, None] + indices[begin:end]).flatten(0, 1)
        weights = weights[begin:end].repeat(heads, 1)
        return weighted_sums(table, indices, weights).view(heads, end - begin, num_keys)

    def _resized(self, num_queries: int, num_keys: int) -> Tensor:
        size = (num_queries, num_keys)
        return F.interpolate(self.nominal[None], size, mode="bicubic", align_corners=False)[0]

    def _by_row(self, num_queries: int, num_keys: int) -> tuple[Tensor, Tensor, Tensor]:
        """Columns resized (h * nominal queries, Nk); positions and weights (Nq, 4) of rows."""
        nominal_queries = self.nominal.shape[1]
        table = self._resized(nominal_queries, num_keys).flatten(0, 1)
        # The weights of the rows are what the resize makes of each unit vector.
        units = torch.eye(nominal_queries, dtype=table.dtype, device=table.device)[None, None]
        size = (num_queries, nominal_queries)
        matrix = F.interpolate(units, size, mode="bicubic", align_corners=False)[0, 0]
        weights, indices = _taps(matrix)
        return table, indices.int(), weights


def _taps(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The at most four entries of each row that are not 0, and their columns."""
    indices = matrix.abs().topk(min(4, matrix.shape[1]), dim=1).indices
    return matrix.gather(1, indices), indices
