"""Class weights, hard pixels and dice against slow references, and their keys."""

import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from torch import Tensor, nn

from offseg_d2.config import ConfigError
from offseg_d2.layers import map_resized_bands, resized_bands
from offseg_d2.modeling import PerPixelHead
from offseg_d2.modeling.losses import dice_loss, keep_hard_pixels, loss_options
from tests.common import SMALL_OFFSEG, assert_close, offseg_config, random_batch

IGNORED = 255
SIZES = [((16, 24), (16, 24)), ((16, 24), (13, 22)), ((4, 6), (4, 6)), ((17, 7), (17, 7))]


@pytest.fixture(autouse=True, params=[40, 10**6], ids=["narrow", "whole"])
def bands(request, monkeypatch):
    """Bands of a row and of the whole image."""
    monkeypatch.setitem(resized_bands._BAND_VALUES, "cpu", request.param)


def case(targets_size, classes: int = 5) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    logits = (3 * torch.randn(2, classes, 4, 6, dtype=torch.float64)).requires_grad_()
    targets = torch.randint(0, classes, (2, *targets_size))
    targets[torch.rand(targets.shape) < 0.2] = IGNORED
    return logits, targets


def resize(logits: Tensor, targets: Tensor, size) -> Tensor:
    height, width = targets.shape[-2:]
    resized = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    return resized[..., :height, :width]


def slow_dice(scores: Tensor, targets: Tensor) -> Tensor:
    """Class by class and pixel by pixel, as the formula has it."""
    probabilities, losses = scores.softmax(1), []
    for k in range(scores.shape[1]):
        inside = [(b, y, x) for b, y, x in (targets != IGNORED).nonzero().tolist()]
        labelled = sum(int(targets[i]) == k for i in inside)
        if labelled:
            predicted = sum(probabilities[b, k, y, x] for b, y, x in inside)
            common = sum(
                probabilities[b, k, y, x] for b, y, x in inside if int(targets[b, y, x]) == k
            )
            losses.append(1 - (2 * common + 1) / (predicted + labelled + 1))
    return torch.stack(losses).mean()


@pytest.mark.parametrize(("size", "targets_size"), SIZES)
def test_dice_and_its_gradient_equal_the_slow_ones(size, targets_size):
    logits, targets = case(targets_size)
    targets[targets == 3] = 1  # a class that no pixel has
    expected = slow_dice(resize(logits, targets, size), targets)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    loss = dice_loss(logits, targets, size, ignore_index=IGNORED)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert_close(loss, expected, 1e-10)
    assert_close(gradient, expected_gradient, 1e-10)


def test_dice_by_hand():
    logits = torch.tensor([[[[0.0, math.log(3.0), 9.0]], [[0.0, 0.0, 0.0]]]])
    targets = torch.tensor([[[1, 0, IGNORED]]])
    # p_1 is 1/2 at the first pixel and 1/4 at the second
    first = (2 * 0.75 + 1) / (0.5 + 0.75 + 1 + 1)
    second = (2 * 0.5 + 1) / (0.5 + 0.25 + 1 + 1)
    loss = dice_loss(logits, targets, (1, 3), ignore_index=IGNORED)
    assert loss.item() == pytest.approx(1 - (first + second) / 2, rel=1e-6)


def test_dice_of_nothing_is_zero_with_a_gradient():
    logits, targets = case((4, 6))
    loss = dice_loss(logits, targets.fill_(IGNORED), (4, 6), ignore_index=IGNORED)
    loss.backward()
    assert loss.item() == 0 and logits.grad.eq(0).all()


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
@pytest.mark.parametrize(("size", "targets_size"), SIZES)
def test_pixels_of_highest_loss_are_kept(size, targets_size, share):
    logits, targets = case(targets_size)
    weight = torch.tensor([1.0, 2.0, 0.5, 1.0, 1.0], dtype=torch.float64)
    kept = keep_hard_pixels(logits, targets, size, share=share, ignore_index=IGNORED, weight=weight)
    scores = resize(logits, targets, size)
    losses = F.cross_entropy(scores, targets, weight, ignore_index=IGNORED, reduction="none")
    labelled, is_kept = targets != IGNORED, kept != IGNORED
    number = math.ceil(share * int(labelled.sum()))
    assert torch.equal(kept[is_kept], targets[is_kept]) and is_kept.sum() >= number
    lowest = losses[is_kept].min()
    assert (losses[labelled & ~is_kept] <= lowest).all()
    assert (losses[is_kept] > lowest + 1e-9).sum() < number  # more only where losses tie


def test_no_labels_have_no_hard_pixels():
    logits, targets = case((4, 6))
    targets.fill_(IGNORED)
    kept = keep_hard_pixels(logits, targets, (4, 6), share=0.5, ignore_index=IGNORED)
    assert torch.equal(kept, targets)


