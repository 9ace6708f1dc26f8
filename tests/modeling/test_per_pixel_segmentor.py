"""The per-pixel meta-architecture with OffSeg: Detectron2's contract, sizes, padding, losses."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn

from offseg_d2.modeling import (
    InferenceSettings,
    PerPixelHead,
    PerPixelSegmentor,
)
from tests.common import SMALL_OFFSEG, assert_close, build_offseg, random_batch, spread_weights

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class Halving(Backbone):
    """A backbone whose features are its input, averaged two by two."""

    def __init__(self, divisibility: int = 4) -> None:
        super().__init__()
        self.divisibility = divisibility
        self.norm = nn.BatchNorm2d(3)
        self.seen: list[Tensor] = []

    @property
    def size_divisibility(self) -> int:
        return self.divisibility

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {"res2": ShapeSpec(channels=3, stride=2)}

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        self.seen.append(image)
        return {"res2": F.avg_pool2d(image, 2) + 0 * self.norm(image).sum()}


class Finest(nn.Module):
    def forward(self, features: dict[str, Tensor]) -> list[Tensor]:
        return list(features.values())


def tiny_segmentor(**kwargs) -> PerPixelSegmentor:
    """Logits are the normalised colours."""
    head = PerPixelHead(pixel_decoder=Finest(), classifier=nn.Identity(), ignore_value=255)
    settings = {"backbone": Halving(), "pixel_mean": MEAN, "pixel_std": STD} | kwargs
    return PerPixelSegmentor(sem_seg_head=head, **settings)


def small_offseg(*opts: object) -> nn.Module:
    return spread_weights(build_offseg(*SMALL_OFFSEG, *opts)).eval()


def predict(model: nn.Module, batch: list[dict]) -> list[Tensor]:
    with torch.no_grad():
        return [result["sem_seg"] for result in model(batch)]


# ------------------------------------------------------------------ sizes


def test_image_is_padded_to_a_multiple_of_32_and_the_surplus_cut_off():
    model, (sample,) = small_offseg(), random_batch([(33, 45)])
    (logits,) = predict(model, [sample])
    normalised = model.normalise(sample["image"])[None]
    padded = F.pad(normalised, [0, 19, 0, 31])  # zeros after normalisation: the mean colour
    with torch.no_grad():
        stride_4 = model.sem_seg_head(model.backbone(padded))
    expected = F.interpolate(stride_4, size=(64, 64), mode="bilinear", align_corners=False)
    assert_close(logits, expected[0, :, :33, :45])


def test_multiples_of_32_are_not_padded():
    model, (sample,) = small_offseg(), random_batch([(64, 96)])
    sizes = []
    model.backbone.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[-2:]))
    (logits,) = predict(model, [sample])
    assert sizes == [(64, 96)]
    with torch.no_grad():
        stride_4 = model.sem_seg_head(model.backbone(model.normalise(sample["image"])[None]))
    expected = F.interpolate(stride_4, size=(64, 96), mode="bilinear", align_corners=False)
    assert_close(logits, expected[0])


def test_result_has_the_size_asked_for():
    model, (sample,) = small_offseg(), random_batch([(40, 64)])
    (own,) = predict(model, [sample])
    (asked,) = predict(model, [sample | {"height": 75, "width": 31}])
    expected = F.interpolate(own[None], size=(75, 31), mode="bilinear", align_corners=False)[0]
    assert asked.shape == (5, 75, 31)
    assert_close(asked, expected)


def test_labels_are_not_needed_nor_read_in_evaluation():
    model, (sample,) = small_offseg(), random_batch([(32, 32)])
    (expected,) = predict(model, [sample])
    assert torch.equal(predict(model, [{"image": sample["image"]}])[0], expected)


def test_an_empty_batch_gives_an_empty_list():
    assert predict(tiny_segmentor().eval(), []) == []


# --------------------------------------------------------------- inference


def test_sliding_window_is_the_average_of_its_windows():
    model, (sample,) = small_offseg(), random_batch([(64, 100)])
    model.inference = InferenceSettings("slide", (64, 64), (32, 32))
    (logits,) = predict(model, [sample])
    model.inference = InferenceSettings("whole")
    total, count = torch.zeros(5, 64, 100), torch.zeros(64, 100)
    for left in (0, 32, 36):
        (window,) = predict(model, [{"image": sample["image"][..., left : left + 64]}])
        total[..., left : left + 64] += window
        count[..., left : left + 64] += 1
    assert_close(logits, total / count)


def test_normalisation_is_that_of_imagenet_in_rgb():
    model = build_offseg(*SMALL_OFFSEG)
    image = torch.tensor([0, 128, 255], dtype=torch.uint8).view(3, 1, 1)
    expected = [(v - m) / s for v, m, s in zip((0, 128, 255), MEAN, STD, strict=True)]
    assert_close(model.normalise(image).flatten(), torch.tensor(expected))


# ---------------------------------------------------------------- training


def test_training_pads_to_the_training_size_with_mean_colour_and_ignored_labels():
    model = tiny_segmentor(train_size=(8, 12)).train()
    (sample,) = random_batch([(6, 10)], num_classes=3)
    loss = model([sample])["loss_sem_seg"]
    (seen,) = model.backbone.seen
    normalised = model.normalise(sample["image"])
    assert torch.equal(seen, F.pad(normalised, [0, 2, 0, 2])[None])
    logits = F.avg_pool2d(seen, 2)
    logits = F.interpolate(logits, size=(8, 12), mode="bilinear", align_corners=False)
    log_probabilities = logits.log_softmax(1)[0, :, :6, :10]
    picked = log_probabilities.gather(0, sample["sem_seg"][None])
    assert_close(loss, -picked.sum() / (8 * 12))  # all pixels, the padding too


def test_training_pads_a_batch_of_different_sizes_to_the_largest():
    model = tiny_segmentor().train()
    model(random_batch([(4, 10), (9, 6)], num_classes=3))
    # 9 x 10, then to the backbone's multiple of 4
    assert model.backbone.seen[0].shape == (2, 3, 12, 12)


def test_images_larger_than_the_training_size_are_not_cut():
    model = tiny_segmentor(train_size=(4, 4)).train()
    model(random_batch([(8, 12)], num_classes=3))
    assert model.backbone.seen[0].shape == (1, 3, 8, 12)


@pytest.mark.parametrize("key", [("INPUT.CROP.ENABLED", False), ("INPUT.CROP.TYPE", "relative")])
def test_training_size_is_the_crop_size_if_crops_have_one(key):
    crop = ["INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", [96, 64]]
    assert build_offseg(*SMALL_OFFSEG, *crop).train_size == (96, 64)
    assert build_offseg(*SMALL_OFFSEG, *crop, *key).train_size == (0, 0)


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_batch_norms_keep_their_statistics_but_still_learn(frozen):
    model = build_offseg(*SMALL_OFFSEG, "MODEL.BACKBONE.FREEZE_BATCH_NORM", frozen).train()
    before = {n: b.clone() for n, b in model.named_buffers() if "running" in n}
    model(random_batch([(64, 64), (64, 64)]))["loss_sem_seg"].backward()
    after = dict(model.named_buffers())
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed == (set() if frozen else set(before))
    assert model.training and model.backbone.training
    norms = [m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {m.training for m in norms} == {not frozen}
    assert all(m.weight.grad is not None for m in norms)
    assert all(not m.training for m in model.eval().modules())
