"""Other implementations with the same weights, through files in their own layout.

Run with ``-m peers``; each test prints its largest difference (``-s`` shows it).
"""

import pytest
import torch
from torch import Tensor, nn

from offseg_d2.checkpoint import convert_file
from offseg_d2.modeling import EfficientFormerV2, MiT
from offseg_d2.modeling.backbone.efficientformer_v2_attention import AttentionBias
from tests.checkpoint import external
from tests.common import build_offseg

pytestmark = pytest.mark.peers


def spread(model: nn.Module) -> nn.Module:
    """Every parameter and statistic away from its initial value."""
    with torch.no_grad():
        for key, value in [*model.named_parameters(), *model.named_buffers()]:
            if key.endswith("running_var"):
                value.uniform_(0.8, 1.5)
            elif "gamma" in key:
                value.uniform_(0.3, 0.7)
            elif key.endswith("attention_biases"):
                value.normal_()
            elif value.is_floating_point():
                value.add_(torch.randn_like(value) * 0.02)
    return model.eval()


def difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Largest difference, relative to the largest value of each map."""
    values = [
        ((a - b).abs().max() / b.abs().max()).item() for a, b in zip(ours, theirs, strict=True)
    ]
    return max(values)


@pytest.mark.parametrize("variant", ["s0", "s1", "s2", "l"])
def test_efficientformer_v2_equals_timms_at_224(tmp_path, variant):
    timm = pytest.importorskip("timm")
    peer = spread(timm.create_model(f"efficientformerv2_{variant}"))
    torch.save(peer.state_dict(), tmp_path / "timm.pth")
    ours = nn.ModuleDict({"backbone": EfficientFormerV2(variant=variant)}).eval()
    # Tables for the tokens of 224 x 224, so that nothing is resized.
    for module in list(ours.modules()):
        if isinstance(getattr(module, "bias", None), AttentionBias):
            grid = 14 if module.bias.table.shape[1] == 32**2 else 7
            module.bias = AttentionBias(7, grid)
    state = ours.state_dict()
    conversion = convert_file(str(tmp_path / "timm.pth"), state, resize_attention_biases=True)
    ours.load_state_dict(conversion.state_dict, strict=True)
    image = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        _, theirs = peer.forward_intermediates(image)
        features = list(ours["backbone"](image).values())
    found = difference(features, theirs)
    print(f"EfficientFormerV2-{variant.upper()} and timm: relative difference {found:.1e}")
    assert found < 1e-5


def hugging_face(kind: str, eps: float | None, **config):
    transformers = pytest.importorskip("transformers")
    peer = spread(getattr(transformers, kind)(transformers.SegformerConfig(**config)))
    if eps is not None:
        for module in peer.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = eps
    return peer


# Their layer norms add 1e-5 to the variance, ours (as in OffSeg's models) 1e-6.
EPSILONS = [(1e-6, 1e-5), (None, 1e-4)]


@pytest.mark.parametrize("eps, tolerance", EPSILONS)
def test_mit_equals_transformers(tmp_path, eps, tolerance):
    peer = hugging_face("SegformerModel", eps, output_hidden_states=True)
    peer.save_pretrained(tmp_path)
    ours = nn.ModuleDict({"backbone": MiT(variant="b0")}).eval()
    conversion = convert_file(str(tmp_path / "model.safetensors"), ours.state_dict())
    ours.load_state_dict(conversion.state_dict, strict=True)
    image = torch.randn(2, 3, 128, 160)
    with torch.no_grad():
        theirs = list(peer(image).hidden_states)[-4:]
        features = list(ours["backbone"](image).values())
    found = difference(features, theirs)
    print(f"MiT-B0 and transformers (eps {eps or 'theirs'}): relative difference {found:.1e}")
    assert found < tolerance


@pytest.mark.parametrize("eps, tolerance", EPSILONS)
def test_plain_segformer_equals_transformers(tmp_path, eps, tolerance):
    peer = hugging_face("SegformerForSemanticSegmentation", eps, num_labels=150)
    peer.save_pretrained(tmp_path)
    ours = build_offseg(
        *("MODEL.SEM_SEG_HEAD.CLASSIFIER", "plain", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 150),
        *("MODEL.SEGFORMER.LINEAR_LEVELS", True),
        model="segformer_b0",
    )
    conversion = convert_file(str(tmp_path / "model.safetensors"), ours.state_dict())
    assert not conversion.dropped
    ours.load_state_dict(conversion.state_dict, strict=True)
    image = torch.randn(2, 3, 128, 160)
    with torch.no_grad():
        theirs = peer(image).logits
        logits = ours.sem_seg_head(ours.backbone(image))
    found = difference([logits], [theirs])
    print(f"SegFormer-B0 and transformers (eps {eps or 'theirs'}): relative difference {found:.1e}")
    assert found < tolerance


def test_recorded_names_are_those_of_the_installed_packages(tmp_path):
    timm, transformers = pytest.importorskip("timm"), pytest.importorskip("transformers")
    with torch.device("meta"):
        peer = timm.create_model("efficientformerv2_s1")
    recorded = {key: tuple(shape) for key, shape in external.OTHERS["timm_efficientformerv2_s1"]}
    assert {key: tuple(value.shape) for key, value in peer.state_dict().items()} == recorded
    config = transformers.SegformerConfig(num_labels=150)
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(tmp_path)
    safetensors_torch = pytest.importorskip("safetensors.torch")
    saved = safetensors_torch.load_file(tmp_path / "model.safetensors")
    recorded = {key: tuple(shape) for key, shape in external.OTHERS["hf_segformer_b0"]}
    assert {key: tuple(value.shape) for key, value in saved.items()} == recorded
