"""The training iteration: accumulation, precision, clipping, and stopping on a bad loss."""

import pytest
import torch
from torch import nn

from offseg_d2.engine import TrainLoop, UnusedParameterError, seed_iteration

CPU = torch.device("cpu")


class Linear(nn.Module):
    """Loss = mean over the batch of weight * x."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.dtypes: list[torch.dtype] = []

    def forward(self, batch):
        values = torch.stack([sample["x"] for sample in batch])
        product = values @ self.weight.unsqueeze(1)
        self.dtypes.append(product.dtype)
        return {"loss_a": product.float().mean(), "loss_b": 0.5 * product.float().mean()}


def samples(*values: float) -> list[dict]:
    return [
        {"x": torch.full((4,), value), "file_name": f"{index}.png"}
        for index, value in enumerate(values)
    ]


def make_loop(batches, **kwargs) -> TrainLoop:
    model = Linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return TrainLoop(model, optimizer, batches, device=CPU, **kwargs)


def test_accumulated_batches_equal_one_large_batch():
    small = make_loop([samples(1.0, 2.0), samples(3.0, 4.0)], accumulation_steps=2)
    large = make_loop([samples(1.0, 2.0, 3.0, 4.0)])
    small.train(0, 1)
    large.train(0, 1)
    torch.testing.assert_close(small.model.weight, large.model.weight)
    assert small.storage.latest()["total_loss"] == pytest.approx(
        large.storage.latest()["total_loss"]
    )


def test_metrics_hold_each_loss_their_sum_and_the_data_time():
    loop = make_loop([samples(1.0)])
    loop.train(0, 1)
    latest = {name: value for name, (value, _) in loop.storage.latest().items()}
    assert latest["loss_a"] == pytest.approx(4.0)
    assert latest["loss_b"] == pytest.approx(2.0)
    assert latest["total_loss"] == pytest.approx(6.0)
    assert latest["data_time"] >= 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_bad_loss_stops_before_the_weights_change_naming_iteration_and_files(bad):
    batches = [samples(1.0), samples(1.0, bad)]
    loop = make_loop(batches)
    loop.train(0, 1)
    weight = loop.model.weight.detach().clone()
    loop = make_loop(batches[1:])
    loop.model.weight.data.copy_(weight)
    with pytest.raises(FloatingPointError) as error:
        loop.train(7, 9)
    for part in ("iteration 7", "loss_a", "0.png, 1.png"):
        assert part in str(error.value)
    assert torch.equal(loop.model.weight, weight)


def test_only_the_files_of_the_bad_batch_are_named():
    good, bad = samples(1.0), samples(float("nan"))
    good[0]["file_name"], bad[0]["file_name"] = "good.png", "bad.png"
    loop = make_loop([good, bad], accumulation_steps=2)
    with pytest.raises(FloatingPointError, match=r"bad\.png") as error:
        loop.train(0, 1)
    assert "good.png" not in str(error.value)


def test_gradients_are_clipped_and_their_norm_is_logged():
    loop = make_loop([samples(1.0)], clip_gradients=clip_to_half)
    loop.train(0, 1)
    # gradient 1.5 in each of 4 entries: norm 3, clipped to 0.5, times the rate 0.1
    assert loop.storage.latest()["gradient_norm"][0] == pytest.approx(3.0)
    change = 1.0 - loop.model.weight.detach()
    assert float(change.norm()) == pytest.approx(0.05, rel=1e-4)


def clip_to_half(parameters):
    return nn.utils.clip_grad_norm_(parameters, 0.5)


@pytest.mark.parametrize("clip", [None, clip_to_half])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_gradient_of_a_finite_loss_stops_before_the_weights_change(bad, clip):
    loop = make_loop([samples(1.0, 2.0)], clip_gradients=clip)
    loop.model.weight.register_hook(lambda gradient: gradient * bad)
    with pytest.raises(FloatingPointError) as error:
        loop.train(7, 9)
    assert f"gradient norm of iteration 7 is {bad}" in str(error.value)
    assert "0.png, 1.png" in str(error.value)
    assert loop.model.weight.tolist() == [1.0] * 4


def test_norm_of_unclipped_gradients_is_logged():
    loop = make_loop([samples(1.0)])
    loop.train(0, 1)
    assert loop.storage.latest()["gradient_norm"][0] == pytest.approx(3.0)


def test_finite_losses_of_infinite_sum_name_all_files():
    loop = make_loop([samples(1.0), samples(1.0, 1.0)], accumulation_steps=2)
    loop.model.register_forward_hook(lambda m, args, out: {k: v + 3e38 for k, v in out.items()})
    with pytest.raises(FloatingPointError, match=r"Images of the batch: 0\.png, 0\.png, 1\.png\."):
        loop.train(0, 1)


def test_bfloat16_is_used_inside_the_model_but_not_for_the_weights():
    loop = make_loop([samples(1.0)], amp_dtype=torch.bfloat16)
    loop.train(0, 1)
    assert loop.model.dtypes == [torch.bfloat16]
    assert loop.model.weight.dtype == torch.float32
    assert not loop.grad_scaler.is_enabled()


def test_random_numbers_are_a_function_of_seed_and_iteration():
    def draw(*key) -> list[float]:
        seed_iteration(*key)
        return torch.rand(3).tolist()

    assert draw(1, 2) == draw(1, 2)
    assert len({tuple(draw(*key)) for key in [(1, 2), (0, 2), (1, 3), (2, 1)]}) == 4


def test_accumulating_no_batches_is_refused():
    with pytest.raises(ValueError, match=r"`SOLVER.ACCUMULATION_STEPS` must be at least 1"):
        make_loop([], accumulation_steps=0)


def test_failure_is_not_taken_for_the_end_of_training():
    loop = make_loop([samples(1.0), samples(float("nan"))])
    with pytest.raises(FloatingPointError):
        loop.train(0, 2)
    assert loop.iter < loop.max_iter


class WithUnusedPart(Linear):
    """Has a layer that the loss does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(2, 2)


