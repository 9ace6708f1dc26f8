"""Meta-architectures take the heads of their kind; masks and image cover the same extent."""

from typing import Any

import pytest
import torch
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY, build_model
from torch import Tensor, nn

from offseg_d2.modeling import PerPixelHead, PerPixelSegmentor
from tests.common import SMALL_OFFSEG, offseg_config, random_batch
from tests.modeling.mask_query import SMALL_MASK2FORMER, mask_batch, small_mask2former

SMALL = {"offseg_t": SMALL_OFFSEG, "mask2former_offseg_t": SMALL_MASK2FORMER}
HEAD = "MODEL.SEM_SEG_HEAD.NAME"


def build(model: str, *opts: Any) -> nn.Module:
    return build_model(offseg_config(*SMALL[model], *opts, model=model))


# ------------------------------------------------------------------ kinds of heads


@pytest.mark.parametrize("model", sorted(SMALL))
@pytest.mark.parametrize(
    ("arch", "kind", "wrong"),
    [
        ("PerPixelSegmentor", "a per-pixel head, such as PerPixelHead", "MaskFormerHead"),
        ("MaskSegmentor", "a head of queries, such as MaskFormerHead", "PerPixelHead"),
    ],
)
def test_head_of_the_other_kind_is_refused_at_build(model, arch, kind, wrong):
    message = rf"^`{HEAD}` of {arch} must be {kind}, but is '{wrong}'\.$"
    with pytest.raises(ValueError, match=message):
        build(model, "MODEL.META_ARCHITECTURE", arch, HEAD, wrong)


@pytest.mark.parametrize(
    ("model", "arch", "wrong"),
    [
        ("mask2former_offseg_t", "PerPixelSegmentor", "MaskFormerHead"),
        ("offseg_t", "MaskSegmentor", "PerPixelHead"),
    ],
)
def test_wrong_kind_is_noticed_behind_a_host_head_too(model, arch, wrong):
    opts = ["MODEL.META_ARCHITECTURE", arch, HEAD, "HostHead", "MODEL.SEM_SEG_HEAD.HOST", wrong]
    with pytest.raises(ValueError, match=rf"^`{HEAD}` of {arch} must be .* but is 'HostHead'\.$"):
        build(model, *opts, "MODEL.SEM_SEG_HEAD.CLASSIFIER", "plain")


class OwnHead(nn.Module):
    """A user's head, no relative of ours."""

    ignore_value = 255

    def __init__(self, cfg: Any, input_shape: dict[str, Any]) -> None:
        super().__init__()
        self.predictor = nn.Conv2d(input_shape["res2"].channels, 5, 1)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        return self.predictor(features["res2"])

    def losses(self, logits: Tensor, targets: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        resized = nn.functional.interpolate(logits, size, mode="bilinear")
        return {"loss_sem_seg": nn.functional.cross_entropy(resized, targets)}


@pytest.mark.parametrize("name", ["OwnHead", "HostHead"])
def test_own_heads_with_losses_train_and_predict(monkeypatch, name):
    monkeypatch.setitem(SEM_SEG_HEADS_REGISTRY._obj_map, "OwnHead", OwnHead)
    model = build("offseg_t", HEAD, name, "MODEL.SEM_SEG_HEAD.HOST", "OwnHead")
    assert isinstance(model, PerPixelSegmentor)
    model.train()(random_batch([(64, 64)] * 2))["loss_sem_seg"].backward()
    with torch.no_grad():
        assert model.eval()(random_batch([(40, 50)]))[0]["sem_seg"].shape == (5, 40, 50)


def test_heads_of_detectron2s_own_architecture_are_refused():
    with pytest.raises(ValueError, match="of PerPixelSegmentor must be a per-pixel head"):
        build("offseg_t", HEAD, "SemSegFPNHead")


def test_the_usual_head_is_unchanged():
    assert type(build("offseg_t").sem_seg_head) is PerPixelHead


# ------------------------------------------------------------------ extent of the masks


class Recorder(nn.Module):
    """A criterion that keeps what it is given."""

    def forward(self, outputs: dict[str, Any], targets: list[dict[str, Tensor]]) -> dict:
        self.outputs, self.targets = outputs, targets
        return {"loss_ce": outputs["pred_logits"].sum()}


def resnet_model() -> nn.Module:
    opts = ("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", 18)
    resnet = ("MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.OUT_FEATURES")
    return small_mask2former(*opts, *resnet, ["res2", "res3", "res4", "res5"])


@pytest.mark.parametrize("sizes", [[(65, 90)], [(65, 90), (33, 101)]])
def test_masks_and_targets_cover_the_same_extent_though_the_backbone_takes_any_size(sizes):
    model = resnet_model().train()
    assert model.backbone.size_divisibility == 0
    model.criterion = Recorder()
    model(mask_batch(sizes))
    height, width = model.criterion.outputs["pred_masks"].shape[-2:]
    expected = (96, 96) if len(sizes) == 1 else (96, 128)
    for target in model.criterion.targets:
        assert target["masks"].shape[-2:] == (4 * height, 4 * width) == expected
