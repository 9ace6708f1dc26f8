"""The losses against loops over numbers, and on batches without masks."""

import json
import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed
from torch import Tensor

from offseg_d2.config import load_config
from offseg_d2.modeling.criterion import SetCriterion, mean_number_of_masks
from tests.common import assert_close
from tests.modeling import slow_criterion
from tests.modeling.test_matcher import random_targets

CLASSES, QUERIES, POINTS = 3, 5, 8


def make_criterion(**changes) -> SetCriterion:
    return SetCriterion(**{"num_classes": CLASSES, "num_points": POINTS, **changes})


def random_outputs(images: int = 2, layers: int = 1, dtype=torch.float64) -> dict:
    def prediction():
        return {
            "pred_logits": torch.randn(images, QUERIES, CLASSES + 1, dtype=dtype),
            "pred_masks": torch.randn(images, QUERIES, 4, 6, dtype=dtype),
        }

    return {**prediction(), "aux_outputs": [prediction() for _ in range(layers - 1)]}


def record_draws() -> tuple[list[Tensor], object]:
    drawn: list[Tensor] = []

    def draw(shape, device):
        drawn.append(torch.rand(shape, device=device))
        return drawn[-1]

    return drawn, draw


@pytest.mark.parametrize("numbers", [(2, 3), (0, 2), (1, 0), (0, 0)])
def test_losses_equal_those_of_loops_over_numbers(numbers):
    drawn, draw = record_draws()
    outputs, targets = random_outputs(layers=3), random_targets(*numbers)
    losses = make_criterion(draw=draw, no_object_weight=0.3)(outputs, targets)
    assert set(losses) == {
        f"loss_{name}{suffix}" for name in ("ce", "mask", "dice") for suffix in ("", "_0", "_1")
    }
    draws = iter([d.tolist() for d in drawn])
    for suffix, prediction in {"_0": 0, "_1": 1, "": None}.items():
        layer = outputs if prediction is None else outputs["aux_outputs"][prediction]
        batch = [
            (
                layer["pred_logits"][i].tolist(),
                layer["pred_masks"][i].tolist(),
                targets[i]["labels"].tolist(),
                targets[i]["masks"].tolist(),
            )
            for i in range(2)
        ]
        expected = slow_criterion.losses(batch, 0.3, POINTS, 0.75, draws)
        for name, value in zip(("ce", "mask", "dice"), expected, strict=True):
            assert float(losses[f"loss_{name}{suffix}"]) == pytest.approx(value, rel=1e-6), name
    assert next(draws, None) is None  # nothing else was drawn


def test_points_are_drawn_in_the_documented_order_and_number():
    drawn, draw = record_draws()
    criterion = make_criterion(draw=draw, num_points=100)
    criterion(random_outputs(layers=2), random_targets(2, 3))
    one_prediction = [(1, 100, 2), (1, 100, 2), (5, 300, 2), (5, 25, 2)]
    assert [tuple(d.shape) for d in drawn] == 2 * one_prediction


def test_losses_are_a_function_of_torchs_generator():
    outputs, targets = random_outputs(), random_targets(2, 3)

    def losses(seed):
        torch.manual_seed(seed)
        return [float(loss) for loss in make_criterion()(outputs, targets).values()]

    assert losses(1) == losses(1) != losses(2)


def test_weights_scale_their_own_loss():
    outputs, targets = random_outputs(), random_targets(2, 3)
    keys = {"class_weight": 4.0, "mask_weight": 10.0, "dice_weight": 10.0}  # the matching stays

    def losses(**changes):
        torch.manual_seed(0)
        return make_criterion(**changes)(outputs, targets)

    once, twice = losses(), losses(**keys)
    for name, loss in once.items():
        assert_close(twice[name], 2 * loss)


def test_bool_and_float_masks_give_the_same():
    outputs, targets = random_outputs(), random_targets(2, 3)
    as_bool = [{**t, "masks": t["masks"].bool()} for t in targets]
    results = []
    for masks in (targets, as_bool):
        torch.manual_seed(0)
        results.append(make_criterion()(outputs, masks))
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])


def test_masks_of_images_may_differ_in_size():
    outputs, targets = random_outputs(), random_targets(2, 1)
    targets[1]["masks"] = (torch.rand(1, 9, 5) < 0.5).float()
    assert all(loss.isfinite() for loss in make_criterion()(outputs, targets).values())


