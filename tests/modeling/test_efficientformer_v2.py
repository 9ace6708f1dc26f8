"""EfficientFormerV2: attention step by step, sizes, counts, gradients, initial values."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offseg_d2.modeling import EfficientFormerV2
from offseg_d2.modeling.backbone.efficientformer_v2 import (
    Attention,
    Block,
)
from tests.common import assert_close, offseg_config, spread_norms

DEPTHS = {"s0": (2, 2, 6, 4), "s1": (3, 3, 9, 6), "s2": (4, 4, 12, 8), "l": (5, 5, 15, 10)}
ATTENTION_BLOCKS = {"s0": 2, "s1": 2, "s2": 4, "l": 6}


def make_backbone(variant: str = "s0", **kwargs) -> EfficientFormerV2:
    return spread_norms(EfficientFormerV2(variant=variant, **kwargs))


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("variant", sorted(DEPTHS))
def test_last_blocks_of_the_coarse_stages_have_attention(variant):
    with torch.device("meta"):
        stages = EfficientFormerV2(variant=variant).stages
    assert tuple(len(stage) for stage in stages) == DEPTHS[variant]
    for level, stage in enumerate(stages):
        plain = len(stage) - (ATTENTION_BLOCKS[variant] if level >= 2 else 0)
        has_attention = [block.token_mixer is not None for block in stage]
        assert has_attention == [index >= plain for index in range(len(stage))]
        for block in stage:
            if block.token_mixer is not None:
                assert (block.token_mixer.stride_conv is not None) == (level == 2)
                assert hasattr(block, "layer_scale_1")
            else:
                assert not hasattr(block, "layer_scale_1")


def test_only_the_asked_outputs_are_returned():
    backbone = EfficientFormerV2(variant="s0", out_features=("res3", "res5")).eval()
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, 32, 32))
    assert list(features) == list(backbone.output_shape()) == ["res3", "res5"]


def test_block_scales_and_adds_each_branch_in_turn():
    mixer = Attention(16, 1, grid=16)
    block = spread_norms(Block(16, 2, mixer, drop_path=0.0, layer_scale_init=1e-5))
    features = images(1, 16, 4, 4)
    with torch.no_grad():
        middle = features + block.layer_scale_1 * block.token_mixer(features)
        mlp = block.mlp
        hidden = F.gelu(mlp.norm1(mlp.fc1(middle)))
        hidden = F.gelu(mlp.mid_norm(mlp.mid(hidden)))
        expected = middle + block.layer_scale_2 * mlp.norm2(mlp.fc2(hidden))
        assert_close(block(features), expected, 1e-12)


def test_drop_path_acts_on_both_branches_of_a_block():
    block = Block(8, 2, Attention(8, 1, grid=16), drop_path=0.5, layer_scale_init=1.0).train()
    branches: list[Tensor] = []
    block.drop_path.register_forward_hook(lambda _, __, out: branches.append(out))
    block(torch.randn(64, 8, 2, 2))
    assert len(branches) == 2
    for branch in branches:
        dropped = branch.eq(0).flatten(1).all(1)
        assert 0 < dropped.sum() < 64
    first, second = (b.eq(0).flatten(1).all(1) for b in branches)
    assert not torch.equal(first, second)  # drawn on their own


# --------------------------------------------------------------- invariants


def test_evaluation_is_repeatable_and_follows_new_weights_at_once():
    backbone, batch = make_backbone(), images(1, 3, 64, 64)
    with torch.no_grad():
        first = backbone(batch)["res5"]
        assert torch.equal(backbone(batch)["res5"], first)
        for name, parameter in backbone.named_parameters():
            if name.endswith("bias.table"):  # no stale cache of the resized biases
                parameter.add_(torch.randn_like(parameter))
        assert (backbone(batch)["res5"] - first).abs().max() > 1e-4


def test_a_used_model_can_be_copied_and_the_copy_is_its_own():
    backbone, batch = make_backbone(), images(1, 3, 64, 64)
    with torch.no_grad():
        expected = backbone(batch)["res5"]
        copied = copy.deepcopy(backbone)
        for name, parameter in backbone.named_parameters():
            if name.endswith("bias.table"):
                parameter.add_(1 + torch.randn_like(parameter))
        assert torch.equal(copied(batch)["res5"], expected)
        assert not torch.equal(backbone(batch)["res5"], expected)


def test_biases_learn_after_an_evaluation():
    backbone, batch = make_backbone(), images(1, 3, 64, 64)
    with torch.no_grad():
        backbone(batch)
    backbone(batch)["res5"].square().sum().backward()  # still in evaluation mode
    tables = [p for n, p in backbone.named_parameters() if n.endswith("bias.table")]
    assert all(table.grad is not None and table.grad.abs().max() > 0 for table in tables)


def test_derived_indices_are_not_saved():
    assert not any("indices" in name for name in EfficientFormerV2(variant="s0").state_dict())


# ----------------------------------------------------------- initial values


def test_weights_start_as_published():
    backbone = EfficientFormerV2(variant="s1")
    # Standard deviations that the authors' initialisation gave, by kind.
    expected = {
        "stem.0.conv.weight": 0.110916,  # PyTorch's default for convolutions
        "stem.2.conv.weight": 0.047789,
        "stages.0.0.mlp.fc1.weight": 0.02,
        "stages.0.0.mlp.fc2.weight": 0.02,
        "stages.0.0.mlp.mid.weight": 0.193572,
        "stages.0.0.mlp.mid.bias": 0.182972,
        "downsamples.0.proj.weight": 0.033905,
    }
    parameters = dict(backbone.named_parameters())
    for name, std in expected.items():
        parameter = parameters[name]
        tolerance = max(0.02, 4 / math.sqrt(2 * parameter.numel()))
        assert parameter.std().item() == pytest.approx(std, rel=tolerance), name
    for name, parameter in parameters.items():
        if name.endswith(("fc1.bias", "fc2.bias", "bias.table")):
            assert not parameter.any(), name
        if "layer_scale" in name:
            assert parameter.ndim == 3 and parameter.eq(1e-5).all(), name
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.eq(1).all() and not module.bias.any()
            assert (module.eps, module.momentum) == (1e-5, 0.1)


def test_configuration_sets_the_first_layer_scale():
    opts = ["MODEL.EFFICIENTFORMER_V2.VARIANT", "s0"]
    opts += ["MODEL.EFFICIENTFORMER_V2.LAYER_SCALE_INIT", 0.1]
    given = EfficientFormerV2(offseg_config(*opts), None)
    assert given.stages[3][3].layer_scale_1.eq(0.1).all()


def test_unknown_outputs_are_refused():
    with pytest.raises(
        ValueError, match=r"^`out_features` must be among .*, but has \['res6'\]\.$"
    ):
        EfficientFormerV2(variant="s0", out_features=("res2", "res6"))
