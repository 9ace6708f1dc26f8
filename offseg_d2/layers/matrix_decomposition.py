"""Hamburger: global context by non-negative matrix factorisation of a feature map.

Geng et al., "Is Attention Better Than Matrix Decomposition?", ICLR 2021 (arXiv:2109.04553), in the
form that SegNeXt (arXiv:2209.08575) uses. A map Z of N pixels is approximated by R << N vectors:
what survives is what many pixels have in common.

Differs from the authors' code: in evaluation the random bases come from a seeded generator of
their own, one set for the whole batch, so that a prediction depends on the image alone.

Shapes: B batch, D channels, N = H W pixels, R bases.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offseg_d2.layers.channel_norm import ContiguousGroupNorm
from offseg_d2.layers.sample_random import rand_per_sample

EPSILON = 1e-6  # keeps the multiplicative updates away from a division by zero


class NMF2D(nn.Module):
    """Rebuilds a non-negative map from R bases found by multiplicative updates.

    Args:
        channels: D.
        rank: R.
        train_steps: updates in training; gradients flow through all of them.
        eval_steps: updates in evaluation.
        random_bases: draw new bases at each forward pass in evaluation too, for each image of the
            batch, as the authors' code does; predictions are then not repeatable.
        seed: of the bases in evaluation.

    Attributes:
        injected_bases: None, or bases (1 or B, D, R) of unit length over D to start from in place
            of drawn ones.
    """

    injected_bases: Tensor | None

    def __init__(
        self,
        channels: int,
        rank: int = 16,
        *,
        train_steps: int = 6,
        eval_steps: int = 7,
        random_bases: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.rank = rank
        self.train_steps = train_steps
        self.eval_steps = eval_steps
        self.random_bases = random_bases
        self.seed = seed
        self.register_buffer("injected_bases", None, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Approximate a map.

        Runs in float32 under autocast: products of sums over thousands of pixels get divided.

        Args:
            features: (B, D, H, W), not negative.

        Returns:
            (B, D, H, W), of rank R at most for each image.
        """
        height, width = features.shape[-2:]
        with torch.autocast(features.device.type, enabled=False):
            dtype = torch.promote_types(features.dtype, torch.float32)
            pixels = features.to(dtype).flatten(2)  # Z (B, D, N)
            bases = self.injected_bases
            if bases is None:
                bases = self.draw_bases(pixels.shape[0], pixels.device)
            bases = bases.to(pixels, non_blocking=True).expand(pixels.shape[0], -1, -1)
            steps = self.train_steps if self.training else self.eval_steps
            bases, coefficients = factorise(pixels, bases, steps)
            rebuilt = bases @ coefficients.mT  # (B, D, N)
        return rebuilt.unflatten(2, (height, width)).to(features.dtype)

    def draw_bases(self, batch: int, device: torch.device) -> Tensor:
        """Uniform in [0, 1), then of unit length: (B, D, R) or, seeded, (1, D, R)."""
        if self.training or self.random_bases:
            bases = rand_per_sample(batch, self.channels, self.rank, device=device)
        else:
            # On the CPU, where a seed gives the same numbers whatever the model runs on.
            generator = torch.Generator("cpu").manual_seed(self.seed)
            bases = torch.rand(1, self.channels, self.rank, generator=generator, device="cpu")
        return F.normalize(bases, dim=1)

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, rank={self.rank}, train_steps={self.train_steps}, "
            f"eval_steps={self.eval_steps}, random_bases={self.random_bases}"
        )


def factorise(pixels: Tensor, bases: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Non-negative factors with ``pixels`` ~ ``bases @ coefficients.mT``.

    Lee and Seung's multiplicative updates, starting from a soft assignment of pixels to bases.

    Args:
        pixels: Z (B, D, N), not negative.
        bases: D (B, D, R), not negative.
        steps: number of updates of both factors; the coefficients get one more.

    Returns:
        bases (B, D, R) and coefficients C (B, N, R).
    """
    coefficients = (pixels.mT @ bases).softmax(dim=2)
    for _ in range(steps):
        coefficients = _update_coefficients(pixels, bases, coefficients)
        # D <- D * (Z C) / (D (C^T C)); C^T C is just R x R
        numerator = pixels @ coefficients
        denominator = bases @ (coefficients.mT @ coefficients) + EPSILON
        bases = bases * numerator / denominator
    return bases, _update_coefficients(pixels, bases, coefficients)


def _update_coefficients(pixels: Tensor, bases: Tensor, coefficients: Tensor) -> Tensor:
    """C <- C * (Z^T D) / (C (D^T D))."""
    numerator = pixels.mT @ bases  # (B, N, R)
    denominator = coefficients @ (bases.mT @ bases) + EPSILON
    return coefficients * numerator / denominator


class Hamburger(nn.Module):
    """A matrix decomposition between two 1x1 convolutions, with a residual connection.

    Args:
        channels: D, divisible by ``norm_groups``.
        decomposition: (B, D, H, W), not negative -> (B, D, H, W).
        norm_groups: groups of the group norm of the last convolution.
    """

    def __init__(self, channels: int, decomposition: nn.Module, norm_groups: int = 32) -> None:
        super().__init__()
        self.ham_in = nn.Conv2d(channels, channels, 1)
        self.decomposition = decomposition
        conv = nn.Conv2d(channels, channels, 1, bias=False)
        norm = ContiguousGroupNorm(norm_groups, channels)
        self.ham_out = nn.Sequential(OrderedDict(conv=conv, norm=norm))
        for layer in (self.ham_in, conv):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.ham_in.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D, H, W), not negative."""
        context = self.ham_out(self.decomposition(F.relu(self.ham_in(features))))
        return F.relu(features + context)
