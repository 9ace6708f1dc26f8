"""EfficientFormerV2 and MSCAN in the authors' order of operations: one module after the other.

Shapes: B batch, C channels, h heads, d channels of a head, Nq queries, Nk keys.
"""

import torch.nn.functional as F
from torch import Tensor

from offseg_d2.modeling.backbone.efficientformer_v2 import Block, ConvMlp
from offseg_d2.modeling.backbone.efficientformer_v2_attention import (
    NUM_HEADS,
    Attention,
    AttentionBias,
    DownsamplingAttention,
)
from offseg_d2.modeling.backbone.mscan import MSCAN


def to_heads(features: Tensor) -> Tensor:
    """(B, h d, H, W) -> (B, h, H W, d)."""
    return features.flatten(2).unflatten(1, (NUM_HEADS, -1)).mT


def from_heads(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, h, H W, d) -> (B, h d, H, W)."""
    return tokens.mT.flatten(1, 2).unflatten(2, size)


class AuthorsConvMlp(ConvMlp):
    """Convolution, norm, activation."""

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        hidden = F.gelu(self.norm1(self.fc1(features)))
        hidden = F.gelu(self.mid_norm(self.mid(hidden)))
        return self.norm2(self.fc2(hidden))


class AuthorsBlock(Block):
    """Branch, scale, random depth, sum."""

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if self.token_mixer is not None:
            branch = self.layer_scale_1 * self.token_mixer(features)
            features = features + self.drop_path(branch)
        return features + self.drop_path(self.layer_scale_2 * self.mlp(features))


class AuthorsAttentionBias(AttentionBias):
    """Gathered and resized at every call."""

    def forward(self, num_queries: int, num_keys: int) -> Tensor:
        """The biases for this many tokens: (1, h, Nq, Nk)."""
        bias = self.table[:, self.indices][None]
        size = (num_queries, num_keys)
        return F.interpolate(bias, size=size, mode="bicubic", align_corners=False)


class AuthorsAttention(Attention):
    """Queries, keys and values projected one by one."""

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        tokens = features if self.stride_conv is None else self.stride_conv(features)
        height, width = tokens.shape[-2:]
        queries, keys, values = self.q(tokens), self.k(tokens), self.v(tokens)
        similarity = to_heads(queries) @ to_heads(keys).mT * self.scale
        similarity = similarity + self.bias(*similarity.shape[-2:])
        attention = self.talking_head1(similarity).softmax(dim=-1)
        read = self.talking_head2(attention) @ to_heads(values)
        out = from_heads(read, (height, width)) + self.v_local(values)
        if self.stride_conv is not None:
            out = F.interpolate(out, scale_factor=2, mode="bilinear", align_corners=False)
        return self.proj(F.gelu(out))


class AuthorsDownsamplingAttention(DownsamplingAttention):
    """Queries, keys and values projected one by one."""

    def forward(self, features: Tensor) -> Tensor:
        """(B, C_in, H, W), even sizes -> (B, C_out, H / 2, W / 2)."""
        height, width = features.shape[-2:]
        queries = self.q(self.q_local(features) + features[..., ::2, ::2])
        keys, values = self.k(features), self.v(features)
        similarity = to_heads(queries) @ to_heads(keys).mT * self.scale
        attention = (similarity + self.bias(*similarity.shape[-2:])).softmax(dim=-1)
        out = from_heads(attention @ to_heads(values), (height // 2, width // 2))
        return self.proj(F.gelu(out + self.v_local(values)))


class AuthorsMSCAN(MSCAN):
    """Maps laid out with the channels outermost."""

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> "res2".."res5" at strides 4, 8, 16, 32."""
        features = self.stem(image)
        outputs = {}
        for level, (name, stage) in enumerate(zip(self._out_features, self.stages, strict=True)):
            if level > 0:
                features = self.downsamples[level - 1](features)
            features = outputs[name] = stage(features).contiguous()
        return outputs
