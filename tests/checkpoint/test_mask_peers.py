"""Mask2Former of transformers and Swin of timm with the same weights, through their own files.

Run with ``-m peers``; each test prints its largest difference (``-s`` shows it).
"""

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from offseg_d2.checkpoint import convert_file
from offseg_d2.modeling import Swin
from tests.checkpoint import external
from tests.checkpoint.test_peers import difference, spread
from tests.common import offseg_config

pytestmark = pytest.mark.peers

PLAIN = ("MODEL.SEM_SEG_HEAD.CLASSIFIER", "plain", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 150)


def hf_mask2former() -> nn.Module:
    """Swin-T, 100 queries, 150 classes; no weight at its initial value."""
    transformers = pytest.importorskip("transformers")
    backbone = transformers.SwinConfig(
        depths=(2, 2, 6, 2), drop_path_rate=0.0, out_features=[f"stage{i}" for i in range(1, 5)]
    )
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone, num_labels=150, output_auxiliary_logits=True
    )
    return spread(transformers.Mask2FormerForUniversalSegmentation(config))


def test_plain_mask2former_equals_transformers(tmp_path):
    peer = hf_mask2former()
    peer.save_pretrained(tmp_path)
    ours = build_model(offseg_config(*PLAIN, model="mask2former_swin_t"))
    conversion = convert_file(str(tmp_path / "model.safetensors"), ours.state_dict())
    assert all(name.endswith("relative_position_index") for name in conversion.missing)
    ours.load_state_dict(conversion.state_dict, strict=False)
    # float64: masks are thresholded, so rounding could flip a bit of the attention
    peer, ours = peer.double(), ours.double().eval()
    ours.sem_seg_head.train()  # for the earlier predictions; it has no dropout
    image = torch.randn(2, 3, 128, 160, dtype=torch.float64)
    with torch.no_grad():
        theirs = peer(pixel_values=image)
        outputs = ours.sem_seg_head(ours.backbone(image))
    earlier = [layer["pred_masks"] for layer in outputs["aux_outputs"]]
    theirs_earlier = [layer["masks_queries_logits"] for layer in theirs.auxiliary_logits]
    classes = difference([outputs["pred_logits"]], [theirs.class_queries_logits])
    last = difference([outputs["pred_masks"]], [theirs.masks_queries_logits])
    between = difference(earlier, theirs_earlier)
    print(
        f"Mask2Former and transformers, float64, relative differences: classes {classes:.1e}, "
        f"masks {last:.1e}, masks of the {len(earlier)} earlier predictions {between:.1e}"
    )
    assert len(earlier) == 9
    assert max(classes, last, between) < 1e-12


def test_swin_equals_timms(tmp_path):
    timm = pytest.importorskip("timm")
    # At 224 the last stage is one window, which timm then does not shift.
    peer = timm.create_model("swin_tiny_patch4_window7_224", img_size=448)
    attention_masks = {name: buffer.clone() for name, buffer in peer.named_buffers()}
    spread(peer)
    for name, buffer in peer.named_buffers():
        buffer.copy_(attention_masks[name])
    torch.save(peer.state_dict(), tmp_path / "timm.pth")
    ours = nn.ModuleDict({"backbone": Swin(variant="t")}).eval()
    conversion = convert_file(str(tmp_path / "timm.pth"), ours.state_dict())
    ours.load_state_dict(conversion.state_dict, strict=False)
    for i in range(4):  # which timm's features do without
        setattr(ours["backbone"], f"norm{i}", nn.Identity())
    image = torch.randn(1, 3, 448, 448)
    with torch.no_grad():
        features = list(ours["backbone"](image).values())
        # a stage of timm's begins with the merging of patches that ends a stage of ours
        theirs = peer.forward_intermediates(image, intermediates_only=True)
    found = difference(features, theirs)
    print(f"Swin-T and timm: relative difference {found:.1e}")
    assert found < 1e-5


def test_recorded_names_are_those_of_the_installed_packages(tmp_path):
    timm = pytest.importorskip("timm")
    hf_mask2former().save_pretrained(tmp_path)
    saved = pytest.importorskip("safetensors.torch").load_file(tmp_path / "model.safetensors")
    recorded = {key: tuple(shape) for key, shape in external.OTHERS["hf_mask2former_swin_t"]}
    assert {key: tuple(value.shape) for key, value in saved.items()} == recorded
    with torch.device("meta"):
        peer = timm.create_model("swin_tiny_patch4_window7_224")
    recorded = {key: tuple(shape) for key, shape in external.OTHERS["timm_swin_t"]}
    assert {key: tuple(value.shape) for key, value in peer.state_dict().items()} == recorded
