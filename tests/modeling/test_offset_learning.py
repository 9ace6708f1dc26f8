"""Offset learning: the algebra by hand, invariants, the fast form, gradients."""

import math

import pytest
import torch
from torch import Tensor, nn

from offseg_d2.modeling.offset_learning import OffsetLearning
from tests.common import assert_close

SWITCHES = [(True, True), (True, False), (False, True), (False, False)]


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(v) for v in values]
    return [p / sum(powers) for p in powers]


def dot(first: list[float], second: list[float]) -> float:
    return sum(a * b for a, b in zip(first, second, strict=True))


def by_hand(
    pixels: list[list[float]],
    classes: list[list[float]],
    class_proj: list[list[float]] | None,
    feature_proj: list[list[float]] | None,
) -> tuple[list[list[float]], list[list[float]]]:
    """Aligned pixels and classes of one image, in plain loops over the paper's sums."""
    n_pixels, n_classes, dim = len(pixels), len(classes), len(pixels[0])
    similarity = [[dot(p, c) for p in pixels] for c in classes]  # (K, N)
    aligned_classes = [list(c) for c in classes]
    if class_proj is not None:
        for k in range(n_classes):
            attention = softmax(similarity[k])
            mean = [sum(attention[n] * pixels[n][i] for n in range(n_pixels)) for i in range(dim)]
            for j in range(dim):
                aligned_classes[k][j] += dot(class_proj[j], mean)
    aligned_pixels = [list(p) for p in pixels]
    if feature_proj is not None:
        for n in range(n_pixels):
            attention = softmax([similarity[k][n] for k in range(n_classes)])
            mean = [sum(attention[k] * classes[k][i] for k in range(n_classes)) for i in range(dim)]
            for j in range(dim):
                aligned_pixels[n][j] += dot(feature_proj[j], mean)
    return aligned_pixels, aligned_classes


def make(dim: int, switches: tuple[bool, bool] = (True, True), scale: float = 0.5):
    learning = OffsetLearning(dim, class_offset=switches[0], feature_offset=switches[1]).double()
    for parameter in learning.parameters():
        nn.init.normal_(parameter, std=scale)
    return learning


def projections(learning: OffsetLearning) -> list[list[list[float]] | None]:
    both = (learning.class_offset_proj, learning.feature_offset_proj)
    return [None if p is None else p.weight.tolist() for p in both]


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def test_two_pixels_and_two_classes_calculated_on_paper():
    learning = OffsetLearning(2).double()
    with torch.no_grad():
        # P_c = 1; P_f swaps the two channels
        learning.class_offset_proj.weight.copy_(torch.eye(2))
        learning.feature_offset_proj.weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    pixels = torch.tensor([[[0.0, 0.0], [math.log(3.0), 0.0]]], dtype=torch.float64)
    classes = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    # A = [[0, 0], [log 3, 0]] (pixel, class).
    # Class 0 attends to the pixels with 1/4, 3/4, class 1 with 1/2, 1/2.
    # Pixel 0 attends to the classes with 1/2, 1/2, pixel 1 with 3/4, 1/4.
    aligned_pixels, aligned_classes = learning(pixels, classes)
    log3 = math.log(3.0)
    expected = torch.tensor([[[1 + 0.75 * log3, 0.0], [0.5 * log3, 2.0]]], dtype=torch.float64)
    assert_close(aligned_classes, expected, 1e-12)
    # means of the classes: (1/2, 1), (3/4, 1/2), swapped by P_f
    expected = torch.tensor([[[1.0, 0.5], [log3 + 0.5, 0.75]]], dtype=torch.float64)
    assert_close(aligned_pixels, expected, 1e-12)


