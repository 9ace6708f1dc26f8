"""Models made or run under ``torch.inference_mode()``, and used otherwise afterwards."""

import copy

import pytest
import torch

from tests.common import random_batch
from tests.export.tiny import MODELS, tiny
from tests.modeling.mask_query import mask_batch

HOSTS = [
    pytest.param(name, marks=pytest.mark.slow) if name == "swin" else name
    for name in MODELS
    if name != "convs"
]
MASKS = ("mask_query", "swin")


def build(name):
    opts = ("MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 64) if name in MASKS else ()
    return tiny(name, *opts)[0]


def predict(model):
    return model(random_image())[0]["sem_seg"]


def random_image():
    generator = torch.Generator().manual_seed(3)
    return [{"image": torch.randint(0, 256, (3, 64, 96), generator=generator).byte()}]


def train_a_step(model, name):
    model.train()
    sizes = [(64, 64), (64, 64)]
    losses = model(mask_batch(sizes) if name in MASKS else random_batch(sizes))
    sum(losses.values()).backward()
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert any(gradient.abs().max() > 0 for gradient in gradients)
    return model.eval()


@pytest.mark.parametrize("name", HOSTS)
def test_model_run_in_inference_mode_is_evaluated_with_gradients_and_trained_afterwards(name):
    model = build(name)
    with torch.inference_mode():
        before = predict(model).clone()
    with torch.no_grad():
        assert torch.equal(predict(model), before)
    predict(model).sum().backward()
    model.zero_grad()
    train_a_step(model, name)
    with torch.inference_mode():
        assert not torch.equal(predict(model), before)


@pytest.mark.parametrize("name", HOSTS)
def test_model_made_in_inference_mode_predicts_and_its_copy_is_trained(name):
    with torch.inference_mode():
        made = build(name)
        before = predict(made).clone()
    with torch.no_grad():
        assert torch.equal(predict(made), before)
    # PyTorch never trains parameters made in inference mode; a copy made outside has others.
    train_a_step(copy.deepcopy(made), name)


@torch.inference_mode()
def test_biases_made_in_inference_mode_follow_weights_that_change():
    model = build("offseg")
    before = predict(model).clone()
    for name, parameter in model.named_parameters():
        if name.endswith("bias.table"):
            parameter.add_(torch.rand_like(parameter))
    assert not torch.equal(predict(model), before)