def test_bands_keep_no_map_of_all_classes_for_the_backward_pass():
    logits, targets = case((32, 48), classes=7)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        dice_loss(logits, targets, (32, 48), ignore_index=IGNORED)
    # the largest map of all classes has 7 x 32 x 48 values
    assert max(kept) <= max(32 * 48, 7 * 32 * 48 // 7)


def test_bands_cover_every_row_once():
    logits, targets = case((16, 24))
    sizes = [band.tolist() for band in map_resized_bands(
        lambda scores, labels: torch.tensor([scores.shape[1], labels.shape[0]]),
        logits, targets, (16, 24),
    )]  # fmt: skip
    assert all(a == b for a, b in sizes) and sum(a for a, _ in sizes) == 32


# ---------------------------------------------------------------------- the head


class Levels(nn.Module):
    def forward(self, features):
        return list(features.values())


def make_head(**kwargs) -> PerPixelHead:
    return PerPixelHead(pixel_decoder=Levels(), classifier=nn.Identity(), **kwargs)


def test_head_weighs_classes_and_divides_by_all_pixels():
    logits = torch.tensor([[[[0.0, math.log(3.0), 9.0]], [[0.0, 0.0, -9.0]]]])
    targets = torch.tensor([[[1, 0, 255]]])
    losses = make_head(class_weights=[5.0, 2.0]).losses(logits, targets)
    expected = (2 * math.log(2.0) + 5 * math.log(4.0 / 3.0)) / 3
    assert losses["loss_sem_seg"].item() == pytest.approx(expected, rel=1e-6)
    assert "class_weights" not in make_head(class_weights=[5.0, 2.0]).state_dict()


def test_head_divides_the_hard_pixels_by_their_number():
    logits = torch.tensor([[[[0.0, math.log(3.0), 9.0]], [[0.0, 0.0, -9.0]]]])
    targets = torch.tensor([[[1, 0, 255]]])
    losses = make_head(ohem_share=0.5, loss_weight=2.0).losses(logits, targets)
    assert losses["loss_sem_seg"].item() == pytest.approx(2 * math.log(2.0), rel=1e-6)


def test_head_adds_dice_under_its_own_name():
    logits, targets = case((16, 24))
    losses = make_head(dice_weight=0.5).losses(logits, targets, (16, 24))
    plain = make_head().losses(logits, targets, (16, 24))
    assert list(losses) == ["loss_sem_seg", "loss_dice"]
    assert torch.equal(losses["loss_sem_seg"], plain["loss_sem_seg"])
    assert_close(
        losses["loss_dice"], 0.5 * dice_loss(logits, targets, (16, 24), ignore_index=IGNORED)
    )


def test_keys_reach_the_loss_of_a_model():
    options = ("CLASS_WEIGHTS", [1, 2, 0.5, 1, 1], "OHEM_SHARE", 0.5, "DICE_WEIGHT", 1.0)
    named = [f"MODEL.SEM_SEG_HEAD.LOSS.{x}" if i % 2 == 0 else x for i, x in enumerate(options)]
    model = build_model(offseg_config(*SMALL_OFFSEG, *named)).train()
    head = model.sem_seg_head
    assert head.class_weights.tolist() == [1, 2, 0.5, 1, 1]
    assert (head.ohem_share, head.dice_weight) == (0.5, 1.0)
    losses = model(random_batch([(64, 64), (64, 64)]))
    assert list(losses) == ["loss_sem_seg", "loss_dice"]
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in head.classifier.parameters())


def test_balanced_weights_must_become_numbers_before_the_first_loss():
    head = make_head(class_weights="balanced")
    with pytest.raises(ValueError, match="must be numbers before the first loss"):
        head.losses(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("CLASS_WEIGHTS", [1.0, 2.0]),
        ("CLASS_WEIGHTS", [1.0, 2.0, 3.0, -1.0, 1.0]),
        ("CLASS_WEIGHTS", [0, 0, 0, 0, 0]),
        ("CLASS_WEIGHTS", ["a", 1, 1, 1, 1]),
        ("CLASS_WEIGHTS", "ballanced"),
        ("CLASS_WEIGHTS", 3),
        ("OHEM_SHARE", 0.0),
        ("OHEM_SHARE", 1.5),
        ("DICE_WEIGHT", -1.0),
        ("DICE_WEIGHT", float("nan")),
    ],
)
def test_impossible_values_are_refused_naming_the_key(key, value):
    cfg = offseg_config(*SMALL_OFFSEG, f"MODEL.SEM_SEG_HEAD.LOSS.{key}", value)
    with pytest.raises(ConfigError, match=rf"^`MODEL\.SEM_SEG_HEAD\.LOSS\.{key}` must be "):
        loss_options(cfg)


@pytest.mark.parametrize("model", ["mask2former_offseg_t", "offseg_t"])
def test_heads_with_losses_of_their_own_refuse_the_keys(model):
    opts = ["MODEL.SEM_SEG_HEAD.LOSS.DICE_WEIGHT", 1.0]
    if model == "offseg_t":
        opts += ["MODEL.SEM_SEG_HEAD.NAME", "HostHead"]
    with pytest.raises(ConfigError, match=r"LOSS\.DICE_WEIGHT` must be 0\.0 for the head"):
        build_model(offseg_config(*opts, model=model))
