"""The plain and the offset classifier, and the choice between them."""

import pytest
import torch
from torch import nn

from offseg_d2.modeling import OffsetClassifier, PlainClassifier, build_classifier
from offseg_d2.modeling.offset_learning import OffsetLearning
from tests.common import assert_close

SWITCHES = [(True, True), (True, False), (False, True), (False, False)]


def make(dim: int = 6, classes: int = 4, **switches: bool) -> OffsetClassifier:
    """A classifier with sizeable weights in float64."""
    classifier = OffsetClassifier(dim, classes, **switches).double()
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return classifier


def features(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize(("class_offset", "feature_offset"), SWITCHES)
def test_logits_are_the_normalised_scores_of_the_readable_form(class_offset, feature_offset):
    classifier = make(class_offset=class_offset, feature_offset=feature_offset)
    pixel_features = features(2, 6, 3, 5)
    pixels = pixel_features.flatten(2).mT
    aligned_pixels, aligned_classes = classifier.offset_learning(
        pixels, classifier.class_representations
    )
    scores = aligned_pixels @ aligned_classes.mT  # (B, N, K)
    centred = scores - scores.mean(2, keepdim=True)
    deviation = (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()
    expected = centred / deviation * classifier.norm.weight + classifier.norm.bias
    logits = classifier(pixel_features)
    assert logits.shape == (2, 4, 3, 5)
    assert_close(logits, expected.mT.reshape(2, 4, 3, 5), 1e-12)


def test_without_offsets_it_is_a_linear_classifier_without_bias_and_a_norm():
    classifier = make(class_offset=False, feature_offset=False)
    pixel_features = features(2, 6, 3, 5)
    weight = classifier.class_representations[:, :, None, None]
    scores = torch.conv2d(pixel_features, weight).movedim(1, -1)
    assert_close(classifier(pixel_features), classifier.norm(scores).movedim(-1, 1), 1e-12)
    assert set(classifier.state_dict()) == {"class_representations", "norm.weight", "norm.bias"}


@pytest.mark.parametrize(("class_offset", "feature_offset"), SWITCHES)
def test_without_the_norm_logits_are_the_scores(class_offset, feature_offset):
    switches = {"class_offset": class_offset, "feature_offset": feature_offset}
    classifier, free = make(**switches), make(**switches, class_norm=False)
    free.load_state_dict(classifier.state_dict(), strict=False)
    assert set(classifier.state_dict()) - set(free.state_dict()) == {"norm.weight", "norm.bias"}
    pixel_features = features(2, 6, 3, 5)
    scores = free(pixel_features)
    normalised = classifier.norm(scores.movedim(1, -1)).movedim(-1, 1)
    assert_close(normalised, classifier(pixel_features), 1e-12)
    # The bound of the norm does not hold for them.
    assert free(100 * pixel_features).abs().max() > 3**0.5
    classifier.norm.reset_parameters()
    assert classifier(100 * pixel_features).abs().max() <= 3**0.5


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (4, 4)])
@pytest.mark.parametrize(("class_offset", "feature_offset"), SWITCHES)
def test_gradients_equal_finite_differences(class_offset, feature_offset, size):
    classifier = make(3, 4, class_offset=class_offset, feature_offset=feature_offset)
    names, values = zip(*classifier.named_parameters(), strict=True)

    def run(pixel_features: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        named = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(classifier, named, (pixel_features,))

    inputs = [features(2, 3, *size), *(v.detach().clone() for v in values)]
    assert torch.autograd.gradcheck(run, [x.requires_grad_() for x in inputs])


def test_classes_permute_with_their_weights():
    classifier, permuted = make(), make()
    order = torch.tensor([3, 1, 0, 2])
    state = classifier.state_dict()
    for name in ("class_representations", "norm.weight", "norm.bias"):
        state[name] = state[name][order]
    permuted.load_state_dict(state)
    pixel_features = features(2, 6, 3, 5)
    assert_close(permuted(pixel_features), classifier(pixel_features)[:, order], 1e-12)


@pytest.mark.parametrize("kind", ["contiguous", "channels_last"])
def test_memory_format_of_the_input_does_not_matter(kind):
    classifier, pixel_features = make(), features(2, 6, 4, 5)
    expected = classifier(pixel_features)
    formats = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    assert_close(classifier(pixel_features.to(memory_format=formats[kind])), expected, 1e-12)
    assert classifier(pixel_features).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_offsets_in_float32(dtype, monkeypatch):
    seen: list[tuple[torch.dtype, torch.dtype]] = []
    scores = OffsetLearning.scores
    softmax = torch.Tensor.softmax

    def record(self, pixels, representations):
        seen.append((pixels.dtype, representations.dtype))
        return scores(self, pixels, representations)

    def record_softmax(self, *args, **kwargs):
        result = softmax(self, *args, **kwargs)
        seen.append((self.dtype, result.dtype))
        return result

    monkeypatch.setattr(OffsetLearning, "scores", record)
    monkeypatch.setattr(torch.Tensor, "softmax", record_softmax)
    classifier = OffsetClassifier(8, 4)
    with torch.autocast("cpu", dtype):
        logits = classifier(torch.randn(1, 8, 4, 4).to(dtype))
    assert seen == [(torch.float32, torch.float32)] * 3  # pixels, and both softmaxes
    assert logits.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_result_is_that_of_the_rounded_input_in_float32(dtype):
    classifier = OffsetClassifier(64, 10)
    nn.init.normal_(classifier.class_representations)
    pixel_features = torch.randn(2, 64, 8, 8).to(dtype)
    with torch.autocast("cpu", dtype):
        actual = classifier(pixel_features)
    assert torch.equal(actual, classifier(pixel_features.float()))


def test_large_features_do_not_overflow_in_half_precision():
    classifier = OffsetClassifier(256, 19)
    nn.init.normal_(classifier.class_representations, std=10.0)
    pixel_features = (300 * torch.randn(1, 256, 16, 16)).half()
    unprotected = classifier.class_representations.half() @ pixel_features.flatten(2)
    assert unprotected.isinf().any()  # the similarity itself leaves the range
    with torch.autocast("cpu", torch.float16):
        logits = classifier(pixel_features)
        logits.square().mean().backward()
    assert logits.isfinite().all()
    for name, parameter in classifier.named_parameters():
        assert parameter.grad.isfinite().all(), name


def test_number_of_parameters_is_that_of_the_paper():
    # K C + 2 C^2 + 2 K; the 1x1 convolution has K C + K
    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    assert count(OffsetClassifier(256, 150)) == 169_772
    assert count(OffsetClassifier(256, 150, class_offset=False)) == 169_772 - 256**2
    assert count(OffsetClassifier(256, 150, feature_offset=False)) == 169_772 - 256**2
    assert count(PlainClassifier(256, 150)) == 38_550


def test_weights_start_as_published():
    classifier = OffsetClassifier(256, 150)
    assert classifier.class_representations.std().item() == pytest.approx(0.02, rel=0.02)
    assert classifier.class_representations.abs().max().item() > 0.07
    assert classifier.norm.weight.eq(1).all() and not classifier.norm.bias.any()
    assert classifier.norm.eps == 1e-5
    plain = PlainClassifier(256, 150)
    assert plain.predictor.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not plain.predictor.bias.any()


def test_plain_classifier_drops_whole_channels_in_training_only():
    plain = PlainClassifier(50, 3, dropout=0.5)
    nn.init.eye_(plain.predictor.weight.data.view(3, 50))
    pixel_features = torch.rand(40, 50, 2, 2) + 1
    out = plain.train()(pixel_features)
    dropped = out.eq(0)
    assert torch.equal(dropped.all((2, 3)), dropped.any((2, 3)))  # all pixels of a channel or none
    assert 0.3 < dropped.all((2, 3)).float().mean().item() < 0.7
    assert_close(plain.eval()(pixel_features), pixel_features[:, :3])


def test_offset_classifier_has_no_dropout():
    classifier = make().train()
    pixel_features = features(1, 6, 3, 3)
    assert torch.equal(classifier(pixel_features), classifier(pixel_features))
    assert not any(isinstance(m, nn.modules.dropout._DropoutNd) for m in classifier.modules())


def test_name_chooses_the_classifier_and_passes_its_settings():
    offset = build_classifier("offset", 8, 3, class_offset=False)
    assert isinstance(offset, OffsetClassifier)
    assert offset.offset_learning.class_offset_proj is None
    assert offset.offset_learning.feature_offset_proj is not None
    plain = build_classifier("plain", 8, 3, dropout=0.25)
    assert isinstance(plain, PlainClassifier) and plain.dropout.p == 0.25


@pytest.mark.parametrize("name", ["Offset", "", "linear"])
def test_unknown_name_is_refused(name):
    message = (
        r"^`MODEL.SEM_SEG_HEAD.CLASSIFIER` must be one of \['offset', 'plain'\], "
        rf"but is '{name}'\.$"
    )
    with pytest.raises(ValueError, match=message):
        build_classifier(name, 8, 3)
