"""FreqFusion and its sampler: slow loops, invariants, gradients."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offseg_d2.layers import FreqFusion, LocalSimilaritySampler, carafe, neighbour_similarity
from offseg_d2.layers.freq_fusion import sample_with_offsets
from tests.common import assert_close, spread_weights


def similarity_by_loops(features: Tensor, dilation: int) -> Tensor:
    batch, _, height, width = features.shape
    steps = (-dilation, 0, dilation)
    directions = [(dy, dx) for dy in steps for dx in steps if (dy, dx) != (0, 0)]
    out = features.new_zeros(batch, 8, height, width)
    for b in range(batch):
        for channel, (dy, dx) in enumerate(directions):
            for y in range(height):
                for x in range(width):
                    if 0 <= y + dy < height and 0 <= x + dx < width:
                        u, v = features[b, :, y, x], features[b, :, y + dy, x + dx]
                        norms = max(u.norm(), 1e-8) * max(v.norm(), 1e-8)
                        out[b, channel, y, x] = (u * v).sum() / norms
    return out


@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("size", [(5, 7), (2, 3), (1, 1), (4, 4)])
def test_similarity_equals_loops_over_all_eight_directions(size, dilation):
    features = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = similarity_by_loops(features, dilation)
    assert_close(neighbour_similarity(features, dilation), expected, 1e-12)


def test_similarity_is_zero_where_the_neighbour_is_outside():
    similarity = neighbour_similarity(torch.ones(1, 4, 6, 6))  # every cosine inside is 1
    inside = torch.zeros(6, 6)
    inside[2:, 2:] = 1  # the upper left neighbour of these exists
    assert_close(similarity[0, 0], inside)
    assert_close(similarity[0, 7], inside.flip(0, 1))
    assert_close(similarity[0, 1], inside[:, -1:].expand(6, 6).contiguous())


def test_similarity_of_a_zero_vector_is_zero_and_has_a_finite_gradient():
    features = torch.randn(1, 3, 5, 5)
    features[:, :, 2, 2] = 0
    features.requires_grad_()
    similarity = neighbour_similarity(features)
    assert similarity[0, :, 2, 2].eq(0).all()
    similarity.sum().backward()
    assert features.grad.isfinite().all()


def test_similarity_does_not_depend_on_the_length_of_the_vectors():
    features = torch.randn(1, 3, 6, 5, dtype=torch.float64)
    scaled = features * torch.rand(1, 1, 6, 5, dtype=torch.float64).add(0.1)
    assert_close(neighbour_similarity(scaled), neighbour_similarity(features), 1e-12)


def test_similarity_gradients_equal_finite_differences():
    features = torch.randn(2, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(neighbour_similarity, (features,))


def read_bilinear(plane: Tensor, y: float, x: float) -> Tensor:
    """Value at a position in pixels (centres at integers), borders repeated."""
    height, width = plane.shape
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = math.floor(y), math.floor(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    fy, fx = y - top, x - left
    upper = plane[top, left] * (1 - fx) + plane[top, right] * fx
    lower = plane[bottom, left] * (1 - fx) + plane[bottom, right] * fx
    return upper * (1 - fy) + lower * fy


def sample_by_loops(features: Tensor, offsets: Tensor) -> Tensor:
    """Offsets are in coarse pixels: channel = axis * 16 + group * 4 + row * 2 + column."""
    out = torch.zeros_like(features)
    batch, channels, height, width = features.shape
    for b in range(batch):
        for c in range(channels):
            group = c // (channels // 4)
            for y in range(height):
                for x in range(width):
                    entry = group * 4 + 2 * (y % 2) + x % 2
                    dx = float(offsets[b, entry, y // 2, x // 2])
                    dy = float(offsets[b, 16 + entry, y // 2, x // 2])
                    # centre of the coarse pixel, moved; then in fine pixels
                    fine_x = 2 * (x // 2 + 0.5 + dx) - 0.5
                    fine_y = 2 * (y // 2 + 0.5 + dy) - 0.5
                    out[b, c, y, x] = read_bilinear(features[b, c], fine_y, fine_x)
    return out


def test_sampling_equals_loops():
    features = torch.randn(2, 8, 4, 6, dtype=torch.float64)
    offsets = 0.8 * torch.randn(2, 32, 2, 3, dtype=torch.float64)  # some leave the map
    assert_close(sample_with_offsets(features, offsets), sample_by_loops(features, offsets), 1e-10)


def test_sampling_without_learned_offset_is_the_identity():
    sampler = LocalSimilaritySampler(16).double()
    for parameter in (*sampler.lr_offset.parameters(), *sampler.hr_offset.parameters()):
        nn.init.zeros_(parameter)
    features = torch.randn(2, 8, 10, 6, dtype=torch.float64)
    hr, lr = torch.randn(2, 16, 10, 6).double(), torch.randn(2, 16, 5, 3).double()
    assert_close(sample_with_offsets(features, sampler(hr, lr)), features, 1e-12)


def test_an_offset_of_half_a_coarse_pixel_moves_by_one_fine_pixel():
    features = torch.randn(1, 4, 6, 6)
    offsets = LocalSimilaritySampler(8).init_positions.repeat(1, 1, 3, 3)
    offsets[:, :16] += 0.5  # to the right
    moved = sample_with_offsets(features, offsets)
    assert_close(moved[..., :-1], features[..., 1:])
    assert_close(moved[..., -1], features[..., -1])  # borders are repeated
    offsets = LocalSimilaritySampler(8).init_positions.repeat(1, 1, 3, 3)
    offsets[:, 16 + 4 : 16 + 8] += 0.5  # down, in the second group only
    moved = sample_with_offsets(features, offsets)
    assert_close(moved[:, 1, :-1], features[:, 1, 1:])
    assert_close(moved[:, [0, 2, 3]], features[:, [0, 2, 3]])


def test_sampling_gradients_equal_finite_differences():
    features = torch.randn(2, 4, 4, 6, dtype=torch.float64, requires_grad=True)
    offsets = 0.3 * torch.rand(2, 32, 2, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(sample_with_offsets, (features, offsets.requires_grad_()))


def test_sampling_positions_are_exact_for_half_precision_features():
    # A column index in a map of 512 needs more bits than a bfloat16 has.
    ramp = (torch.arange(512) % 64).float().expand(1, 4, 2, 512)
    offsets = LocalSimilaritySampler(8).init_positions.expand(1, 32, 1, 256)
    sampled = sample_with_offsets(ramp.bfloat16(), offsets)
    assert sampled.dtype == torch.bfloat16
    assert torch.equal(sampled.float(), ramp)


def sampler_by_steps(sampler: LocalSimilaritySampler, hr: Tensor, lr: Tensor) -> Tensor:
    """The sampler's formula step by step, with pixel-unshuffling as a loop."""

    def unshuffle(fine: Tensor) -> Tensor:
        out = fine.new_zeros(fine.shape[0], 32, fine.shape[2] // 2, fine.shape[3] // 2)
        for c in range(8):
            for i in range(2):
                for j in range(2):
                    out[:, 4 * c + 2 * i + j] = fine[:, c, i::2, j::2]
        return out

    p, q = sampler.hr_norm(hr), sampler.lr_norm(lr)
    off = sampler.lr_offset(similarity_by_loops(q, 2))
    off = off + unshuffle(sampler.hr_offset(similarity_by_loops(p, 2)))
    scale = sampler.lr_scale(q) + unshuffle(sampler.hr_scale(p))
    start = torch.zeros(32)
    for channel in range(32):
        t, i, j = channel // 16, channel % 4 // 2, channel % 2
        start[channel] = 0.25 * (1 if (j if t == 0 else i) else -1)
    return off * torch.sigmoid(scale) + start.view(1, 32, 1, 1)


def test_sampler_equals_its_formula_step_by_step():
    sampler = spread_weights(LocalSimilaritySampler(16)).double()
    hr, lr = torch.randn(2, 16, 8, 12).double(), torch.randn(2, 16, 4, 6).double()
    assert_close(sampler(hr, lr), sampler_by_steps(sampler, hr, lr), 1e-12)


def test_sampler_norms_have_groups_of_eight_channels():
    sampler = LocalSimilaritySampler(48)
    assert (sampler.hr_norm.num_groups, sampler.lr_norm.num_groups) == (6, 6)


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
