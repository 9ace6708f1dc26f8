"""Stochastic depth, which drops a residual branch of a sample, and channel dropout.

Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016 (arXiv:1603.09382).
"""

from torch import Tensor, nn

from offseg_d2.layers.sample_random import rand_per_sample


class DropPath(nn.Module):
    """Zeroes its input for a random subset of the batch in training; identity in evaluation.

    Args:
        rate: probability that a sample's branch is dropped; survivors are scaled by 1/(1-rate).

    Raises:
        ValueError: if ``rate`` is outside [0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"`rate` must be in [0, 1), but is {rate}.")
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """(B, ...) -> (B, ...)."""
        if not self.training or self.rate == 0.0:
            return branch
        keep = 1.0 - self.rate
        ones = (1,) * (branch.ndim - 1)
        survivors = rand_per_sample(branch.shape[0], *ones, device=branch.device) < keep
        return branch * (survivors.to(branch.dtype) / keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


class ChannelDropout(nn.Dropout2d):
    """``nn.Dropout2d`` that drops the same channels however many processes share the batch."""

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if not self.training or self.p == 0.0:
            return features
        if self.p == 1.0:
            return features * 0.0
        keep = 1.0 - self.p
        survivors = rand_per_sample(*features.shape[:2], 1, 1, device=features.device) < keep
        return features * (survivors.to(features.dtype) / keep)


def drop_path_rates(largest: float, num_blocks: int) -> list[float]:
    """Rates that grow linearly from 0 at the first block to ``largest`` at the last one."""
    if num_blocks == 1:
        return [0.0]
    return [largest * block / (num_blocks - 1) for block in range(num_blocks)]