@pytest.mark.parametrize("switches", SWITCHES)
def test_equals_the_sums_in_plain_loops(switches):
    learning = make(3, switches)
    pixels, classes = numbers(2, 5, 3), numbers(4, 3)
    aligned_pixels, aligned_classes = learning(pixels, classes)
    for b in range(2):
        expected = by_hand(pixels[b].tolist(), classes.tolist(), *projections(learning))
        for actual, by_loop in zip((aligned_pixels[b], aligned_classes[b]), expected, strict=True):
            assert_close(actual, torch.tensor(by_loop, dtype=torch.float64), 1e-12)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("switches", SWITCHES)
def test_fast_form_equals_readable_form(switches, per_sample):
    learning = make(7, switches)
    pixels = numbers(3, 20, 7)
    classes = numbers(3, 6, 7) if per_sample else numbers(6, 7)
    aligned_pixels, aligned_classes = learning(pixels, classes)
    expected = aligned_pixels @ aligned_classes.mT
    assert_close(learning.scores(pixels, classes), expected, 1e-12)


def test_fast_form_has_the_gradients_of_the_readable_form():
    learning = make(7)
    pixels, classes = numbers(2, 20, 7), numbers(2, 6, 7)
    weights = numbers(2, 20, 6)
    results = []
    for fast in (True, False):
        learning.zero_grad()
        inputs = [x.clone().requires_grad_() for x in (pixels, classes)]
        if fast:
            scores = learning.scores(*inputs)
        else:
            aligned_pixels, aligned_classes = learning(*inputs)
            scores = aligned_pixels @ aligned_classes.mT
        (scores * weights).sum().backward()
        sources = [*inputs, *learning.parameters()]
        results.append([source.grad.clone() for source in sources])
    for fast_gradient, readable_gradient in zip(*results, strict=True):
        assert_close(fast_gradient, readable_gradient, 1e-10)


def test_zero_projections_leave_the_plain_inner_product():
    learning = make(5)
    for parameter in learning.parameters():
        nn.init.zeros_(parameter)
    pixels, classes = numbers(2, 6, 5), numbers(3, 5)
    aligned_pixels, aligned_classes = learning(pixels, classes)
    assert torch.equal(aligned_pixels, pixels)
    assert torch.equal(aligned_classes, classes.expand(2, -1, -1))
    assert_close(learning.scores(pixels, classes), pixels @ classes.T, 1e-12)


@pytest.mark.parametrize("form", ["forward", "scores"])
def test_classes_permute_with_their_representations(form):
    learning = make(5)
    pixels, classes = numbers(2, 8, 5), numbers(4, 5)
    order = torch.tensor([2, 0, 3, 1])
    if form == "scores":
        moved = learning.scores(pixels, classes[order])
        assert_close(moved, learning.scores(pixels, classes)[..., order], 1e-12)
        return
    aligned_pixels, aligned_classes = learning(pixels, classes)
    moved_pixels, moved_classes = learning(pixels, classes[order])
    assert_close(moved_pixels, aligned_pixels, 1e-12)
    assert_close(moved_classes, aligned_classes[:, order], 1e-12)


def test_pixels_permute_and_leave_the_classes_alone():
    learning = make(5)
    pixels, classes = numbers(2, 8, 5), numbers(4, 5)
    order = torch.randperm(8)
    aligned_pixels, aligned_classes = learning(pixels, classes)
    moved_pixels, moved_classes = learning(pixels[:, order], classes)
    assert_close(moved_pixels, aligned_pixels[:, order], 1e-12)
    assert_close(moved_classes, aligned_classes, 1e-12)
    scores = learning.scores(pixels, classes)
    assert_close(learning.scores(pixels[:, order], classes), scores[:, order], 1e-12)


def test_samples_of_a_batch_do_not_influence_each_other():
    learning = make(5)
    pixels, classes = numbers(3, 8, 5), numbers(4, 5)
    together = learning.scores(pixels, classes)
    for b in range(3):
        assert_close(together[b], learning.scores(pixels[b : b + 1], classes)[0], 1e-12)


