"""MSCAN, the backbone of SegNeXt."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from offseg_d2.modeling.backbone import MSCAN
from offseg_d2.modeling.backbone.mscan import Block, SpatialAttention, SpatialGate


def test_strips_of_the_gate_equal_square_kernels_of_rank_one():
    gate = SpatialGate(4).double()
    for conv in gate.modules():
        if isinstance(conv, nn.Conv2d) and conv is not gate.mix:
            nn.init.zeros_(conv.bias)  # a bias inside a strip pair would fade at the borders
    features = torch.randn(1, 4, 25, 30).double()
    near = F.conv2d(features, gate.conv0.weight, padding=2, groups=4)
    scales = near
    for horizontal, vertical in zip(gate.horizontal, gate.vertical, strict=True):
        kernel = vertical.weight * horizontal.weight  # (C, 1, k, 1) * (C, 1, 1, k)
        scales = scales + F.conv2d(near, kernel, padding=kernel.shape[-1] // 2, groups=4)
    expected = gate.mix(scales) * features
    torch.testing.assert_close(gate(features), expected)
    assert [h.weight.shape[-1] for h in gate.horizontal] == [7, 11, 21]


def test_attention_adds_its_own_input():
    attention = SpatialAttention(8)
    nn.init.zeros_(attention.proj_2.weight)
    nn.init.zeros_(attention.proj_2.bias)
    features = torch.randn(1, 8, 5, 5)
    assert torch.equal(attention(features), features)


def test_block_adds_its_branches_at_their_scales():
    block = Block(8, 4, 0.0).eval()
    features = torch.randn(1, 8, 5, 5)
    middle = features + 0.01 * block.attn(block.norm1(features))
    expected = middle + 0.01 * block.mlp(block.norm2(middle))
    torch.testing.assert_close(block(features), expected)


def test_weights_start_as_published():
    torch.manual_seed(0)
    backbone = MSCAN(variant="t")
    block = backbone.stages[3].blocks[0]
    # fan_out of a depth-wise kernel: the positions of one channel's window
    assert block.attn.gate.horizontal[2].weight.std().item() == pytest.approx(
        math.sqrt(2 / 21), rel=0.03
    )
    assert block.mlp.fc1.weight.std().item() == pytest.approx(math.sqrt(2 / 1024), rel=0.03)
    assert block.layer_scale_1.tolist() == pytest.approx([0.01] * 256)
    assert not backbone.stem[0].conv.bias.any()
