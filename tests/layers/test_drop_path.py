"""Stochastic depth."""

import math

import pytest
import torch

from offseg_d2.layers import ChannelDropout, DropPath, drop_path_rates
from tests.common import assert_close


def test_drops_whole_samples_and_scales_the_survivors():
    layer = DropPath(0.25).train()
    branch = torch.randn(400, 2, 3, 3)
    out = layer(branch)
    dropped = (out == 0).flatten(1).all(1)
    assert 0 < dropped.sum() < 400
    assert_close(out[~dropped], branch[~dropped] / 0.75)


def test_drops_the_asked_share_and_keeps_the_expectation():
    layer = DropPath(0.3).train()
    out = layer(torch.ones(20_000, 1))
    share = (out == 0).double().mean().item()
    deviation = math.sqrt(0.3 * 0.7 / 20_000)
    assert abs(share - 0.3) < 5 * deviation
    assert out.mean().item() == pytest.approx(1.0, abs=5 * deviation / 0.7)


def test_draws_again_at_each_call_and_repeats_with_the_seed():
    layer, branch = DropPath(0.5).train(), torch.ones(64, 1)
    torch.manual_seed(3)
    first, second = layer(branch), layer(branch)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(layer(branch), first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_keeps_the_type(dtype):
    assert DropPath(0.5).train()(torch.ones(2, 3, dtype=dtype)).dtype == dtype


def test_is_the_identity_in_evaluation_and_at_rate_zero():
    branch = torch.randn(8, 3)
    state = torch.get_rng_state()
    assert DropPath(0.9).eval()(branch) is branch
    assert DropPath(0.0).train()(branch) is branch
    assert torch.equal(torch.get_rng_state(), state)  # nor does it draw


def test_gradient_of_dropped_samples_is_zero():
    branch = torch.ones(50, 2, requires_grad=True)
    out = DropPath(0.5).train()(branch)
    out.sum().backward()
    assert torch.equal(branch.grad, out.detach())  # 0 or 1 / keep, as the output of ones


@pytest.mark.parametrize("rate", [-0.1, 1.0, 2.0, float("nan")])
def test_rates_that_are_no_probability_are_refused(rate):
    with pytest.raises(ValueError, match=r"`rate` must be in \[0, 1\), but is"):
        DropPath(rate)


def test_rates_grow_linearly_from_zero():
    assert drop_path_rates(0.1, 5) == pytest.approx([0.0, 0.025, 0.05, 0.075, 0.1])
    assert drop_path_rates(0.3, 1) == [0.0]
    assert drop_path_rates(0.0, 3) == [0.0] * 3


@pytest.mark.parametrize("layer", [DropPath(0.5), ChannelDropout(0.5)])
def test_processes_that_share_a_batch_drop_what_one_alone_would(monkeypatch, layer):
    batch = torch.ones(8, 16, 2, 2)
    torch.manual_seed(0)
    alone = layer.train()(batch)
    assert 0 < (alone == 0).sum() < alone.numel()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    parts = []
    for rank in range(4):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        torch.manual_seed(0)
        parts.append(layer(batch[2 * rank : 2 * rank + 2]))
    assert torch.equal(torch.cat(parts), alone)


def test_channel_dropout_drops_whole_channels_and_scales_the_others():
    torch.manual_seed(0)
    out = ChannelDropout(0.25).train()(torch.ones(50, 40, 3, 3))
    dropped = (out == 0).flatten(2).all(2)
    assert 0.2 < dropped.float().mean() < 0.3
    assert_close(out[~dropped], torch.full_like(out[~dropped], 1 / 0.75))
    assert torch.equal(ChannelDropout(0.25).eval()(out), out)
    assert not ChannelDropout(1.0).train()(out).any()