class Network(torch.nn.Module):
    """Queries and their masks from two parameters each, as a head would."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = torch.nn.Linear(4, CLASSES + 1)
        self.masks = torch.nn.Linear(4, 24)

    def forward(self, features: Tensor) -> dict:
        masks = self.masks(features).unflatten(-1, (4, 6))
        return {"pred_logits": self.classes(features), "pred_masks": masks}


@pytest.mark.parametrize("numbers", [(0, 0), (0, 3)])
def test_images_without_masks_give_a_gradient_to_every_parameter(numbers):
    network = Network()
    losses = make_criterion()(network(torch.randn(2, QUERIES, 4)), random_targets(*numbers))
    if not any(numbers):
        assert losses["loss_mask"] == losses["loss_dice"] == 0
    assert losses["loss_ce"] > 0
    sum(losses.values()).backward()
    for parameter in network.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()
    assert network.classes.weight.grad.any()
    assert bool(network.masks.weight.grad.any()) is any(numbers)


def test_gradients_equal_finite_differences():
    outputs, targets = random_outputs(images=1), random_targets(2)

    def draw(shape, device):  # the same ones at every call
        return torch.linspace(0.05, 0.95, shape[1]).unsqueeze(1).expand(shape)

    criterion = make_criterion(draw=draw, importance_sample_ratio=0.0)

    def total(logits, masks):
        prediction = {"pred_logits": logits, "pred_masks": masks}
        return sum(criterion(prediction, targets).values())

    outputs = {key: outputs[key][:, :3].requires_grad_() for key in ("pred_logits", "pred_masks")}
    inputs = [outputs["pred_logits"], outputs["pred_masks"]]
    assert torch.autograd.gradcheck(total, inputs, fast_mode=True)


def test_losses_are_computed_in_single_precision_under_autocast():
    outputs, targets = random_outputs(dtype=torch.bfloat16), random_targets(2, 3)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = make_criterion()(outputs, targets)
    torch.manual_seed(0)
    rounded = {key: outputs[key].float() for key in ("pred_logits", "pred_masks")}
    expected = make_criterion()(rounded, targets)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert torch.equal(loss, expected[name])


def test_overflown_predictions_give_a_loss_that_is_not_finite_but_no_crash():
    outputs = random_outputs()
    outputs["pred_masks"][0, 1] = float("nan")
    outputs["pred_logits"][1, :] = float("nan")
    losses = make_criterion()(outputs, random_targets(5, 3))
    assert not sum(losses.values()).isfinite()


def test_criterion_has_no_state_for_checkpoints():
    assert make_criterion().state_dict() == {}
    assert make_criterion(no_object_weight=0.1).empty_weight.tolist() == pytest.approx(
        [1.0, 1.0, 1.0, 0.1]
    )


def test_criterion_takes_its_numbers_from_the_configuration():
    keys = {"CLASS_WEIGHT": 1.0, "MASK_WEIGHT": 2.0, "DICE_WEIGHT": 3.0, "NO_OBJECT_WEIGHT": 0.5}
    keys |= {"TRAIN_NUM_POINTS": 7, "OVERSAMPLE_RATIO": 4.0, "IMPORTANCE_SAMPLE_RATIO": 0.5}
    opts = [x for key, value in keys.items() for x in (f"MODEL.MASK_FORMER.{key}", value)]
    criterion = SetCriterion(load_config("", [*opts, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 11]))
    assert criterion.weights == {"ce": 1.0, "mask": 2.0, "dice": 3.0}
    matcher = criterion.matcher
    weights = (matcher.class_weight, matcher.mask_weight, matcher.dice_weight)
    assert (*weights, matcher.num_points) == (1.0, 2.0, 3.0, 7)
    points = (criterion.num_points, criterion.oversample_ratio, criterion.importance_sample_ratio)
    assert points == (7, 4.0, 0.5)
    assert criterion.empty_weight.tolist() == [1.0] * 11 + [0.5]


@pytest.mark.parametrize(
    "key, value",
    [
        ("TRAIN_NUM_POINTS", 0),
        ("OVERSAMPLE_RATIO", 0.5),
        ("IMPORTANCE_SAMPLE_RATIO", 1.5),
        ("NO_OBJECT_WEIGHT", 0.0),
        ("CLASS_WEIGHT", -2.0),
        ("MASK_WEIGHT", -5.0),
        ("DICE_WEIGHT", -0.1),
        ("DICE_WEIGHT", float("nan")),
    ],
)
def test_impossible_numbers_are_refused_naming_the_key(key, value):
    cfg = load_config("", [f"MODEL.MASK_FORMER.{key}", value])
    with pytest.raises(ValueError, match=f"`MODEL.MASK_FORMER.{key}` must be .* is {value}"):
        SetCriterion(cfg)


# ---------------------------------------------------------------- several processes


def test_number_of_masks_counts_empty_images_as_one_and_at_most_a_mask_per_query():
    assert mean_number_of_masks(random_targets(2, 0, 9), num_queries=5) == 2 + 1 + 5
    assert mean_number_of_masks(random_targets(0), num_queries=5) == 1


def losses_of_process(rank: int, folder: Path) -> None:
    """Losses of 4 masks in the first process and of none in the second."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    torch.manual_seed(rank)
    targets, outputs = random_targets(4 if rank == 0 else 0), random_outputs(images=1)

    def losses() -> dict[str, float]:
        torch.manual_seed(rank)
        return {name: float(loss) for name, loss in make_criterion()(outputs, targets).items()}

    report = {"losses": losses(), "num_masks": float(mean_number_of_masks(targets, QUERIES))}
    torch.distributed.destroy_process_group()
    report |= {"alone": losses(), "num_masks_alone": mean_number_of_masks(targets, QUERIES)}
    (folder / f"rank_{rank}.json").write_text(json.dumps(report))


def test_number_of_masks_is_averaged_over_processes(tmp_path):
    # Forked as the workers of a data loader are: nothing has to be imported again.
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=losses_of_process, args=(r, tmp_path)) for r in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0]
    reports = [json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in range(2)]
    assert [report["num_masks"] for report in reports] == [2.5, 2.5]  # of 4 and 1
    assert [report["num_masks_alone"] for report in reports] == [4.0, 1.0]
    for report in reports:
        together, alone = report["losses"], report["alone"]
        assert together["loss_ce"] == pytest.approx(alone["loss_ce"])  # each has its own queries
        for name in ("loss_mask", "loss_dice"):
            assert together[name] == pytest.approx(alone[name] * report["num_masks_alone"] / 2.5)
    assert reports[0]["losses"]["loss_mask"] > 0 == reports[1]["losses"]["loss_mask"]
