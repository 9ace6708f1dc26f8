"""The sampler of FreqFusion: neighbour similarity and displaced reading, against slow loops."""

import math

import pytest
import torch
from torch import Tensor, nn

from offseg_d2.layers import LocalSimilaritySampler, neighbour_similarity
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
