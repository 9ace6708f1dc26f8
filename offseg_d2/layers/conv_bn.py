"""Convolution and batch norm as one module."""

from torch import nn


class ConvBN(nn.Sequential):
    """Convolution (with bias) and batch norm; children `conv` and `bn`."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1, **conv: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, **conv)
        self.bn = nn.BatchNorm2d(out_channels)


class DepthwiseConvBN(ConvBN):
    """3 x 3 depth-wise convolution (with bias) and batch norm."""

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__(channels, channels, 3, stride=stride, groups=channels)
