"""MiT, the backbone of SegFormer."""

import math

import pytest
import torch
from torch import nn

from offseg_d2.modeling.backbone import MiT
from offseg_d2.modeling.backbone.mit import EfficientAttention


@pytest.mark.parametrize("reduction", [1, 2])
def test_attention_equals_torch_multi_head_attention(reduction):
    torch.manual_seed(0)
    attention = EfficientAttention(32, 4, reduction)
    nn.init.normal_(attention.in_proj_bias)
    nn.init.normal_(attention.out_proj.bias)
    reference = nn.MultiheadAttention(32, 4, batch_first=True)
    packed = {k: v for k, v in attention.state_dict().items() if "proj" in k}
    reference.load_state_dict(packed)
    features = torch.randn(2, 32, 6, 8)
    source = features
    if reduction > 1:
        source = torch.conv2d(features, attention.sr.weight, attention.sr.bias, stride=reduction)
        normalised = torch.layer_norm(source.movedim(1, -1), [32], eps=1e-6)
        source = normalised.movedim(-1, 1)
    queries, keys = features.flatten(2).mT, source.flatten(2).mT
    expected = reference(queries, keys, keys, need_weights=False)[0].mT.reshape(features.shape)
    torch.testing.assert_close(attention(features), expected)


def test_weights_start_as_published():
    torch.manual_seed(0)
    block = MiT(variant="b0").stages[3].blocks[0]
    # fan_out of a depth-wise kernel: 3 * 3 outputs of one channel
    assert block.ffn.dwconv.weight.std().item() == pytest.approx(math.sqrt(2 / 9), rel=0.03)
    assert block.ffn.fc1.weight.std().item() == pytest.approx(math.sqrt(2 / 1024), rel=0.03)
    limit = math.sqrt(6 / (256 + 3 * 256))  # Xavier over the packed matrix
    assert block.attn.in_proj_weight.abs().max().item() == pytest.approx(limit, rel=0.01)
    assert block.attn.out_proj.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert not block.ffn.fc2.bias.any() and not block.attn.in_proj_bias.any()


def test_too_small_image_is_refused():
    with pytest.raises(ValueError, match="at least 29 x 29"):
        MiT(variant="b0")(torch.zeros(1, 3, 28, 64))
