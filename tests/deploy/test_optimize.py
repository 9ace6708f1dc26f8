"""An optimized model is the model, only faster."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from offseg_d2.analysis import count_macs
from offseg_d2.analysis.mac_rules import CONVOLUTION, MATRIX
from offseg_d2.deploy import optimize
from offseg_d2.deploy.folding import fold_batch_norms
from offseg_d2.deploy.rules import rule
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


def small(*opts, **kwargs) -> nn.Module:
    seed_all()
    return spread_weights(build_offseg(*SMALL_OFFSEG, *opts, **kwargs))


@pytest.mark.parametrize("model", ["offseg_t", "offseg_b", "offseg_l"])
def test_optimized_offseg_gives_the_models_predictions(model):
    seed_all()
    model = spread_weights(build_offseg(model=model))
    assert_same_predictions(model, optimize(model), random_batch([(64, 96)]))


def test_predictions_are_right_for_one_size_after_another_and_for_batches():
    model = small()
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


@pytest.mark.parametrize(
    "opts",
    [
        ("MODEL.SEM_SEG_HEAD.CLASSIFIER", "plain"),
        ("MODEL.SEM_SEG_HEAD.FEATURE_OFFSET", False),
        ("MODEL.SEM_SEG_HEAD.CLASS_OFFSET", False),
        (
            *("TEST.SEM_SEG.MODE", "slide"),
            *("TEST.SEM_SEG.CROP_SIZE", [64, 64], "TEST.SEM_SEG.STRIDE", [40, 40]),
        ),
    ],
    ids=["plain", "class offset only", "feature offset only", "sliding window"],
)
def test_every_classifier_and_inference_mode_is_kept(opts):
    model = small(*opts)
    assert_same_predictions(model, optimize(model), random_batch([(96, 96)]))


def test_weights_may_stay_in_the_default_memory_format():
    model = small()
    assert_same_predictions(
        model, optimize(model, channels_last=False), random_batch([(64, 96)] * 2)
    )


def test_the_original_is_not_changed():
    model = small()
    batch = random_batch([(64, 64)])
    before, state = logits(model, batch)[0], copy.deepcopy(model.state_dict())
    classes = [type(module) for module in model.modules()]
    optimize(model)
    assert [type(module) for module in model.modules()] == classes
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())
    assert torch.equal(logits(model, batch)[0], before)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_no_batch_norm_is_left():
    fast = optimize(small())
    assert not [name for name, m in fast.named_modules() if isinstance(m, _BatchNorm)]


def test_scores_and_probabilities_have_the_interface_of_the_model():
    model = small()
    fast = optimize(model)
    batch = random_batch([(64, 96)])
    for (_, expected), (_, actual) in zip(
        model.stream_scores(batch), fast.stream_scores(batch), strict=True
    ):
        assert expected.size == actual.size == (64, 96)
    scores = torch.randn(5, 3, 4)
    assert torch.equal(fast.probabilities(scores), model.probabilities(scores))


def test_an_optimized_model_can_be_copied_and_optimized_again():
    model = small()
    fast = optimize(model)
    batch = random_batch([(64, 96)])
    expected = logits(fast, batch)[0]
    assert torch.equal(logits(copy.deepcopy(fast), batch)[0], expected)
    assert_close(logits(optimize(fast), batch)[0], expected)


def test_bfloat16_backbone_keeps_most_labels():
    model = small()
    fast = optimize(model, dtype=torch.bfloat16)
    batch = random_batch([(96, 96)])
    assert {p.dtype for p in fast.backbone.parameters()} == {torch.bfloat16}
    assert logits(fast, batch)[0].dtype == torch.float32
    expected, actual = logits(model, batch)[0], logits(fast, batch)[0]
    assert (expected.argmax(0) == actual.argmax(0)).double().mean() > 0.9
    assert not torch.equal(expected, actual)


def test_torchvision_network_is_folded():
    torchvision = pytest.importorskip("torchvision")
    seed_all()
    model = spread_weights(torchvision.models.mobilenet_v2(num_classes=7))
    fast = optimize(model)
    assert not [m for m in fast.modules() if isinstance(m, _BatchNorm)]
    image = torch.randn(2, 3, 64, 64)
    assert_close(fast(image), model(image), 1e-4, reason=REASON)


def test_timm_network_with_activations_in_its_norms_is_folded():
    timm = pytest.importorskip("timm")
    seed_all()
    model = spread_weights(timm.create_model("mobilenetv3_small_050", num_classes=7))
    fast = optimize(model)
    assert not [m for m in fast.modules() if isinstance(m, _BatchNorm)]
    image = torch.randn(1, 3, 64, 64)
    assert_close(fast(image), model(image), 1e-4, reason=REASON)


class _TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.conv(x)
        return x + self.norm(x)


class _NormTwice(_TwoReaders):
    def forward(self, x):
        return self.norm(self.norm(self.conv(x)))


class _DependsOnValues(_TwoReaders):
    def forward(self, x):
        x = self.conv(x)
        return self.norm(x) if x.sum() > 0 else x


@pytest.mark.parametrize("kind", [_TwoReaders, _NormTwice, _DependsOnValues])
def test_norms_that_cannot_be_folded_stay(kind):
    seed_all()
    model = spread_weights(kind())
    twin = copy.deepcopy(model)
    assert fold_batch_norms(model) == 0
    image = torch.randn(1, 3, 5, 5)
    assert torch.equal(model(image), twin(image))


def test_shared_convolution_is_not_folded():
    seed_all()
    shared = nn.Conv2d(3, 3, 1)
    model = nn.Sequential(shared, nn.BatchNorm2d(3), shared)
    twin = copy.deepcopy(spread_weights(model))
    assert fold_batch_norms(model) == 0
    image = torch.randn(1, 3, 5, 5)
    assert torch.equal(model(image), twin(image))


def test_training_mode_is_refused_before_and_after():
    model = small()
    with pytest.raises(ValueError, match=r"must be in evaluation mode"):
        optimize(model.train())
    fast = optimize(model.eval())
    with pytest.raises(RuntimeError, match=r"must be in evaluation mode"):
        fast.train()(random_batch([(64, 64)]))


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match=r"`model` must be a torch.nn.Module, but is str"):
        optimize("offseg_t")


def test_unsupported_type_is_refused():
    with pytest.raises(ValueError, match=r"`dtype` must be None or one of .* but is torch.int8"):
        optimize(nn.Conv2d(1, 1, 1).eval(), dtype=torch.int8)


def test_a_class_has_one_rule():
    class Own(nn.Module):
        pass

    rule(Own)(lambda module: None)
    with pytest.raises(ValueError, match="once per class"):
        rule(Own)(lambda module: None)


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
