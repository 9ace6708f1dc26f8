"""The plain and the offset mask predictor, and the choice between them."""

import pytest
import torch
from torch import Tensor

from offseg_d2.modeling import OffsetMaskPredictor, PlainMaskPredictor, build_mask_predictor
from tests.common import assert_close

SWITCHES = [(True, True), (True, False), (False, True), (False, False)]


def make(dim: int = 6, **switches: bool) -> OffsetMaskPredictor:
    predictor = OffsetMaskPredictor(dim, **switches).double()
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return predictor


def inputs(batch: int = 2, queries: int = 4, dim: int = 6, size=(3, 5)) -> tuple[Tensor, Tensor]:
    return (
        torch.randn(batch, queries, dim, dtype=torch.float64),
        torch.randn(batch, dim, *size, dtype=torch.float64),
    )


@pytest.mark.parametrize(("class_offset", "feature_offset"), SWITCHES)
def test_masks_are_those_of_the_readable_form(class_offset, feature_offset):
    predictor = make(class_offset=class_offset, feature_offset=feature_offset)
    embeddings, features = inputs()
    pixels, queries = predictor.offset_learning(features.flatten(2).mT, embeddings)
    expected = torch.einsum("bqc,bnc->bqn", queries, pixels).view(2, 4, 3, 5)
    masks = predictor(embeddings, features)
    assert masks.is_contiguous()
    assert_close(masks, expected, 1e-12)


def test_plain_masks_are_inner_products_without_weights():
    predictor, (embeddings, features) = PlainMaskPredictor(), inputs()
    expected = torch.einsum("bqc,bchw->bqhw", embeddings, features)
    assert_close(predictor(embeddings, features), expected, 1e-12)
    assert not predictor.state_dict()


def test_without_offsets_both_are_the_same():
    embeddings, features = inputs()
    predictor = make(class_offset=False, feature_offset=False)
    assert not predictor.state_dict()
    assert_close(predictor(embeddings, features), PlainMaskPredictor()(embeddings, features), 1e-12)


@pytest.mark.parametrize("name", ["offset", "plain"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_masks_are_those_of_the_rounded_inputs_in_float32(name, dtype):
    predictor = build_mask_predictor(name, 64)
    embeddings, features = (x.to(dtype) for x in inputs(2, 10, 64, (8, 8)))
    with torch.autocast("cpu", dtype):
        masks = predictor(embeddings, features)
    assert masks.dtype == torch.float32
    assert torch.equal(masks, predictor(embeddings.float(), features.float()))


def test_name_and_switches_choose():
    both = build_mask_predictor("offset", 8)
    assert {n: tuple(p.shape) for n, p in both.named_parameters()} == {
        "offset_learning.class_offset_proj.weight": (8, 8),
        "offset_learning.feature_offset_proj.weight": (8, 8),
    }
    one = build_mask_predictor("offset", 8, class_offset=False)
    assert list(one.state_dict()) == ["offset_learning.feature_offset_proj.weight"]
    assert isinstance(build_mask_predictor("plain", 8), PlainMaskPredictor)


def test_unknown_name_is_refused():
    message = (
        r"^`MODEL.SEM_SEG_HEAD.CLASSIFIER` must be one of \['offset', 'plain'\], but is 'on'\.$"
    )
    with pytest.raises(ValueError, match=message):
        build_mask_predictor("on", 8)
