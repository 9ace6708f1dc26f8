"""Batch norms and scales as part of the convolution before them."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold(conv: nn.Conv2d, norm: nn.BatchNorm2d, scale: Tensor | float = 1.0) -> nn.Conv2d:
    """A convolution that computes ``scale * norm(conv(x))``.

    Args:
        conv: with a bias.
        norm: in evaluation mode.
        scale: one number, or one for each channel.
    """
    return scaled(fuse_conv_bn_eval(conv, norm), scale)


@torch.no_grad()
def scaled(conv: nn.Conv2d, scale: Tensor | float) -> nn.Conv2d:
    """A convolution that computes ``scale * conv(x)``; ``conv`` has a bias and is not changed."""
    conv = copy.deepcopy(conv)
    factor = torch.as_tensor(scale).to(conv.weight).flatten().expand(conv.out_channels)
    conv.weight *= factor.view(-1, 1, 1, 1)
    conv.bias *= factor
    return conv
