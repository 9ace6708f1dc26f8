"""Deformable attention against loops, finite differences and the optional compiled operator."""

import math
import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

from offseg_d2.layers import MSDeformAttn, ms_deform_attn
from offseg_d2.layers.ms_deform_attn import (
    has_compiled_operator,
    sample_levels,
    sample_levels_by_grid,
)
from tests.common import assert_close

SIZES = [(3, 5), (2, 2), (1, 4)]
PIXELS = sum(height * width for height, width in SIZES)
PACKAGE = "torch_ms_deform_attn"


@pytest.fixture(autouse=True)
def _fresh_choice():
    """Each test chooses the operator again."""
    ms_deform_attn._has_compiled_operator.cache_clear()
    yield
    ms_deform_attn._has_compiled_operator.cache_clear()


def inputs(
    batch: int = 2, queries: int = 4, heads: int = 2, dim: int = 3, points: int = 2
) -> list[Tensor]:
    """Values, locations (some of them outside) and weights, float64."""
    shape = (batch, queries, heads, len(SIZES), points)
    values = torch.randn(batch, PIXELS, heads, dim, dtype=torch.float64)
    locations = 1.6 * torch.rand(*shape, 2, dtype=torch.float64) - 0.3
    return [values, locations, torch.randn(shape, dtype=torch.float64)]


def pixel(level: Tensor, y: int, x: int) -> Tensor:
    """(H, W, D) at a pixel, zero outside."""
    inside = 0 <= y < level.shape[0] and 0 <= x < level.shape[1]
    return level[y, x] if inside else torch.zeros_like(level[0, 0])


def slow_read(level: Tensor, x: float, y: float) -> Tensor:
    """Bilinear reading of (H, W, D) at (x, y) in [0, 1]."""
    height, width = level.shape[:2]
    px, py = x * width - 0.5, y * height - 0.5
    left, top = math.floor(px), math.floor(py)
    fx, fy = px - left, py - top
    return (
        pixel(level, top, left) * (1 - fx) * (1 - fy)
        + pixel(level, top, left + 1) * fx * (1 - fy)
        + pixel(level, top + 1, left) * (1 - fx) * fy
        + pixel(level, top + 1, left + 1) * fx * fy
    )


