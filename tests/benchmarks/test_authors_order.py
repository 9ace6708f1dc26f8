"""The authors' order of operations computes what the project's models compute."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.authors_order import authors_order, logits
from benchmarks.authors_order.fusion import carafe as authors_carafe
from offseg_d2.layers import carafe
from offseg_d2.modeling import PerPixelSegmentor
from tests.common import (
    SMALL_OFFSEG,
    assert_close,
    build_offseg,
    random_batch,
    spread_weights,
)

SMALL_MASK_QUERY: tuple[Any, ...] = (
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", 64, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 5),
    *("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 7, "MODEL.MASK_FORMER.DEC_LAYERS", 3),
    *("MODEL.MASK_FORMER.ENC_LAYERS", 1, "MODEL.MASK_FORMER.DIM_FEEDFORWARD", 64),
)
FIVE = ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 5)
HOSTS: dict[str, tuple[Any, ...]] = {
    "offseg_t": SMALL_OFFSEG,
    "segformer_b0": FIVE,
    "segnext_t": FIVE,
    "mask2former_offseg_t": SMALL_MASK_QUERY,
    "mask2former_swin_t": SMALL_MASK_QUERY,
}
ROUNDING = "dozens of layers whose sums are taken in another order"


def build(host: str) -> tuple[nn.Module, nn.Module]:
    """A model in float64, and its form in the authors' order."""
    model = spread_weights(build_offseg(*HOSTS[host], model=host)).double()
    return model, authors_order(model)


def as_tensor(result: Tensor | dict[str, Any]) -> Tensor:
    if isinstance(result, Tensor):
        return result
    return torch.cat([result["pred_logits"].flatten(), result["pred_masks"].flatten()])


@pytest.mark.parametrize("host", HOSTS)
@torch.no_grad()
def test_authors_order_gives_the_same_logits_and_scores(host: str) -> None:
    model, authors = build(host)
    # 96 x 160 resizes the attention biases, and 90 x 150 is padded besides
    images = torch.randn(2, 3, 90, 150, dtype=torch.float64)
    assert_close(as_tensor(logits(authors, images)), as_tensor(logits(model, images)))
    ours, theirs = model.forward_network(images), authors.forward_network(images)
    assert_close(theirs, ours)


@pytest.mark.parametrize("host", ["offseg_t", "segformer_b0"])
def test_authors_order_has_the_same_gradients(host: str) -> None:
    model, authors = build(host)
    for part in (model, authors):
        part.eval()  # random depth and batch statistics would hide nothing, but differ by chance
    images = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    weights = torch.randn(5, 64, 96, dtype=torch.float64)
    for part in (model, authors):
        (part.forward_network(images) * weights).sum().backward()
    gradients = dict(authors.named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert_close(
            gradients[name].grad / (1 + parameter.grad.abs().max()),
            parameter.grad / (1 + parameter.grad.abs().max()),
            reason=ROUNDING,
        )


def test_authors_order_is_trained_like_the_model() -> None:
    model = authors_order(build_offseg(*SMALL_OFFSEG)).train()
    sample = {
        "image": torch.randint(256, (3, 64, 64), dtype=torch.uint8),
        "sem_seg": torch.randint(5, (64, 64)),
    }
    losses = model([sample, sample])
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@torch.no_grad()
def test_label_maps_of_records_are_the_argmax_of_their_scores() -> None:
    _, authors = build("offseg_t")
    sample = {"image": torch.randint(256, (3, 64, 96), dtype=torch.uint8), "height": 50}
    labels = authors.predict_label_maps([sample])[0]["sem_seg"]
    assert torch.equal(labels, authors([sample])[0]["sem_seg"].argmax(dim=0))
    assert labels.shape == (50, 96)


@pytest.mark.parametrize(("kernel_size", "scale"), [(3, 1), (5, 2)])
def test_carafe_over_the_upsampled_map_equals_that_at_low_resolution(
    kernel_size: int, scale: int
) -> None:
    features = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    kernels = torch.randn(2, kernel_size**2, 5 * scale, 7 * scale, dtype=torch.float64)
    assert_close(
        authors_carafe(features, kernels, kernel_size, scale),
        carafe(features, kernels, kernel_size, scale),
    )


def test_the_model_itself_is_left_as_it_is() -> None:
    model = build_offseg(*SMALL_OFFSEG)
    authors = authors_order(model)
    assert type(model) is PerPixelSegmentor
    assert list(model.state_dict()) == list(authors.state_dict())
    shared = {x.data_ptr() for x in model.parameters()} & {
        x.data_ptr() for x in authors.parameters()
    }
    assert not shared


def test_models_without_an_authors_form_are_refused() -> None:
    with pytest.raises(ValueError, match="`model` must be a PerPixelSegmentor or MaskSegmentor"):
        authors_order(nn.Conv2d(3, 3, 1))
    model = build_offseg(*SMALL_OFFSEG)
    classifier = model.sem_seg_head.classifier
    classifier.__class__ = type("Variant", (type(classifier),), {})
    with pytest.raises(ValueError, match=r"`sem_seg_head\.classifier` must be one of"):
        authors_order(model)


def test_authors_order_has_the_same_loss() -> None:
    model, authors = build("offseg_t")
    samples = random_batch([(64, 64), (50, 96)])
    for part in (model, authors):
        part.train()
    expected = model(samples)["loss_sem_seg"]
    assert_close(authors(samples)["loss_sem_seg"], expected)


@pytest.mark.parametrize("training", [True, False])
@torch.no_grad()
def test_backbone_maps_have_their_channels_outermost(training: bool) -> None:
    authors = authors_order(build_offseg(*SMALL_OFFSEG)).train(training)
    maps = []
    for layer in authors.backbone.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda layer, inputs, out: maps.append(out))
    authors.backbone(torch.randn(2, 3, 64, 96))
    assert len(maps) > 50 and all(out.is_contiguous() for out in maps)


def test_choices_of_an_instance_are_taken_back() -> None:
    model = build_offseg(*SMALL_OFFSEG)
    model.backbone.memory_format = torch.channels_last
    authors = authors_order(model)
    assert authors.backbone.memory_format == torch.contiguous_format
    assert model.backbone.memory_format == torch.channels_last
