"""Large constants of a model, kept as the small ones that they follow from.

EfficientFormerV2's attention biases lie in a table of one number per distance; which of them a
query and a key share is a matrix a hundred times as large.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from offseg_d2.modeling.backbone.efficientformer_v2_attention import AttentionBias


def compact(model: nn.Module) -> None:
    """Let the places of attention biases be worked out, in place; the model stays the same."""
    for module in model.modules():
        if isinstance(module, AttentionBias):
            parametrize.register_parametrization(module, "indices", _Places(*module.indices.shape))


class _Places(nn.Module):
    """Places (Nq, Nk) in a table of distances, from the distances on one axis.

    Args:
        num_queries: Nq, on a square grid.
        num_keys: Nk, on a square grid that divides it evenly.
    """

    def __init__(self, num_queries: int, num_keys: int) -> None:
        super().__init__()
        self.sizes = (num_queries, num_keys)

    def forward(self, distances: Tensor) -> Tensor:
        rows, columns = distances[:, None, :, None], distances[None, :, None, :]
        return (rows * distances.shape[1] + columns).reshape(self.sizes)

    def right_inverse(self, places: Tensor) -> Tensor:
        """(query side, key side): how far a query is from a key."""
        queries, keys = (math.isqrt(number) for number in self.sizes)
        steps = torch.arange(queries)[:, None] * (keys // queries)
        distances = (steps - torch.arange(keys)).abs().to(places)
        assert torch.equal(self(distances), places), "biases go by the distance on each axis"
        return distances