def slow_sample(values: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    batch, queries, heads, _, points = weights.shape
    out = torch.zeros(batch, queries, heads, values.shape[-1], dtype=values.dtype)
    for b in range(batch):
        for head in range(heads):
            start = 0
            for index, (height, width) in enumerate(SIZES):
                level = values[b, start : start + height * width, head].view(height, width, -1)
                start += height * width
                for q in range(queries):
                    for p in range(points):
                        x, y = locations[b, q, head, index, p].tolist()
                        share = weights[b, q, head, index, p]
                        out[b, q, head] += share * slow_read(level, x, y)
    return out.flatten(2)


def test_samples_equal_those_of_a_loop_over_every_point():
    values, locations, weights = inputs()
    actual = sample_levels_by_grid(values, SIZES, locations, weights)
    assert actual.shape == (2, 4, 6)
    assert_close(actual, slow_sample(values, locations, weights), 1e-12)


def test_gradients_of_values_locations_and_weights_equal_finite_differences():
    values, locations, weights = (x.requires_grad_() for x in inputs(1, 2, 2, 2, 2))

    def run(values: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return sample_levels_by_grid(values, SIZES, locations, weights)

    assert torch.autograd.gradcheck(run, (values, locations, weights))


def test_points_far_outside_read_nothing():
    values, locations, weights = inputs()
    assert not sample_levels_by_grid(values, SIZES, locations + 9, weights).any()


def spread(module: MSDeformAttn) -> MSDeformAttn:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module.double()


def slow_module(module: MSDeformAttn, queries: Tensor, pixels: Tensor, reference: Tensor):
    """The module's formula, query by query."""
    heads, levels, points = module.points_shape
    values = module.value_proj(pixels).unflatten(2, (heads, -1))
    locations = torch.empty(*queries.shape[:2], heads, levels, points, 2, dtype=queries.dtype)
    weights = torch.empty(locations.shape[:-1], dtype=queries.dtype)
    for b in range(len(queries)):
        for q in range(queries.shape[1]):
            offsets = module.sampling_offsets(queries[b, q]).view(heads, levels, points, 2)
            scores = module.attention_weights(queries[b, q]).view(heads, levels * points)
            weights[b, q] = scores.softmax(1).view(heads, levels, points)
            for level, (height, width) in enumerate(SIZES):
                for axis, extent in enumerate((width, height)):
                    positions = reference[q, axis] + offsets[:, level, :, axis] / extent
                    locations[b, q, :, level, :, axis] = positions
    return module.output_proj(slow_sample(values, locations, weights))


def test_module_equals_its_formula_query_by_query():
    module = spread(MSDeformAttn(4, num_heads=2, num_levels=3, num_points=2))
    queries = torch.randn(2, 3, 4, dtype=torch.float64)
    pixels = torch.randn(2, PIXELS, 4, dtype=torch.float64)
    reference = torch.rand(3, 2, dtype=torch.float64)
    with torch.no_grad():
        expected = slow_module(module, queries, pixels, reference)
        assert_close(module(queries, pixels, reference, SIZES), expected, 1e-12)


def test_every_parameter_gets_a_gradient():
    module = spread(MSDeformAttn(4, num_heads=2, num_levels=3, num_points=2))
    pixels = torch.randn(2, PIXELS, 4, dtype=torch.float64)
    out = module(pixels, pixels, torch.rand(PIXELS, 2, dtype=torch.float64), SIZES)
    (out * torch.randn_like(out)).sum().backward()
    for name, parameter in module.named_parameters():
        # a constant added to all scores of a softmax changes nothing, so single entries may be 0
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-6, name


def test_at_first_each_head_looks_in_its_own_direction_and_all_points_count_the_same():
    module = MSDeformAttn(64, num_heads=8, num_levels=3, num_points=4)
    offsets = module.sampling_offsets.bias.detach().view(8, 3, 4, 2)
    border = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    for head, direction in enumerate(border):
        for point in range(4):
            expected = (point + 1) * torch.tensor(direction, dtype=torch.float32)
            assert_close(offsets[head, :, point], expected.expand(3, 2))
    for parameter in (module.sampling_offsets.weight, module.attention_weights.weight):
        assert not parameter.any()
    for projection in (module.value_proj, module.output_proj):
        assert not projection.bias.any()
        bound = math.sqrt(6 / 128)
        assert 0.95 * bound < projection.weight.abs().max().item() <= bound


def test_positions_are_computed_in_float32_under_autocast(monkeypatch):
    seen = []

    def record(values, sizes, locations, weights):
        seen.extend(x.dtype for x in (values, locations, weights))
        return sample_levels_by_grid(values, sizes, locations, weights)

    monkeypatch.setattr(ms_deform_attn, "sample_levels", record)
    module = MSDeformAttn(8, num_heads=2)
    pixels = torch.randn(1, PIXELS, 8)
    with torch.autocast("cpu", torch.bfloat16):
        module(pixels, pixels, torch.rand(PIXELS, 2), SIZES)
    assert seen == [torch.float32] * 3


def test_heads_must_divide_the_channels():
    with pytest.raises(ValueError, match=r"^`dim` must be a multiple of 8 heads, but is 12\.$"):
        MSDeformAttn(12)


# ------------------------------------------------------- the optional compiled operator


def test_without_the_package_pytorch_does_it(monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGE, None)  # importing it fails
    assert not has_compiled_operator("cpu")
    values, locations, weights = inputs()
    expected = sample_levels_by_grid(values, SIZES, locations, weights)
    assert torch.equal(sample_levels(values, SIZES, locations, weights), expected)


def fake_package(monkeypatch, operator) -> None:
    module = ModuleType(PACKAGE)
    module.ms_deform_attn = operator
    monkeypatch.setitem(sys.modules, PACKAGE, module)


def by_grid(values, sizes, starts, locations, weights):
    sizes = [tuple(size) for size in sizes.tolist()]
    assert starts.tolist() == [sum(h * w for h, w in sizes[:i]) for i in range(len(sizes))]
    return sample_levels_by_grid(values, sizes, locations, weights)


def test_a_package_that_works_is_used_with_the_extents_it_expects(monkeypatch):
    calls = []

    def operator(*args):
        calls.append(args)
        return by_grid(*args)

    fake_package(monkeypatch, operator)
    values, locations, weights = inputs()
    actual = sample_levels(values, SIZES, locations, weights)
    assert_close(actual, sample_levels_by_grid(values, SIZES, locations, weights), 1e-12)
    assert len(calls) == 2  # the trial and the real one


@pytest.mark.parametrize("kind", ["fails", "is wrong"])
def test_a_package_that_does_not_work_here_is_not_used(monkeypatch, caplog, kind):
    def operator(values, *args):
        if kind == "fails":
            raise RuntimeError("not compiled with GPU support\nmore")
        return torch.zeros(1, 1, 1)

    fake_package(monkeypatch, operator)
    assert not has_compiled_operator("cpu")
    reason = {"fails": "not compiled with GPU support", "is wrong": "it reads a wrong value"}[kind]
    assert [r.getMessage() for r in caplog.records] == [
        f"torch_ms_deform_attn is not used on cpu: {reason}"
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_operator_equals_pytorch(dtype):
    pytest.importorskip(PACKAGE, reason="the optional package torch-ms-deform-attn is absent")
    if not has_compiled_operator("cpu"):
        pytest.skip("torch-ms-deform-attn is installed but was built without CPU support")
    leaves = [x.to(dtype).requires_grad_() for x in inputs(2, 7, 2, 4, 3)]
    values, locations, weights = leaves
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    reason = "gradients of positions are differences of values in float32, times the extent"
    results = []
    for run in (sample_levels, sample_levels_by_grid):
        out = run(values, SIZES, locations, weights)
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected, tolerance, reason=reason)


def test_it_does_not_tear_a_compiled_model_in_two():
    module = MSDeformAttn(8, num_heads=2)
    pixels, reference = torch.randn(1, PIXELS, 8), torch.rand(PIXELS, 2)
    expected = module(pixels, pixels, reference, SIZES)
    whole = torch.compile(module, backend="eager", fullgraph=True)
    assert_close(whole(pixels, pixels, reference, SIZES), expected)
