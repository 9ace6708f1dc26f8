"""The parts of the fast OffSeg, each against its readable form."""

import pytest
import torch
from torch import nn

from offseg_d2.deploy.attention_bias import ResizedBias
from offseg_d2.deploy.freq_fusion import FastFreqFusion, similarity
from offseg_d2.deploy.group_norm import group_norm_
from offseg_d2.deploy.offset_classifier import FastOffsetClassifier, _largest, _mean_features
from offseg_d2.deploy.reassembly import neighbours, reassemble
from offseg_d2.layers import FreqFusion, carafe, neighbour_similarity
from offseg_d2.modeling.backbone.efficientformer_v2_attention import AttentionBias
from offseg_d2.modeling.classifiers import OffsetClassifier
from tests.common import assert_close, seed_all, spread_weights

REASON = "float32 sums in another order"


@pytest.mark.parametrize("mean", [0.0, 100.0, 1000.0])
@pytest.mark.parametrize("size", [(1, 1), (9, 14)])
def test_group_norm_is_exact_where_the_mean_is_large(mean, size):
    seed_all()
    norm = spread_weights(nn.GroupNorm(4, 16)).requires_grad_(False)
    tokens = torch.randn(2, *size, 16) + mean
    expected = norm.double()(tokens.double().permute(0, 3, 1, 2)).permute(0, 2, 3, 1).float()
    actual = group_norm_(tokens, norm.float())
    assert actual.data_ptr() == tokens.data_ptr()
    assert_close(actual, expected, 1e-3, reason="values near 1000 are only known to 6e-5")


@pytest.mark.parametrize("mean", [0.0, 300.0])
def test_statistics_of_blocks_of_rows_are_joined(mean, monkeypatch):
    monkeypatch.setattr("offseg_d2.deploy.group_norm._BLOCK_VALUES", 500)
    seed_all()
    norm = spread_weights(nn.GroupNorm(4, 16)).requires_grad_(False)
    ramp = torch.linspace(-3, 3, 23)[:, None, None]  # so that the blocks differ
    tokens = torch.randn(2, 23, 14, 16) + ramp + mean
    expected = norm.double()(tokens.double().permute(0, 3, 1, 2)).relu().permute(0, 2, 3, 1)
    actual = group_norm_(tokens.clone(), norm.float(), relu=True)
    assert_close(actual, expected.float(), 3e-4, reason="values near 300 are only known to 2e-5")


@pytest.mark.parametrize(("kernel_size", "scale"), [(3, 1), (5, 2), (5, 1)])
@pytest.mark.parametrize("size", [(1, 1), (2, 7), (6, 4)])
def test_reassembly_is_carafe(kernel_size, scale, size):
    seed_all()
    features = torch.randn(2, 6, *size)
    kernels = torch.rand(2, kernel_size**2, size[0] * scale, size[1] * scale)
    _, inside = neighbours(size, kernel_size, scale, features)
    rows = kernels.permute(0, 2, 3, 1).flatten(1, 2) * inside
    actual = reassemble(features.permute(0, 2, 3, 1).contiguous(), rows, kernel_size, scale)
    assert_close(actual.permute(0, 3, 1, 2), carafe(features, kernels, kernel_size, scale))


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 2), (7, 9)])
def test_similarity_is_that_of_the_readable_form(size):
    seed_all()
    features = torch.randn(2, 8, *size)
    actual = similarity(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert_close(actual, neighbour_similarity(features))


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 6)])
def test_freq_fusion_is_that_of_the_readable_form(size):
    seed_all()
    fusion = spread_weights(FreqFusion(16, 48)).eval()
    hr, lr = torch.randn(2, 16, 2 * size[0], 2 * size[1]), torch.randn(2, 48, *size)
    with torch.inference_mode():
        expected = fusion(hr, lr)
        innermost = (x.permute(0, 2, 3, 1).contiguous() for x in (hr, lr))
        actual = FastFreqFusion(fusion)(*innermost)
    for a, e in zip(actual, expected, strict=True):
        assert_close(a.permute(0, 3, 1, 2), e, 1e-4, reason=REASON)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 300])
def test_largest_similarities_are_the_columns_largest(count):
    seed_all()
    scores = torch.randn(count, 7) - 5
    assert torch.equal(_largest(scores), scores.amax(0))


@pytest.mark.parametrize("count", [48, 50])
@pytest.mark.parametrize("threads", [1, 3])
def test_mean_features_are_the_same_for_any_number_of_threads(count, threads, monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    seed_all()
    features, scores = torch.randn(count, 8), 3 * torch.randn(count, 7)
    blocks = list(zip(features.split(24), scores.split(24), strict=True))
    actual = _mean_features(blocks, _largest(scores))
    assert_close(actual, scores.softmax(0).mT @ features)


@pytest.mark.parametrize("class_offset", [True, False])
@pytest.mark.parametrize("feature_offset", [True, False])
@pytest.mark.parametrize(
    ("channels_last", "class_norm"), [(True, True), (False, True), (True, False)]
)
def test_offset_classifier_is_that_of_the_readable_form(
    class_offset, feature_offset, channels_last, class_norm
):
    seed_all()
    offsets = {"class_offset": class_offset, "feature_offset": feature_offset}
    offsets["class_norm"] = class_norm
    classifier = spread_weights(OffsetClassifier(32, 7, **offsets)).eval()
    nn.init.normal_(classifier.class_representations)
    features = torch.randn(2, 32, 5, 9)
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        actual, expected = FastOffsetClassifier(classifier)(features), classifier(features)
    assert actual.stride()[1] == 1, "classes innermost, as the argmax reads them"
    assert_close(actual, expected, 1e-4, reason=REASON)


@pytest.mark.parametrize("counts", [(16, 64), (4, 16), (35, 140), (40, 160)])
@pytest.mark.parametrize("whole_bytes", [0, 1 << 20])
def test_biases_are_those_of_the_readable_form(counts, whole_bytes, monkeypatch):
    monkeypatch.setattr("offseg_d2.deploy.attention_bias._WHOLE_BYTES", whole_bytes)
    seed_all()
    bias = AttentionBias(4, 8).eval()
    nn.init.normal_(bias.table)
    if whole_bytes == 0 and counts[0] < 16:
        pytest.skip("row by row is for what is larger than the nominal size")
    with torch.no_grad():
        expected = bias(*counts)[0]
    fast = ResizedBias(bias)
    parts = [fast.rows(*counts, i, min(i + 3, counts[0])) for i in range(0, counts[0], 3)]
    assert_close(torch.cat(parts, dim=1), expected)
