"""Tests of all hosts, with the plain and the offset classifier."""

from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from torch import Tensor, nn

from tests.common import (
    SMALL_OFFSEG,
    assert_close,
    build_offseg,
    offseg_config,
    random_batch,
    spread_weights,
)
from tests.modeling.mask_query import SMALL_MASK2FORMER, mask_batch

FIVE = ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 5)
HOSTS: dict[str, tuple[Any, ...]] = {
    "offseg_t": SMALL_OFFSEG,
    "segformer_b0": FIVE,
    "segnext_t": (*FIVE, "MODEL.LIGHT_HAM.CHANNELS", 64),
    # With 32 channels each group of the group norms would be a single one.
    "mask2former_offseg_t": (*SMALL_MASK2FORMER, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 64),
}
MASK_QUERY = "mask2former_offseg_t"
MASK_LOSSES = {
    f"loss_{part}{end}" for part in ("ce", "mask", "dice") for end in ("", "_0", "_1", "_2")
}
each_model = pytest.mark.parametrize(
    ("host", "classifier"), [(host, name) for host in HOSTS for name in ("offset", "plain")]
)


def build(host: str, classifier: str) -> nn.Module:
    """A small model in evaluation mode, its weights off their first values."""
    model = build_offseg(*HOSTS[host], "MODEL.SEM_SEG_HEAD.CLASSIFIER", classifier, model=host)
    # SegNeXt's many products overflow with other weights than its first.
    return model if host == "segnext_t" else spread_weights(model).eval()


def training_batch(host: str, sizes: list[tuple[int, int]]) -> list[dict[str, Any]]:
    return mask_batch(sizes) if host == MASK_QUERY else random_batch(sizes)


def predict(model: nn.Module, batch: list[dict[str, Any]]) -> list[Tensor]:
    with torch.no_grad():
        return [result["sem_seg"] for result in model(batch)]


@each_model
def test_scores_are_finite_and_of_the_size_asked_for_whatever_the_images(host, classifier):
    model = build(host, classifier)
    for size in [(64, 96), (33, 45), (90, 60), (20, 30), (1, 1), (1, 70), (31, 200)]:
        (scores,) = predict(model, random_batch([size]))
        assert scores.shape == (5, *size) and scores.isfinite().all(), size
        assert scores.dtype == torch.float32
        assert host != MASK_QUERY or scores.min() >= 0
    (scores,) = predict(
        model, [sample | {"height": 50, "width": 70} for sample in random_batch([(64, 80)])]
    )
    assert scores.shape == (5, 50, 70) and scores.isfinite().all()


@each_model
def test_evaluation_is_repeatable_and_images_of_a_batch_are_independent(host, classifier):
    model = build(host, classifier).double()
    batch = random_batch([(64, 64), (33, 45), (64, 64), (45, 33)])
    torch.manual_seed(1)
    together = predict(model, batch)
    torch.manual_seed(2)
    for scores, again in zip(together, predict(model, batch), strict=True):
        assert torch.equal(scores, again)
        assert scores.dtype == torch.float64
    for sample, scores in zip(batch[:2], together[:2], strict=True):
        assert_close(scores, predict(model, [sample])[0], 1e-9)


@each_model
def test_training_gives_losses_whose_gradients_reach_every_parameter(host, classifier):
    model = build(host, classifier).train()
    size = (64, 64) if host == MASK_QUERY else (128, 128)  # level 5 has neighbours two apart
    losses = model(training_batch(host, [size, size]))
    assert set(losses) == (MASK_LOSSES if host == MASK_QUERY else {"loss_sem_seg"})
    assert all(loss.shape == () and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # Biases before a norm have no influence in training; the heads have none.
        assert parameter.grad.any() or not name.startswith("sem_seg_head."), name


@pytest.mark.parametrize("host", sorted(HOSTS))
def test_plain_and_offset_models_differ_only_in_the_classifier(host):
    def state(classifier: str) -> dict[str, torch.Size]:
        with torch.device("meta"):
            name = ("MODEL.SEM_SEG_HEAD.CLASSIFIER", classifier, "MODEL.DEVICE", "meta")
            model = build_model(offseg_config(*HOSTS[host], *name, model=host))
        return {key: tuple(value.shape) for key, value in model.state_dict().items()}

    plain, offset = state("plain"), state("offset")
    different = {key for key, _ in plain.items() ^ offset.items()}
    offsets = [f"offset_learning.{kind}_offset_proj.weight" for kind in ("class", "feature")]
    if host == MASK_QUERY:
        below, names = "sem_seg_head.predictor.mask_predictor", offsets
    else:
        below = "sem_seg_head.classifier"
        names = ["class_representations", "norm.weight", "norm.bias", *offsets]
        names += ["predictor.weight", "predictor.bias"]
    assert different == {f"{below}.{name}" for name in names}
    assert not any(name.startswith(("criterion", "pixel_")) for name in offset)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("host", sorted(HOSTS))
def test_autocast_gives_float32_scores_near_those_without(host, dtype):
    model, batch = build(host, "offset"), random_batch([(64, 64)])
    (expected,) = predict(model, batch)
    with torch.autocast("cpu", dtype):
        (actual,) = predict(model, batch)
    assert actual.dtype == torch.float32
    assert (actual - expected).abs().mean() < 0.1 * expected.abs().mean()


@pytest.mark.parametrize("host", sorted(HOSTS))
def test_autocast_trains_with_finite_float32_losses_and_gradients(host):
    model = build(host, "offset").train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(training_batch(host, [(64, 64), (64, 64)]))
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all(), name
