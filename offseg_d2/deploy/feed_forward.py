"""Feed-forward network of 1x1 convolution, depth-wise 3x3, GELU, 1x1 convolution.

The hidden map is three or four times as wide as the input: 8 MB and more at stride 4. It is
computed and used some rows at a time, so it never leaves the cache.

Shapes: B batch, C channels, D hidden channels, H x W pixels.
"""

import torch
from torch import Tensor, nn

from offseg_d2.deploy.packed import PackedConv2d, PackedLinear

BAND_BYTES = 2 << 20  # of the hidden map that are computed at once


class DepthwiseFeedForward(nn.Module):
    """``x + fc2(depthwise(fc1(x)))``, activations included in the layers.

    Args:
        fc1: C -> D.
        depthwise: 3x3 over D channels that keeps the size.
        fc2: D -> C.
    """

    def __init__(self, fc1: PackedLinear, depthwise: PackedConv2d, fc2: PackedLinear) -> None:
        super().__init__()
        self.fc1, self.depthwise, self.fc2 = fc1, depthwise, fc2

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        height, width = tokens.shape[1:3]
        row_bytes = width * self.fc1.weight.shape[0] * tokens.element_size()
        rows = max(BAND_BYTES // row_bytes, 4)
        if len(tokens) * height <= 2 * rows:  # a band more would cost more than it gains
            return self._band(tokens, 0, height)
        step = -(-height // -(-height // rows))  # so that all bands are about as high
        out = torch.empty_like(tokens)
        for image, result in zip(tokens.split(1), out.split(1), strict=True):
            for top in range(0, height, step):
                bottom = min(top + step, height)
                result[:, top:bottom] = self._band(image, top, bottom)
        return out

    def _band(self, tokens: Tensor, top: int, bottom: int) -> Tensor:
        """Rows of the result; the depth-wise convolution needs one more on either side."""
        first = max(top - 1, 0)
        hidden = self.fc1(tokens[:, first : bottom + 1])
        hidden = self.depthwise(hidden.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(hidden[:, top - first : bottom - first], tokens[:, top:bottom])
