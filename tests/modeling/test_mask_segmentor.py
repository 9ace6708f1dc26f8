"""The mask-query meta-architecture: order of inference, targets, sizes, determinism."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, build_sem_seg_head
from torch import Tensor, nn

from offseg_d2.data.dataset_mapper import class_instances
from offseg_d2.modeling import (
    AugmentedModel,
    InferenceSettings,
    MaskFormerHead,
    MaskSegmentor,
)
from offseg_d2.modeling.meta_arch.evaluation_model import AugmentationSettings
from tests.common import assert_close, build_offseg, offseg_config, random_batch
from tests.modeling.mask_query import (
    SMALL_MASK2FORMER,
    combined,
    mask_batch,
    small_mask2former,
)

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def predict(model: nn.Module, batch: list[dict[str, Any]]) -> list[Tensor]:
    with torch.no_grad():
        return [result["sem_seg"] for result in model(batch)]


# ------------------------------------------------------------------ inference


def expected_scores(model: nn.Module, image: Tensor, multiple: int = 32) -> Tensor:
    """(K, h, w) by the published order of steps, for the network's input size."""
    height, width = image.shape[-2:]
    padded = F.pad(model.normalise(image)[None], [0, -width % multiple, 0, -height % multiple])
    outputs = model.sem_seg_head(model.backbone(padded))
    probabilities = outputs["pred_logits"][0].softmax(1)[:, :-1]
    whole = combined(probabilities, outputs["pred_masks"][0], padded.shape[-2:])
    return whole[:, :height, :width]


@pytest.mark.parametrize("size", [(64, 96), (33, 45), (1, 70)])
def test_padding_is_cut_off_after_the_queries_are_combined_and_before_the_last_resize(size):
    model, (sample,) = small_mask2former().double(), random_batch([size])
    with torch.no_grad():
        own = expected_scores(model, sample["image"])
    expected = F.interpolate(own[None], size=(75, 31), mode="bilinear", align_corners=False)[0]
    (actual,) = predict(model, [sample | {"height": 75, "width": 31}])
    assert_close(actual, expected, 1e-10)


def test_augmentation_averages_the_scores_themselves():
    model, (sample,) = small_mask2former(), random_batch([(64, 96)])
    settings = AugmentationSettings(ratios=(1.0,), flip=True)
    mean = AugmentedModel(model, settings).mean_probabilities(sample)
    (own,) = predict(model, [sample])
    (mirrored,) = predict(model, [{"image": sample["image"].flip(2)}])
    assert_close(mean, (own + mirrored.flip(2)) / 2)


def test_sliding_windows_average_the_scores_of_each_window():
    model, (sample,) = small_mask2former().double(), random_batch([(64, 80)])
    model.inference = InferenceSettings("slide", (64, 64), (64, 16))
    with torch.no_grad():
        left = expected_scores(model, sample["image"][:, :, :64])
        right = expected_scores(model, sample["image"][:, :, 16:])
    (actual,) = predict(model, [sample])
    assert_close(actual[:, :, :16], left[:, :, :16], 1e-10)
    assert_close(actual[:, :, 64:], right[:, :, 48:], 1e-10)
    assert_close(actual[:, :, 16:64], (left[:, :, 16:] + right[:, :, :48]) / 2, 1e-10)


@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_label_maps_are_the_argmax_of_the_scores(mode):
    model = small_mask2former().double()
    model.inference = InferenceSettings(mode, (64, 64), (48, 48), size_divisibility=32)
    batch = [sample | {"height": 150, "width": 110} for sample in random_batch([(75, 90)])]
    with torch.no_grad():
        labels = model.predict_label_maps(batch)[0]["sem_seg"]
    assert torch.equal(labels.long(), predict(model, batch)[0].argmax(0))


# ------------------------------------------------------------------ training


class Recorder(nn.Module):
    """A criterion that keeps what it is given."""

    def forward(self, outputs: dict[str, Any], targets: list[dict[str, Tensor]]) -> dict:
        self.outputs, self.targets = outputs, targets
        return {"loss_ce": outputs["pred_logits"].sum()}


def recorded(batch: list[dict[str, Any]], train_size=(0, 0)) -> tuple[nn.Module, Recorder]:
    model = small_mask2former().train()
    model.train_size, model.criterion = train_size, Recorder()
    model(batch)
    return model, model.criterion


def test_masks_are_padded_with_background_to_the_extent_of_the_networks_input():
    batch = mask_batch([(40, 50), (33, 70)])
    _, criterion = recorded(batch)
    for sample, target in zip(batch, criterion.targets, strict=True):
        masks = sample["instances"].gt_masks
        height, width = masks.shape[-2:]
        assert target["masks"].shape == (len(masks), 64, 96)  # the next multiples of 32
        assert torch.equal(target["masks"][:, :height, :width], masks)
        assert target["masks"].sum() == masks.sum()
        assert torch.equal(target["labels"], sample["instances"].gt_classes)
    assert criterion.outputs["pred_masks"].shape[-2:] == (16, 24)


