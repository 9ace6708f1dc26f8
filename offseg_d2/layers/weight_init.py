"""Weight initialisation that PyTorch has no function for."""

import math

from torch import nn


def fan_out_normal_(conv: nn.Conv2d) -> None:
    """Weights from N(0, 2 / fan_out), bias 0; fan_out = output values that one input value reaches.

    ``nn.init.kaiming_normal_(mode="fan_out")`` does not divide by the groups: it would start
    depth-wise kernels sqrt(C) too small.
    """
    height, width = conv.kernel_size
    fan_out = height * width * conv.out_channels // conv.groups
    nn.init.normal_(conv.weight, std=math.sqrt(2.0 / fan_out))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
