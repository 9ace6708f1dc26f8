"""The learning-rate schedule against values of the authors' runs and against its own rules."""

import pytest
import torch

from offseg_d2.solver import WarmupPolyLR, linear_warmup_factor, poly_factor, warmup_poly_factor

# Learning rates of the authors' runs: base 6e-5, warm-up 1500, linear decay.
RATES_160K = {
    0: 6e-11,
    1: 4.008664442961975e-08,
    10: 4.0032644429619737e-07,
    750: 3.002004332221492e-05,
    1498: 5.995997335557046e-05,
    1499: 6e-5,
    1500: 6e-5,
    1501: 5.999962144871585e-05,
    5000: 5.8675070505176604e-05,
    79999: 3.028410273882096e-05,
    120000: 1.5141672818125105e-05,
    159998: 3.7855128423511476e-10,
    159999: 0.0,
}
# The same with the decay ending at 80 000 of 160 000 iterations.
RATES_END_80K = {
    1500: 6e-5,
    1501: 5.999923565905306e-05,
    20000: 4.5859692480156295e-05,
    79998: 7.643409470184354e-10,
    79999: 0.0,
    80000: 0.0,
    159999: 0.0,
}
# Mask2Former: base 1e-4, no warm-up, exponent 0.9.
RATES_POWER = {
    0: 1e-4,
    1: 9.999943749630858e-05,
    20000: 8.867616416758316e-05,
    120000: 2.8716974264323826e-05,
    159998: 2.0715454132840083e-09,
    159999: 0.0,
}


@pytest.mark.parametrize(
    ("rates", "base_lr", "warmup_iters", "end_iter", "power"),
    [
        (RATES_160K, 6e-5, 1500, 160000, 1.0),
        (RATES_END_80K, 6e-5, 1500, 80000, 1.0),
        (RATES_POWER, 1e-4, 0, 160000, 0.9),
    ],
)
def test_factors_equal_the_authors_learning_rates(rates, base_lr, warmup_iters, end_iter, power):
    for iteration, rate in rates.items():
        factor = warmup_poly_factor(
            iteration,
            warmup_iters=warmup_iters,
            warmup_factor=1e-6,
            end_iter=end_iter,
            power=power,
        )
        # the authors' library multiplies step by step, which accumulates rounding
        assert base_lr * factor == pytest.approx(rate, rel=1e-7, abs=1e-16), iteration


def test_factor_is_one_where_the_parts_meet_and_exactly_zero_at_the_end():
    assert linear_warmup_factor(0, 10, 0.25) == 0.25
    assert linear_warmup_factor(9, 10, 0.25) == 1.0
    assert poly_factor(10, 10, 20, 1.0) == 1.0
    assert poly_factor(19, 10, 20, 1.0) == 0.0
    assert poly_factor(1000, 10, 20, 0.9) == 0.0


@pytest.mark.parametrize("warmup_iters", [0, 1, 7, 8])
def test_schedule_is_finite_for_every_iteration_of_a_short_run(warmup_iters):
    factors = [
        warmup_poly_factor(t, warmup_iters=warmup_iters, warmup_factor=0.1, end_iter=8, power=1.0)
        for t in range(8)
    ]
    assert all(0.0 <= factor <= 1.0 for factor in factors)
    assert max(factors) == 1.0


def make_scheduler(**kwargs) -> WarmupPolyLR:
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD(
        [{"params": [weights[0]], "lr": 1.0}, {"params": [weights[1]], "lr": 10.0}]
    )
    settings = {"max_iter": 20, "warmup_iters": 5, "warmup_factor": 0.2, "power": 1.0}
    return WarmupPolyLR(optimizer, **{**settings, **kwargs})


def advance(scheduler: WarmupPolyLR, steps: int) -> list[list[float]]:
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in scheduler.optimizer.param_groups])
        scheduler.optimizer.step()
        scheduler.step()
    return rates


def test_scheduler_multiplies_the_base_rate_of_each_group():
    for iteration, (first, second) in enumerate(advance(make_scheduler(), 20)):
        factor = warmup_poly_factor(
            iteration, warmup_iters=5, warmup_factor=0.2, end_iter=20, power=1.0
        )
        assert first == factor
        assert second == 10.0 * factor


def test_scheduler_continues_exactly_from_its_state():
    whole = advance(make_scheduler(), 20)
    first = make_scheduler()
    advance(first, 8)
    second = make_scheduler()
    second.load_state_dict(first.state_dict())
    assert advance(second, 12) == whole[8:]


def test_resumed_scheduler_follows_a_new_length_of_the_run():
    first = make_scheduler()
    advance(first, 8)
    longer = make_scheduler(max_iter=40)
    longer.load_state_dict(first.state_dict())
    assert advance(longer, 32) == advance(make_scheduler(max_iter=40), 40)[8:]


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"warmup_iters": 21}, "SOLVER.WARMUP_ITERS"),
        ({"warmup_iters": -1}, "SOLVER.WARMUP_ITERS"),
        ({"max_iter": 0}, "SOLVER.MAX_ITER"),
        ({"end_iter": 4}, "SOLVER.POLY_END_ITER"),
        ({"warmup_factor": 1.5}, "SOLVER.WARMUP_FACTOR"),
        ({"power": 0.0}, "SOLVER.POLY_LR_POWER"),
    ],
)
def test_impossible_schedule_is_refused_naming_the_key(wrong, key):
    with pytest.raises(ValueError, match=f"`{key}` must be"):
        make_scheduler(**wrong)
