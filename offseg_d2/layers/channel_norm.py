"""Layer norm over the channels of a map, as transformers need it between convolutions."""

from torch import Tensor, nn


class ChannelLayerNorm(nn.LayerNorm):
    """Normalises each position over its channels: (B, C, H, W) -> (B, C, H, W).

    The result is laid out with the channels innermost (`torch.channels_last`), so that reading it
    as tokens (B, H * W, C) costs no copy.
    """

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return super().forward(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