def test_parameter_without_gradient_is_refused_by_name_before_anything_is_learned():
    model = WithUnusedPart()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loop = TrainLoop(model, optimizer, [samples(1.0)], device=CPU)
    with pytest.raises(UnusedParameterError, match=r"`spare.weight` got no gradient \(2 of 3"):
        loop.train(0, 1)
    assert model.weight.tolist() == [1.0] * 4


def test_frozen_parameter_needs_no_gradient():
    model = WithUnusedPart()
    model.spare.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    TrainLoop(model, optimizer, [samples(1.0)], device=CPU).train(0, 1)
    assert model.weight.tolist() != [1.0] * 4


@pytest.fixture
def reads_late(monkeypatch):
    """As on a device other than the CPU, where reading a value would wait for it."""
    monkeypatch.setattr(TrainLoop, "_reads_at_once", False)


def test_values_that_are_read_late_are_logged_for_their_own_iterations(reads_late):
    loop = make_loop([samples(float(value)) for value in (1, 2, 3, 4)], log_period=3)
    at_once = make_loop([samples(float(value)) for value in (1, 2, 3, 4)])
    loop.train(0, 4)
    at_once.train(0, 4)
    for name in ("total_loss", "loss_a", "gradient_norm"):
        values = loop.storage.history(name).values()
        assert values == at_once.storage.history(name).values()
        assert [iteration for _, iteration in values] == [0, 1, 2, 3]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_loss_stops_the_run_at_the_next_reading_and_names_its_own_files(reads_late, bad):
    batches = [samples(1.0), samples(2.0, bad), *[samples(float(i)) for i in range(9)]]
    batches[1][1]["file_name"] = "bad.png"
    loop = make_loop(batches, log_period=4)
    with pytest.raises(FloatingPointError, match=r"iteration 1 .*no checkpoint.* 0.png, bad.png"):
        loop.train(0, 10)
    assert loop.iter == 3


def test_bad_values_are_found_before_they_are_saved(reads_late):
    loop = make_loop([samples(float("nan")), samples(1.0)], log_period=100)
    loop.iter, loop.start_iter, loop.max_iter = 0, 0, 100
    loop.run_step()
    with pytest.raises(FloatingPointError, match="iteration 0"):
        loop.read_steps()
