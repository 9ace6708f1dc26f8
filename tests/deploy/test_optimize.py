"""An optimized model is the model, only faster."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from offseg_d2.analysis import count_macs
from offseg_d2.analysis.mac_rules import CONVOLUTION, MATRIX
from offseg_d2.deploy import optimize
from tests.common import SMALL_OFFSEG, assert_close, build_offseg, random_batch, seed_all
from tests.common import spread_weights as spread

REASON = "sums of thousands of float32 products in another order, through dozens of layers"


def spread_weights(model: nn.Module) -> nn.Module:
    """Weights and statistics none of which is inert."""
    spread(model)
    for layer in model.modules():
        if isinstance(layer, _BatchNorm):
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.8, 1.2)
    return model.eval()


def logits(model: nn.Module, batch: list[dict]) -> list[torch.Tensor]:
    with torch.inference_mode():
        return [x["sem_seg"] for x in model(batch)]


def assert_same_predictions(model: nn.Module, fast: nn.Module, batch: list[dict]) -> None:
    for expected, actual in zip(logits(model, batch), logits(fast, batch), strict=True):
        scale = expected.abs().max()
        assert_close(actual / scale, expected / scale, 1e-4, reason=REASON)
    pairs = zip(model.predict_label_maps(batch), fast.predict_label_maps(batch), strict=True)
    for expected, actual in pairs:
        agreement = (expected["sem_seg"] == actual["sem_seg"]).double().mean()
        assert agreement >= 0.9995, agreement  # 1e-4 of a few thousand pixels is less than one


def small() -> nn.Module:
    seed_all()
    return spread_weights(build_offseg(*SMALL_OFFSEG))


@pytest.mark.parametrize(
    ("model", "opts"),
    [
        ("offseg_t", ()),
        ("offseg_b", ()),
        ("offseg_l", ()),
        ("offseg_t", (*SMALL_OFFSEG, "MODEL.SEM_SEG_HEAD.CLASSIFIER", "plain")),
        ("offseg_t", (*SMALL_OFFSEG, "MODEL.SEM_SEG_HEAD.FEATURE_OFFSET", False)),
        ("offseg_t", (*SMALL_OFFSEG, "MODEL.SEM_SEG_HEAD.CLASS_OFFSET", False)),
        (
            "offseg_t",
            (
                *SMALL_OFFSEG,
                *("TEST.SEM_SEG.MODE", "slide", "TEST.SEM_SEG.CROP_SIZE", [64, 64]),
                *("TEST.SEM_SEG.STRIDE", [40, 40]),
            ),
        ),
    ],
    ids=["t", "b", "l", "plain", "class offset only", "feature offset only", "sliding window"],
)
def test_optimized_models_give_the_models_predictions(model, opts):
    seed_all()
    model = spread_weights(build_offseg(*opts, model=model))
    fast = optimize(model)
    for sizes in ([(96, 64)], [(70, 101)] * 2, [(96, 64), (64, 96)], [(33, 200)]):
        assert_same_predictions(model, fast, random_batch(sizes))


def test_long_token_sequences_go_through_attention_in_blocks(monkeypatch):
    monkeypatch.setattr("offseg_d2.deploy.efficientformer._BLOCK_VALUES", 500)
    monkeypatch.setattr("offseg_d2.deploy.feed_forward.BAND_BYTES", 1 << 14)
    monkeypatch.setattr("offseg_d2.deploy.attention_bias._WHOLE_BYTES", 0)
    monkeypatch.setattr("offseg_d2.deploy.group_norm._BLOCK_VALUES", 1000)
    monkeypatch.setattr("offseg_d2.deploy.offset_classifier._BLOCK_VALUES", 1000)
    model = small()
    assert_same_predictions(model, optimize(model), random_batch([(128, 160)] * 2))


def test_optimized_model_in_double_precision_is_the_model():
    """Without rounding in the way, nothing is left but the mathematics."""
    model = small().double()
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        expected, actual = (x.forward_network(images) for x in (model, optimize(model)))
    assert (actual - expected).abs().max() < 1e-9 * expected.abs().max()


def test_the_original_is_not_changed():
    model = small()
    batch = random_batch([(64, 64)])
    before, state = logits(model, batch)[0], copy.deepcopy(model.state_dict())
    optimize(model)
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())
    assert torch.equal(logits(model, batch)[0], before)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_no_batch_norm_is_left():
    fast = optimize(small())
    assert not [name for name, m in fast.named_modules() if isinstance(m, _BatchNorm)]


def test_an_optimized_model_can_be_copied():
    fast = optimize(small())
    batch = random_batch([(64, 96)])
    assert torch.equal(logits(copy.deepcopy(fast), batch)[0], logits(fast, batch)[0])


def test_training_mode_is_refused_before_and_after():
    model = small()
    with pytest.raises(ValueError, match=r"must be in evaluation mode"):
        optimize(model.train())
    fast = optimize(model.eval())
    with pytest.raises(RuntimeError, match=r"must be in evaluation mode"):
        fast.train()(random_batch([(64, 64)]))


@pytest.mark.parametrize("model", ["segformer_b0", "mask2former_offseg_t"])
def test_models_without_a_deployed_form_are_refused(model):
    with pytest.raises(ValueError, match=r"only OffSeg .* `offseg demo --onnx FILE"):
        optimize(build_offseg(model=model).eval())


@torch.no_grad()
def test_packed_layers_count_as_many_multiply_adds_as_the_usual_ones():
    fast = optimize(small())
    fast.forward = fast.forward_network
    image = torch.randn(1, 3, 64, 64)
    packed = count_macs(fast, image, fake=False).by_kind()
    with torch.backends.mkldnn.flags(enabled=False):
        usual = count_macs(fast, image, fake=False).by_kind()
    assert packed == usual
    assert packed[CONVOLUTION] > 0 and packed[MATRIX] > 0
