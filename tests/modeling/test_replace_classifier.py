"""The offset classifier in external heads: Detectron2's, and any module."""

import re

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import Conv2d
from detectron2.modeling import build_model
from detectron2.projects.deeplab import add_deeplab_config
from torch import nn
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

from offseg_d2 import OffsetClassifier, replace_classifier
from offseg_d2.config import load_config
from tests.common import ROOT, random_batch

NUM_CLASSES = 5
HEADS = ["SemSegFPNHead", "DeepLabV3Head", "DeepLabV3PlusHead"]
OPTIONS = {
    "SemSegFPNHead": ["MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res2", "res3", "res4", "res5"]],
    "DeepLabV3Head": [
        *("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res4"]),
        *("MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 16),
    ],
    "DeepLabV3PlusHead": [
        *("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res2", "res4"]),
        *("MODEL.SEM_SEG_HEAD.PROJECT_FEATURES", ["res2"]),
        *("MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS", [16]),
    ],
}


def make_cfg(host: str, classifier: str = "offset", name: str = "HostHead") -> CfgNode:
    cfg = load_config("")
    add_deeplab_config(cfg)
    settings = ["MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.DEVICE", "cpu"]
    settings += ["MODEL.BACKBONE.NAME", "TorchvisionMobileNetV2"]
    settings += ["MODEL.SEM_SEG_HEAD.NAME", name, "MODEL.SEM_SEG_HEAD.HOST", host]
    settings += ["MODEL.SEM_SEG_HEAD.CLASSIFIER", classifier, *OPTIONS[host]]
    settings += ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", NUM_CLASSES]
    settings += ["MODEL.SEM_SEG_HEAD.CONVS_DIM", 32, "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", 32]
    settings += ["MODEL.SEM_SEG_HEAD.NORM", "BN", "INPUT.CROP.ENABLED", True]
    settings += ["MODEL.SEM_SEG_HEAD.LOSS_TYPE", "cross_entropy"]
    settings += ["INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", [64, 64]]
    cfg.merge_from_list(settings)
    return cfg


def striped_batch() -> list[dict]:
    """Two images whose colours show the class."""
    batch = random_batch([(64, 64)] * 2)
    for sample in batch:
        sample["sem_seg"] = (torch.arange(64) // 16).expand(64, 64).contiguous()
        sample["image"] = (sample["sem_seg"] * 50).byte().expand(3, 64, 64).contiguous()
    return batch


@pytest.mark.parametrize("host", HEADS)
def test_head_of_detectron2_learns_with_offsets(host):
    model = build_model(make_cfg(host)).train()
    assert isinstance(model.sem_seg_head.predictor, OffsetClassifier)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    batch = striped_batch()
    losses = []
    for _ in range(8):
        loss = sum(model(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0], losses
    for name, parameter in model.sem_seg_head.predictor.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    with torch.no_grad():
        output = model.eval()(batch)[0]["sem_seg"]
    assert output.shape == (NUM_CLASSES, 64, 64)


@pytest.mark.parametrize("host", HEADS)
def test_plain_host_is_the_head_itself_and_only_the_predictor_differs(host):
    original = build_model(make_cfg(host, name=host)).state_dict()
    plain = build_model(make_cfg(host, "plain")).state_dict()
    offset = build_model(make_cfg(host)).state_dict()
    assert plain.keys() == original.keys()
    assert plain.keys() ^ offset.keys()
    assert all(".predictor." in name for name in plain.keys() ^ offset.keys())


def test_function_replaces_in_a_built_model():
    model = build_model(make_cfg("SemSegFPNHead", name="SemSegFPNHead"))
    old = model.sem_seg_head.predictor
    new = replace_classifier(model, feature_offset=False, class_norm=False, offset_init_std=0.0)
    assert model.sem_seg_head.predictor is new is not old
    assert new.class_representations.shape == (NUM_CLASSES, 32)
    assert new.offset_learning.feature_offset_proj is None
    assert not list(new.norm.parameters())
    assert not new.offset_learning.class_offset_proj.weight.any()


def test_classifier_takes_over_type_and_mode():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)).double().eval()
    classifier = replace_classifier(model, "1")
    assert classifier.class_representations.dtype == torch.float64
    assert not classifier.training
    assert model(torch.randn(1, 3, 5, 6).double()).shape == (1, 4, 5, 6)


def test_nested_path_in_a_model_of_torchvision():
    model = deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)
    replace_classifier(model, "classifier.4")
    with torch.no_grad():
        assert model.eval()(torch.randn(1, 3, 64, 64))["out"].shape == (1, 4, 64, 64)


def test_wrong_paths_are_refused():
    model = nn.ModuleDict({"a": nn.Conv2d(3, 8, 3), "b": nn.Conv2d(8, 4, 1)})
    with pytest.raises(ValueError, match=r"is 'c'; its 1x1 convolutions are \['b'\]"):
        replace_classifier(model, "c")
    with pytest.raises(ValueError, match="1x1 convolution inside the model, but 'a' is a Conv2d"):
        replace_classifier(model, "a")
    with pytest.raises(ValueError, match="'' is a ModuleDict"):
        replace_classifier(model, "")
    with pytest.raises(ValueError, match="one 1x1 convolution named 'predictor', but has none"):
        replace_classifier(model)
    model["b"] = Conv2d(8, 4, 1, norm=nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match="without norm and activation"):
        replace_classifier(model, "b")


def test_unknown_host_and_classifier_are_refused():
    cfg = make_cfg("SemSegFPNHead")
    cfg.MODEL.SEM_SEG_HEAD.HOST = "HostHead"
    with pytest.raises(ValueError, match=r"`MODEL.SEM_SEG_HEAD.HOST` must be one of .*'HostHead'"):
        build_model(cfg)
    with pytest.raises(ValueError, match=r"CLASSIFIER` must be one of .* but is 'offsets'"):
        build_model(make_cfg("SemSegFPNHead", "offsets"))


def test_configuration_of_the_document_builds(tmp_path):
    text = (ROOT / "docs/OFFSET_LEARNING.md").read_text(encoding="utf-8")
    path = tmp_path / "host.yaml"
    path.write_text(re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)[0])
    model = build_model(load_config(str(path), ["MODEL.DEVICE", "cpu"]))
    assert isinstance(model.sem_seg_head.predictor, OffsetClassifier)


def test_snippet_of_the_document_runs_and_is_short():
    text = (ROOT / "docs/OFFSET_LEARNING.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len([line for line in snippet.splitlines() if line.strip()]) <= 10
    names: dict = {}
    exec(compile(snippet, "OFFSET_LEARNING.md", "exec"), names)
    assert isinstance(names["model"][2], OffsetClassifier)
    assert names["logits"].shape == (2, 21, 16, 16)
    assert all(p.grad is not None for p in names["model"].parameters())
