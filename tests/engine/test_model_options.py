"""Activation checkpointing and compiling change memory and time, not the results."""

import copy

import pytest
import torch
from torch import nn

from offseg_d2.config import ConfigError
from offseg_d2.engine.model_options import apply_model_options, checkpoint_activations
from tests.common import SMALL_OFFSEG, assert_close, build_offseg, offseg_config, seed_all
from tests.engine.tiny import make_trainer

OFFSEG = (*SMALL_OFFSEG, "MODEL.EFFICIENTFORMER_V2.DROP_PATH_RATE", 0.3)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """Of the backbone's outputs, with the same random numbers each time."""
    model.train()
    seed_all(7)
    images = torch.rand(2, 3, 64, 64)
    seed_all(8)
    sum(value.square().mean() for value in model.backbone(images).values()).backward()
    named = model.backbone.named_parameters()
    found = {name: value.grad for name, value in named if value.grad is not None}
    assert len(found) > 50
    return found


@pytest.mark.parametrize(
    ("model", "options"),
    [("offseg_t", OFFSEG), ("segformer_b0", ()), ("segnext_t", ())],
)
def test_gradients_and_statistics_are_those_without_checkpointing(model, options):
    seed_all()
    plain = build_offseg(*options, model=model)
    saving = copy.deepcopy(plain)
    assert checkpoint_activations(saving.backbone) >= 8
    expected, found = gradients(plain), gradients(saving)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(found[name], value)
    for (name, buffer), other in zip(plain.named_buffers(), saving.buffers(), strict=True):
        assert torch.equal(buffer, other), name
    assert plain.state_dict().keys() == saving.state_dict().keys()


def test_checkpointing_keeps_less_between_forward_and_backward():
    def saved_values(model: nn.Module) -> int:
        sizes = []

        def pack(value: torch.Tensor) -> torch.Tensor:
            sizes.append(value.numel())
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            outputs = model.backbone(torch.rand(2, 3, 64, 64))
        assert outputs
        return sum(sizes)

    seed_all()
    plain = build_offseg(model="segformer_b0").train()
    saving = copy.deepcopy(plain)
    checkpoint_activations(saving.backbone)
    assert saved_values(saving) < 0.5 * saved_values(plain)


@pytest.mark.parametrize("model", ["offseg_t", "segformer_b0"])
def test_channels_innermost_change_the_layout_alone(model):
    seed_all()
    plain = build_offseg(*(OFFSEG if model == "offseg_t" else ()), model=model)
    cfg = offseg_config("MODEL.CHANNELS_LAST", True, model=model)
    other = apply_model_options(copy.deepcopy(plain), cfg)
    wide = [p for p in other.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
    assert wide and all(p.is_contiguous(memory_format=torch.channels_last) for p in wide)
    expected, found = gradients(plain), gradients(other)
    for name, value in expected.items():
        assert_close(found[name], value)


def test_copy_of_a_checkpointing_model_is_independent():
    model = build_offseg(model="segformer_b0")
    checkpoint_activations(model.backbone)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    gradients(model)
    assert all(value.grad is None for value in other.parameters())


def test_backbone_without_blocks_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"ACTIVATION_CHECKPOINTING` must be False .* 'tiny'"):
        make_trainer(tmp_path, "MODEL.BACKBONE.ACTIVATION_CHECKPOINTING", True)


@pytest.mark.slow
def test_compiled_model_has_the_same_outputs_and_names():
    seed_all()
    plain = build_offseg(model="segformer_b0")
    cfg = offseg_config("MODEL.COMPILE", True, model="segformer_b0")
    compiled = apply_model_options(copy.deepcopy(plain), cfg)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    batch = [{"image": torch.randint(0, 256, (3, 64, 64)).byte(), "height": 64, "width": 64}]
    with torch.no_grad():
        expected, found = (model(batch)[0]["sem_seg"] for model in (plain, compiled))
    assert_close(found, expected, 1e-4, reason="fused kernels sum in another order")
