"""The sine position code against its definition, channel by channel."""

import math

import pytest
import torch

from offseg_d2.layers import sine_position_encoding
from tests.common import assert_close


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 5), (7, 3)])
def test_every_entry_is_a_sine_or_cosine_of_its_own_wave_length(height, width):
    dim = 16
    expected = torch.empty(dim, height, width, dtype=torch.float64)
    for channel in range(dim):
        index = channel % (dim // 2)
        wave = math.sin if index % 2 == 0 else math.cos
        scale = 10_000 ** (2 * (index // 2) / (dim // 2))
        for y in range(height):
            for x in range(width):
                position, last = (y + 1, height) if channel < dim // 2 else (x + 1, width)
                expected[channel, y, x] = wave(position / (last + 1e-6) * 2 * math.pi / scale)
    code = sine_position_encoding(height, width, dim, dtype=torch.float64)
    assert_close(code, expected, 1e-12)


def test_first_half_of_the_channels_encodes_the_row_and_second_half_the_column():
    code = sine_position_encoding(4, 6, 32)
    rows, columns = code[:16], code[16:]
    assert torch.equal(rows, rows[:, :, :1].expand_as(rows))
    assert torch.equal(columns, columns[:, :1].expand_as(columns))
    different = [(rows[:, y] - rows[:, z]).abs().max() for y in range(4) for z in range(y)]
    assert min(different) > 0.1


def test_type_follows_the_request():
    assert sine_position_encoding(2, 2, 4).dtype == torch.float32
    assert sine_position_encoding(2, 2, 4, dtype=torch.float64).dtype == torch.float64


def test_dim_must_divide_into_sines_and_cosines_of_both_axes():
    with pytest.raises(ValueError, match=r"^`dim` must be a multiple of 4, but is 6\.$"):
        sine_position_encoding(2, 2, 6)
