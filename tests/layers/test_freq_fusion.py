"""FreqFusion: step by step, invariants, gradients. Its sampler has a file of its own."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from offseg_d2.layers import FreqFusion, carafe
from tests.common import assert_close, spread_weights
from tests.layers.test_local_similarity_sampler import sample_by_loops, sampler_by_steps


def fusion_by_steps(fusion: FreqFusion, hr: Tensor, lr: Tensor) -> tuple[Tensor, Tensor]:
    def kernels(logits: Tensor) -> Tensor:
        return logits.softmax(1)

    h0, l0 = fusion.hr_channel_compressor(hr), fusion.lr_channel_compressor(lr)
    a = fusion.high_pass_encoder(h0)
    h1 = 2 * h0 - carafe(h0, kernels(a), 3, 1)
    b = fusion.low_pass_encoder(h1)
    c = carafe(fusion.low_pass_encoder(l0), kernels(b), 5, 2)
    k_low = kernels(b + c)
    d = carafe(fusion.high_pass_encoder(l0), k_low, 5, 2)
    k_high = kernels(a + d)
    lr_up = carafe(lr, k_low, 5, 2)
    hr_out = 2 * hr - carafe(hr, k_high, 3, 1)
    return hr_out, sample_by_loops(lr_up, sampler_by_steps(fusion.sampler, h1, l0))


def make_fusion(hr: int = 16, lr: int = 16) -> FreqFusion:
    return spread_weights(FreqFusion(hr, lr))


def test_fusion_equals_its_formula_step_by_step():
    fusion = make_fusion().double()
    hr, lr = torch.randn(1, 16, 8, 10).double(), torch.randn(1, 16, 4, 5).double()
    with torch.no_grad():
        for actual, expected in zip(fusion(hr, lr), fusion_by_steps(fusion, hr, lr), strict=True):
            assert_close(actual, expected, 1e-10)


def test_kernels_sum_to_one_and_do_not_change_constant_maps():
    fusion = make_fusion()
    hr, lr = torch.randn(2, 16, 12, 8), torch.randn(2, 16, 6, 4)
    _, _, low_pass, high_pass = fusion.predict_kernels(hr, lr)
    assert low_pass.shape == (2, 25, 12, 8) and high_pass.shape == (2, 9, 12, 8)
    for kernels in (low_pass, high_pass):
        assert_close(kernels.sum(1), torch.ones(2, 12, 8))
        assert (kernels > 0).all()
    constant = torch.full((2, 1, 12, 8), 3.0)
    inner = carafe(constant, high_pass, 3)[..., 1:-1, 1:-1]
    assert_close(inner, torch.full_like(inner, 3.0))


def test_fusion_gradients_equal_finite_differences_for_inputs_and_every_parameter():
    fusion = make_fusion(16, 16).double()
    hr = torch.randn(1, 16, 4, 4, dtype=torch.float64)
    lr = torch.randn(1, 16, 2, 2, dtype=torch.float64)
    names = list(dict(fusion.named_parameters()))
    values = tuple(p.detach().clone().requires_grad_() for p in fusion.parameters())

    def run(hr: Tensor, lr: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.functional_call(
            fusion, dict(zip(names, parameters, strict=True)), (hr, lr)
        )

    inputs = (hr.requires_grad_(), lr.requires_grad_(), *values)
    # fast_mode: one random projection of the Jacobian instead of each of its 8000 columns
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


def test_every_parameter_gets_a_gradient():
    fusion = FreqFusion(16, 24, 16)
    hr_out, lr_out = fusion(torch.randn(2, 16, 12, 12), torch.randn(2, 24, 6, 6))
    (
        (hr_out * torch.randn_like(hr_out)).sum() + (lr_out * torch.randn_like(lr_out)).sum()
    ).backward()
    for name, parameter in fusion.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_samples_of_a_batch_do_not_influence_each_other():
    fusion = make_fusion().double()
    hr, lr = torch.randn(3, 16, 6, 6).double(), torch.randn(3, 16, 3, 3).double()
    with torch.no_grad():
        together = fusion(hr, lr)
        alone = fusion(hr[1:2], lr[1:2])
    for batch, single in zip(together, alone, strict=True):
        assert_close(batch[1:2], single, 1e-12)


def test_result_is_the_same_at_a_mirrored_input_with_mirrored_weights():
    # Left-right mirroring of everything: catches swapped axes of kernels, grid and neighbours.
    fusion = make_fusion().double()
    mirrored = make_fusion().double()
    state = {k: v.clone() for k, v in fusion.state_dict().items()}
    for name, value in state.items():
        if value.ndim == 4 and value.shape[-1] == 3:
            state[name] = value.flip(-1)
    for name, side in (("low_pass_encoder", 5), ("high_pass_encoder", 3)):
        for suffix in ("weight", "bias"):
            value = state[f"{name}.{suffix}"].unflatten(0, (side, side))
            state[f"{name}.{suffix}"] = value.flip(1).flatten(0, 1)
    neighbours = [2, 1, 0, 4, 3, 7, 6, 5]  # left and right exchanged
    for name, per_axis in (("lr_offset", 16), ("hr_offset", 4)):
        weight = state[f"sampler.{name}.weight"][:, neighbours]
        state[f"sampler.{name}.weight"] = _mirror_outputs(weight, per_axis)
        state[f"sampler.{name}.bias"] = _mirror_outputs(state[f"sampler.{name}.bias"], per_axis)
    for name, per_axis in (("lr_scale", 16), ("hr_scale", 4)):
        for suffix in ("weight", "bias"):
            key = f"sampler.{name}.{suffix}"
            state[key] = _mirror_outputs(state[key], per_axis, flip_sign=False)
    mirrored.load_state_dict(state)
    hr, lr = torch.randn(1, 16, 6, 10).double(), torch.randn(1, 16, 3, 5).double()
    with torch.no_grad():
        expected = [x.flip(-1) for x in fusion(hr, lr)]
        actual = mirrored(hr.flip(-1), lr.flip(-1))
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, 1e-10)


def _mirror_outputs(value: Tensor, per_axis: int, flip_sign: bool = True) -> Tensor:
    """Outputs: axis (x, y), group[, sub-pixel row, sub-pixel column]; mirrored left to right."""
    value = value.clone()
    if per_axis == 16:  # the coarse branch predicts each sub-pixel on its own
        value = value.unflatten(0, (16, 2)).flip(1).flatten(0, 1)
    if flip_sign:
        value[:per_axis] *= -1
    return value


def test_weights_start_as_published():
    fusion = FreqFusion(64, 128)  # the coarsest of OffSeg-T: 48 compressed channels
    # Standard deviations of a Xavier-uniform draw: sqrt(2 / (fan_in + fan_out)).
    expected = {
        "hr_channel_compressor": 0.135162,
        "lr_channel_compressor": 0.107051,
        "sampler.lr_offset": 0.074464,
        "sampler.lr_scale": 0.052761,
        "sampler.hr_offset": 0.120649,
        "sampler.hr_scale": 0.061869,
        "low_pass_encoder": 0.001001,
        "high_pass_encoder": 0.000991,
    }
    for name, std in expected.items():
        layer = fusion.get_submodule(name)
        spread = 4 / math.sqrt(2 * layer.weight.numel())  # four standard errors
        assert layer.weight.std().item() == pytest.approx(std, rel=max(0.02, spread)), name
        assert not layer.bias.any(), name
    limit = math.sqrt(6 / (9 * 48 + 9 * 32))
    assert fusion.sampler.lr_scale.weight.abs().max().item() == pytest.approx(limit, rel=0.01)
    assert fusion.low_pass_encoder.weight.abs().max() > 0.003  # normal, not uniform
    for norm in (fusion.sampler.hr_norm, fusion.sampler.lr_norm):
        assert norm.weight.eq(1).all() and not norm.bias.any() and norm.eps == 1e-5


def test_constant_buffers_are_not_saved():
    assert not any("init_positions" in name for name in FreqFusion(16, 16).state_dict())


def test_bfloat16_autocast_stays_close_to_float32():
    fusion = make_fusion()
    hr, lr = torch.randn(1, 16, 64, 256), torch.randn(1, 16, 32, 128)
    hr, lr = (F.avg_pool2d(x, 5, 1, 2) for x in (hr, lr))  # smooth, as features are
    with torch.no_grad():
        expected = fusion(hr, lr)
        with torch.autocast("cpu", torch.bfloat16):
            actual = fusion(hr, lr)
    for a, e in zip(actual, expected, strict=True):
        assert (a.float() - e).abs().mean() < 0.01 * e.abs().mean()


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ((16, 18), "`lr_channels` must be divisible by 4, but is 18"),
        ((16, 16, 12), "`channels` must be divisible by 8, but is 12"),
    ],
)
def test_channels_that_cannot_be_grouped_are_refused(channels, message):
    with pytest.raises(ValueError, match=message):
        FreqFusion(*channels)


def test_maps_that_are_not_two_to_one_are_refused():
    with pytest.raises(ValueError, match="`kernels` must have shape"):
        FreqFusion(16, 16)(torch.randn(1, 16, 7, 8), torch.randn(1, 16, 4, 4))
