"""Group norm is as exact for channels_last maps as for others."""

import pytest
import torch
from torch import nn

from offseg_d2.layers import ContiguousGroupNorm
from tests.common import assert_close, seed_all, spread_weights


@pytest.mark.parametrize("mean", [0.0, 3.0, 100.0])
def test_group_norm_is_exact_in_every_memory_format(mean):
    seed_all()
    norm = spread_weights(ContiguousGroupNorm(4, 16)).requires_grad_(False)
    features = torch.randn(2, 16, 24, 30) + mean
    expected = nn.GroupNorm.forward(norm.double(), features.double()).float()
    norm = norm.float()
    actual = norm(features.contiguous(memory_format=torch.channels_last))
    assert actual.is_contiguous()
    assert torch.equal(actual, norm(features))
    assert_close(actual, expected, 5e-5, reason="values near 100 are only known to 4e-6")