def test_training_images_are_padded_to_the_training_size():
    _, criterion = recorded(mask_batch([(40, 50)]), train_size=(96, 64))
    assert criterion.targets[0]["masks"].shape[-2:] == (96, 64)
    assert criterion.outputs["pred_masks"].shape[-2:] == (24, 16)


def test_an_image_without_any_label_trains():
    model = small_mask2former().train()
    batch = mask_batch([(64, 64), (64, 64)])
    batch[0]["instances"] = class_instances(torch.full((64, 64), 255))
    for samples in (batch, batch[:1]):
        losses = model(samples)
        assert all(loss.isfinite() for loss in losses.values())
        sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_records_without_masks_are_refused_with_the_key_that_gives_them():
    message = r"^`INPUT.DATASET_MAPPER_NAME` must be one that yields masks, such as 'instances',"
    with pytest.raises(ValueError, match=message):
        small_mask2former().train()(random_batch([(64, 64)]))


# ------------------------------------------------------------------ configuration


def test_ablation_switches_reach_the_mask_predictor():
    model = small_mask2former("MODEL.SEM_SEG_HEAD.CLASS_OFFSET", False)
    learning = model.sem_seg_head.predictor.mask_predictor.offset_learning
    assert learning.class_offset_proj is None and learning.feature_offset_proj is not None
    opts = (*SMALL_MASK2FORMER, "MODEL.SEM_SEG_HEAD.OFFSET_INIT_STD", 0.0)
    model = build_offseg(*opts, model="mask2former_offseg_t")
    learning = model.sem_seg_head.predictor.mask_predictor.offset_learning
    assert all(not parameter.any() for parameter in learning.parameters())


def test_configuration_reaches_head_and_criterion():
    model = small_mask2former("MODEL.MASK_FORMER.DEEP_SUPERVISION", False)
    predictor, decoder = model.sem_seg_head.predictor, model.sem_seg_head.pixel_decoder
    assert predictor.query_feat.weight.shape == (7, 32)
    assert len(predictor.transformer_ffn_layers) == 3
    assert len(decoder.transformer.encoder["layers"]) == 2
    assert predictor.transformer_ffn_layers[0].linear1.out_features == 48
    assert decoder.transformer.encoder["layers"][0].linear1.out_features == 48
    assert predictor.class_embed.out_features == 6
    assert set(model.train()(mask_batch([(64, 64)]))) == {"loss_ce", "loss_mask", "loss_dice"}


class Pyramid(Backbone):
    """A backbone of another make: four levels of its own widths."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3 + i, 1) for i in range(4))

    @property
    def size_divisibility(self) -> int:
        return 32

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {f"res{i + 2}": ShapeSpec(channels=3 + i, stride=4 * 2**i) for i in range(4)}

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {
            f"res{i + 2}": conv(F.avg_pool2d(image, 4 * 2**i)) for i, conv in enumerate(self.convs)
        }


def test_any_backbone_trains_and_predicts():
    backbone = Pyramid()
    cfg = offseg_config(*SMALL_MASK2FORMER, model="mask2former_offseg_t")
    like = small_mask2former()
    head = build_sem_seg_head(cfg, backbone.output_shape())
    model = MaskSegmentor(
        backbone=backbone,
        sem_seg_head=head,
        criterion=copy.deepcopy(like.criterion),
        pixel_mean=MEAN,
        pixel_std=STD,
    )
    assert isinstance(head, MaskFormerHead)
    sum(model(mask_batch([(40, 40)])).values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert predict(model.eval(), random_batch([(40, 41)]))[0].shape == (5, 40, 41)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (
            ("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "OffSegPixelDecoder"),
            r"^`MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME` of MaskFormerHead must give encoded levels,"
            r" as MSDeformAttnPixelDecoder does, but is 'OffSegPixelDecoder'\.$",
        ),
        (
            ("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res2", "p3"]),
            r"^`MODEL.SEM_SEG_HEAD.IN_FEATURES` must be outputs of the backbone .* has \['p3'\]\.$",
        ),
        (
            ("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res5", "res5", "res4"]),
            r"^`MODEL.SEM_SEG_HEAD.IN_FEATURES` must name each .* is \['res5', 'res5', 'res4'\]\.$",
        ),
    ],
)
def test_unusable_settings_are_refused(opts, message):
    with pytest.raises(ValueError, match=message):
        small_mask2former(*opts)
