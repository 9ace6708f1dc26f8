"""The head of the per-pixel hosts: order of levels, loss by hand, refused settings."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_sem_seg_head
from torch import nn

from offseg_d2.modeling import OffsetClassifier, PerPixelHead, PlainClassifier
from tests.common import SMALL_OFFSEG, assert_close, offseg_config

SHAPES = {
    f"res{i + 2}": ShapeSpec(channels=c, stride=4 * 2**i) for i, c in enumerate((8, 12, 16, 20))
}


class FirstLevel(nn.Module):
    """A pixel decoder that returns its input levels."""

    def forward(self, features: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        return list(features.values())


def make_head(**kwargs) -> PerPixelHead:
    return PerPixelHead(pixel_decoder=FirstLevel(), classifier=nn.Identity(), **kwargs)


def build_head(*opts: object, shapes=SHAPES) -> PerPixelHead:
    return build_sem_seg_head(offseg_config(*SMALL_OFFSEG, *opts), shapes)


def test_the_finest_map_is_classified():
    features = {"fine": torch.randn(1, 2, 4, 4), "coarse": torch.randn(1, 2, 2, 2)}
    assert make_head()(features) is features["fine"]


def test_loss_is_the_sum_over_labelled_pixels_divided_by_all_pixels():
    # Two classes, three pixels, the last one ignored.
    logits = torch.tensor([[[[0.0, math.log(3.0), 9.0]], [[0.0, 0.0, -9.0]]]])
    targets = torch.tensor([[[1, 0, 255]]])
    # -log 1/2 and -log 3/4, over three pixels
    expected = (math.log(2.0) + math.log(4.0 / 3.0)) / 3
    losses = make_head().losses(logits, targets)
    assert list(losses) == ["loss_sem_seg"] and losses["loss_sem_seg"].shape == ()
    assert losses["loss_sem_seg"].item() == pytest.approx(expected, rel=1e-6)


def test_loss_weight_multiplies_and_ignore_value_is_the_given_one():
    logits, targets = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    plain = make_head().losses(logits, targets)["loss_sem_seg"]
    assert_close(make_head(loss_weight=0.4).losses(logits, targets)["loss_sem_seg"], 0.4 * plain)
    targets[:, :2] = 2
    without = targets.masked_fill(targets == 2, 255)
    other = make_head(ignore_value=2).losses(logits, targets)["loss_sem_seg"]
    assert_close(other, make_head().losses(logits, without)["loss_sem_seg"])


def test_ignored_pixels_give_no_loss_and_no_gradient():
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    targets = torch.tensor([[[255, 1], [255, 255]]])
    make_head().losses(logits, targets)["loss_sem_seg"].backward()
    assert logits.grad[0, :, 0, 1].abs().min() > 0
    assert logits.grad[0, :, 0, 0].eq(0).all() and logits.grad[0, :, 1].eq(0).all()


def test_a_batch_without_labels_has_loss_zero_not_nan():
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = make_head().losses(logits, torch.full((1, 2, 2), 255))["loss_sem_seg"]
    loss.backward()
    assert loss.item() == 0 and logits.grad.eq(0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loss_is_computed_in_float32_at_least(dtype):
    logits = (30 * torch.randn(1, 4, 64, 64)).to(dtype)
    targets = torch.randint(0, 4, (1, 64, 64))
    loss = make_head().losses(logits, targets)["loss_sem_seg"]
    assert loss.dtype == torch.float32
    assert_close(loss, make_head().losses(logits.float(), targets)["loss_sem_seg"])
    double = make_head().losses(logits.double(), targets)["loss_sem_seg"]
    assert double.dtype == torch.float64


def test_levels_are_sorted_from_fine_to_coarse_whatever_their_order_in_the_configuration():
    head = build_head("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res5", "res3", "res2", "res4"])
    assert head.pixel_decoder.in_features == ["res2", "res3", "res4", "res5"]
    assert [block.in_channels for block in head.pixel_decoder.reduce] == [8, 12, 16, 20]


def test_configuration_reaches_classifier_and_loss():
    head = build_head(
        *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 7),
        *("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 99),
        *("MODEL.SEM_SEG_HEAD.LOSS_WEIGHT", 0.5),
        *("MODEL.SEM_SEG_HEAD.FEATURE_OFFSET", False),
    )
    assert isinstance(head.classifier, OffsetClassifier)
    assert head.classifier.class_representations.shape == (7, 64)
    assert head.classifier.offset_learning.feature_offset_proj is None
    assert isinstance(head.classifier.norm, torch.nn.LayerNorm)
    free = build_head("MODEL.SEM_SEG_HEAD.CLASS_NORM", False)
    assert not list(free.classifier.norm.parameters())
    still = build_head("MODEL.SEM_SEG_HEAD.OFFSET_INIT_STD", 0.0).classifier
    assert all(not p.any() for p in still.offset_learning.parameters())
    assert (head.ignore_value, head.loss_weight) == (99, 0.5)
    plain = build_head(
        "MODEL.SEM_SEG_HEAD.CLASSIFIER", "plain", "MODEL.SEM_SEG_HEAD.DROPOUT", 0.3
    ).classifier
    assert isinstance(plain, PlainClassifier) and plain.dropout.p == 0.3


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (
            ("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res2", "p3"]),
            r"^`MODEL.SEM_SEG_HEAD.IN_FEATURES` must be outputs of the backbone "
            r"\(\['res2', 'res3', 'res4', 'res5'\]\), but has \['p3'\]\.$",
        ),
        (
            ("MODEL.SEM_SEG_HEAD.CLASSIFIER", "offsets"),
            r"^`MODEL.SEM_SEG_HEAD.CLASSIFIER` must be one of \['offset', 'plain'\], "
            r"but is 'offsets'\.$",
        ),
    ],
)
def test_unusable_settings_are_refused(opts, message):
    with pytest.raises(ValueError, match=message):
        build_head(*opts)
