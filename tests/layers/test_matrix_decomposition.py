"""Non-negative matrix factorisation and the Hamburger around it."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from offseg_d2.layers import NMF2D, Hamburger
from offseg_d2.layers.matrix_decomposition import factorise


def non_negative_map(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def nmf_by_loops(pixels, bases, steps):
    """One image, plain Python numbers: Z as [d][n], D as [d][r]; returns D C^T as [d][n]."""
    dims, count, rank = range(len(pixels)), range(len(pixels[0])), range(len(bases[0]))

    def similarity(n, r):
        return sum(pixels[d][n] * bases[d][r] for d in dims)

    def updated_coefficients():
        rows = []
        for n in count:
            row = []
            for r in rank:
                overlap = [sum(bases[d][s] * bases[d][r] for d in dims) for s in rank]
                denominator = sum(coefficients[n][s] * overlap[s] for s in rank) + 1e-6
                row.append(coefficients[n][r] * similarity(n, r) / denominator)
            rows.append(row)
        return rows

    def updated_bases():
        rows = []
        for d in dims:
            row = []
            for r in rank:
                numerator = sum(pixels[d][n] * coefficients[n][r] for n in count)
                overlap = [
                    sum(coefficients[n][s] * coefficients[n][r] for n in count) for s in rank
                ]
                denominator = sum(bases[d][s] * overlap[s] for s in rank) + 1e-6
                row.append(bases[d][r] * numerator / denominator)
            rows.append(row)
        return rows

    coefficients = []
    for n in count:
        weights = [math.exp(similarity(n, r)) for r in rank]
        coefficients.append([w / sum(weights) for w in weights])
    for _ in range(steps):
        coefficients = updated_coefficients()
        bases = updated_bases()
    coefficients = updated_coefficients()
    return [[sum(bases[d][r] * coefficients[n][r] for r in rank) for n in count] for d in dims]


@pytest.mark.parametrize(("training", "steps"), [(True, 6), (False, 7)])
def test_nmf_equals_loops_over_plain_numbers(training, steps):
    features = non_negative_map(2, 5, 2, 3).double()
    nmf = NMF2D(5, rank=3).train(training)
    nmf.injected_bases = F.normalize(non_negative_map(2, 5, 3, seed=1).double(), dim=1)
    result = nmf(features)
    for image, bases, rebuilt in zip(features, nmf.injected_bases, result, strict=True):
        expected = nmf_by_loops(image.flatten(1).tolist(), bases.tolist(), steps)
        torch.testing.assert_close(rebuilt.flatten(1), torch.tensor(expected).double())


def test_each_step_brings_the_factors_closer_to_the_map():
    pixels = non_negative_map(1, 12, 40).double()
    bases = F.normalize(non_negative_map(1, 12, 4, seed=1).double(), dim=1)
    errors = []
    for steps in range(6):
        found, coefficients = factorise(pixels, bases, steps)
        errors.append(float((found @ coefficients.mT - pixels).norm()))
    assert all(later < earlier for earlier, later in pairwise(errors))


def test_map_of_low_rank_is_rebuilt():
    features = (non_negative_map(1, 8, 2) @ non_negative_map(1, 2, 30, seed=1)).double()
    nmf = NMF2D(8, rank=2, eval_steps=500).eval()
    error = nmf(features.view(1, 8, 5, 6)).flatten(2) - features
    assert error.norm() < 0.01 * features.norm()


def test_gradients_flow_through_all_steps():
    features = non_negative_map(1, 3, 2, 2).double().requires_grad_()
    nmf = NMF2D(3, rank=2, train_steps=2).train()
    nmf.injected_bases = F.normalize(non_negative_map(1, 3, 2, seed=1).double(), dim=1)
    assert torch.autograd.gradcheck(nmf, features)


def test_evaluation_repeats_to_the_bit_and_leaves_the_random_numbers_alone():
    features = non_negative_map(2, 32, 6, 5)
    nmf = NMF2D(32).eval()
    state = torch.get_rng_state()
    first = nmf(features)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    assert torch.equal(nmf(features), first)


def test_evaluation_of_an_image_does_not_depend_on_its_batch():
    features = non_negative_map(3, 32, 6, 5)
    nmf = NMF2D(32).eval()
    together = nmf(features)
    for i in range(3):
        torch.testing.assert_close(nmf(features[i : i + 1])[0], together[i])


def test_training_and_random_bases_follow_the_random_number_generator():
    features = non_negative_map(1, 32, 6, 5)
    for nmf in (NMF2D(32).train(), NMF2D(32, random_bases=True).eval()):
        torch.manual_seed(1)
        first, second = nmf(features), nmf(features)
        torch.manual_seed(1)
        assert torch.equal(nmf(features), first)
        assert not torch.equal(first, second)


def test_drawn_bases_are_of_unit_length():
    nmf = NMF2D(32)
    assert nmf.train().draw_bases(3, torch.device("cpu")).shape == (3, 32, 16)
    bases = nmf.eval().draw_bases(3, torch.device("cpu"))
    assert bases.shape == (1, 32, 16)
    torch.testing.assert_close(bases.norm(dim=1), torch.ones(1, 16))


def test_factorisation_runs_in_float32_under_autocast():
    features = non_negative_map(1, 32, 6, 5).bfloat16()
    nmf = NMF2D(32).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = nmf(features)
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, nmf(features.float()).bfloat16())


def test_injected_bases_are_not_saved():
    nmf = NMF2D(4, rank=2)
    nmf.injected_bases = torch.rand(1, 4, 2)
    assert not nmf.state_dict()


def test_hamburger_adds_the_decomposition_to_its_input():
    burger = Hamburger(32, NMF2D(32)).eval()
    features = torch.randn(2, 32, 4, 5)
    seen = {}
    burger.decomposition.register_forward_pre_hook(lambda _, x: seen.update(given=x[0]))
    result = burger(features)
    assert seen["given"].min() == 0 and result.min() == 0
    torch.nn.init.zeros_(burger.ham_out.norm.weight)
    torch.testing.assert_close(burger(features), features.relu())


def test_gradients_reach_every_parameter_of_the_hamburger():
    burger = Hamburger(32, NMF2D(32)).train()
    burger(torch.randn(2, 32, 4, 5)).square().sum().backward()
    for name, parameter in burger.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