def test_similarity_is_not_scaled():
    # Doubling the channels by repetition doubles the similarity; with 1/sqrt(C) it would not.
    learning = make(2)
    with torch.no_grad():
        learning.class_offset_proj.weight.copy_(torch.eye(2))
    pixels, classes = numbers(1, 6, 2), numbers(3, 2)
    _, aligned = learning(pixels, classes)
    attention = (classes @ pixels[0].T).softmax(1)
    assert_close(aligned[0], classes + attention @ pixels[0], 1e-12)


def test_both_offsets_read_the_unmoved_pair():
    # Aligned classes do not change with P_f, nor aligned pixels with P_c.
    learning, pixels, classes = make(4), numbers(1, 6, 4), numbers(3, 4)
    aligned_classes = learning(pixels, classes)[1].detach().clone()
    nn.init.normal_(learning.feature_offset_proj.weight)
    assert torch.equal(learning(pixels, classes)[1], aligned_classes)
    aligned_pixels = learning(pixels, classes)[0].detach().clone()
    nn.init.normal_(learning.class_offset_proj.weight)
    assert torch.equal(learning(pixels, classes)[0], aligned_pixels)


@pytest.mark.parametrize("switches", SWITCHES)
def test_switched_off_branches_own_no_parameters_and_the_others_all_learn(switches):
    learning = make(6, switches)
    assert len(list(learning.parameters())) == sum(switches)
    learning.scores(numbers(2, 9, 6).requires_grad_(), numbers(4, 6)).square().sum().backward()
    for name, parameter in learning.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().min() > 0, name
    aligned_pixels, aligned_classes = learning(pixels := numbers(2, 9, 6), classes := numbers(4, 6))
    assert torch.equal(aligned_classes, classes.expand(2, -1, -1)) != switches[0]
    assert torch.equal(aligned_pixels, pixels) != switches[1]


@pytest.mark.parametrize("switches", SWITCHES)
def test_gradients_equal_finite_differences(switches):
    learning = make(3, switches)
    inputs = (numbers(2, 5, 3).requires_grad_(), numbers(4, 3).requires_grad_())
    assert torch.autograd.gradcheck(learning.scores, inputs)
    assert torch.autograd.gradcheck(lambda x, w: learning(x, w), inputs)


def test_projections_have_no_bias_and_start_at_std_0_02():
    learning = OffsetLearning(256)
    assert {n for n, _ in learning.named_parameters()} == {
        "class_offset_proj.weight",
        "feature_offset_proj.weight",
    }
    for parameter in learning.parameters():
        assert parameter.std().item() == pytest.approx(0.02, rel=0.02)
        assert parameter.mean().abs().item() < 0.001
        assert parameter.abs().max().item() > 0.07  # normal, not cut at two deviations


def test_projections_that_start_at_zero_move_nothing_at_first_and_learn():
    learning = OffsetLearning(6, init_std=0.0).double()
    pixels, classes = torch.randn(2, 5, 6).double(), torch.randn(3, 6).double()
    scores = learning.scores(pixels, classes)
    assert_close(scores, pixels @ classes.mT, 1e-12)
    scores.square().sum().backward()
    assert all(parameter.grad.abs().max() > 1e-3 for parameter in learning.parameters())


@pytest.mark.parametrize("std", [-0.1, float("nan"), float("inf")])
def test_a_spread_of_first_weights_that_is_none_is_refused(std):
    with pytest.raises(
        ValueError, match=r"`MODEL.SEM_SEG_HEAD.OFFSET_INIT_STD` must be finite and at"
    ):
        OffsetLearning(6, init_std=std)


def test_a_transposed_map_is_accepted_as_a_view():
    learning = make(4)
    features = numbers(2, 4, 3, 5)
    copied = features.flatten(2).mT.contiguous()
    classes = numbers(6, 4)
    assert_close(
        learning.scores(features.flatten(2).mT, classes), learning.scores(copied, classes), 1e-12
    )
