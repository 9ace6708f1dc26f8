"""Multiply-accumulates and parameters, against counting by hand, fvcore and the paper."""

import sys

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from fvcore.nn import FlopCountAnalysis
from torch import nn

from offseg_d2.analysis import Network, count_macs, count_parameters
from offseg_d2.analysis.complexity import part_of, split_by_part
from offseg_d2.analysis.mac_rules import (
    CONVOLUTION,
    CONVOLUTION_BIAS,
    ELEMENTWISE,
    MATRIX,
    NORM,
    RESIZE,
    SAMPLING,
)
from offseg_d2.config import load_config
from offseg_d2.deploy.packed import PackedConv2d
from offseg_d2.layers import FreqFusion, carafe
from offseg_d2.layers.kernels import choice
from offseg_d2.modeling import OffsetLearning
from tests.common import ROOT, SMALL_OFFSEG, build_offseg

# Table 2 of the paper: G multiply-accumulates at 512 x 512 with 150 classes (ADE20K) and at
# 2048 x 1024 with 19 (Cityscapes).
PAPER = {
    ("ade20k", "offseg_t"): 5.3,
    ("ade20k", "offseg_b"): 10.3,
    ("ade20k", "offseg_l"): 17.1,
    ("cityscapes", "offseg_t"): 44.8,
    ("cityscapes", "offseg_b"): 86.5,
    ("cityscapes", "offseg_l"): 143.4,
}
SIZES = {"ade20k": (512, 512), "cityscapes": (1024, 2048)}
# All operations of the authors' order, lowest and highest, by what is counted.
ALL_OPERATIONS = {"offseg_t": (9.5, 9.7), "offseg_b": (14.9, 15.1), "offseg_l": (22.1, 22.3)}


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def kinds_of(module, *inputs, fake=True):
    return {k: v for k, v in count_macs(module, *inputs, fake=fake).by_kind().items() if v}


def network_of(dataset, model, *opts):
    files = (ROOT / "configs" / dataset).glob(f"{model}_offset_*.yaml")
    opts = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", *opts]
    return build_model(load_config(str(next(files)), opts)).eval()


@pytest.mark.parametrize(
    ("options", "macs"),
    [
        ({}, 10 * 10 * 8 * 9 * 6),
        ({"stride": 2}, 5 * 5 * 8 * 9 * 6),
        ({"groups": 2}, 10 * 10 * 8 * 9 * 3),
        ({"dilation": 2, "padding": 2}, 10 * 10 * 8 * 9 * 6),
        ({"padding": 0}, 8 * 8 * 8 * 9 * 6),
    ],
)
def test_convolution_counts_kernel_and_group_for_each_output_value(options, macs):
    module = nn.Conv2d(6, 8, 3, bias=False, **{"padding": 1, **options})
    assert kinds_of(module, torch.zeros(2, 6, 10, 10)) == {CONVOLUTION: 2 * macs}


def test_transposed_convolution_counts_kernel_for_each_input_value():
    module = nn.ConvTranspose2d(6, 8, 2, stride=2, bias=False)
    assert kinds_of(module, torch.zeros(1, 6, 5, 5)) == {CONVOLUTION: 5 * 5 * 6 * 4 * 8}


def test_bias_of_a_convolution_is_kept_apart():
    counted = count_macs(nn.Conv2d(6, 8, 1), torch.zeros(1, 6, 5, 5))
    assert counted.by_kind()[CONVOLUTION] == counted.all == 25 * 6 * 8
    assert counted.as_in_paper == 25 * 6 * 8 + 25 * 8


@pytest.mark.parametrize("groups", [1, 2])
def test_packed_convolution_counts_as_any_other_with_and_without_a_sum(groups):
    conv = nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=groups)
    packed = PackedConv2d(conv)
    image, summand = torch.zeros(1, 6, 10, 10), torch.zeros(1, 8, 5, 5)
    expected = {CONVOLUTION: 25 * 8 * 9 * 6 // groups, CONVOLUTION_BIAS: 25 * 8}
    assert kinds_of(conv, image) == expected
    assert kinds_of(packed, image, fake=False) == expected
    assert kinds_of(packed, image, summand, fake=False) == expected


@pytest.mark.parametrize(
    ("function", "shapes", "macs"),
    [
        (torch.matmul, [(3, 4, 5), (3, 5, 6)], 3 * 4 * 5 * 6),
        (torch.matmul, [(4, 5), (5, 6)], 4 * 5 * 6),
        (torch.matmul, [(3, 4, 5), (5,)], 3 * 4 * 5),
        (torch.addmm, [(6,), (4, 5), (5, 6)], 4 * 5 * 6),
        (torch.baddbmm, [(3, 4, 6), (3, 4, 5), (3, 5, 6)], 3 * 4 * 5 * 6),
        (torch.Tensor.baddbmm_, [(3, 4, 6), (3, 4, 5), (3, 5, 6)], 3 * 4 * 5 * 6),
        (lambda a, b: torch.einsum("bqk,bqn->bkn", a, b), [(2, 5, 3), (2, 5, 7)], 2 * 5 * 3 * 7),
        (lambda a: F.linear(a, a.new_zeros(6, 5)), [(2, 4, 5)], 2 * 4 * 5 * 6),
        (F.scaled_dot_product_attention, [(2, 3, 4, 8), (2, 3, 7, 8), (2, 3, 7, 8)], 6 * 28 * 16),
    ],
)
def test_matrix_products_count_rows_columns_and_length(function, shapes, macs):
    inputs = [torch.zeros(shape) for shape in shapes]
    for fake in (True, False):
        assert kinds_of(Call(function), *inputs, fake=fake)[MATRIX] == macs


def test_attention_written_out_counts_as_the_fused_one():
    shapes = [(2, 3, 4, 8), (2, 3, 7, 8), (2, 3, 7, 8)]
    inputs = [torch.zeros(shape) for shape in shapes]
    written_out = Call(lambda q, k, v: (q @ k.mT).softmax(dim=-1) @ v)
    fused = Call(F.scaled_dot_product_attention)
    assert kinds_of(written_out, *inputs)[MATRIX] == kinds_of(fused, *inputs)[MATRIX]


@pytest.mark.parametrize("scale", [1, 2])
def test_carafe_counts_one_for_each_tap_and_output_value(scale):
    features = torch.zeros(2, 4, 6, 8)
    kernels = torch.zeros(2, 25, 6 * scale, 8 * scale)
    macs = kinds_of(Call(lambda f, k: carafe(f, k, 5, scale)), features, kernels)
    assert macs == {ELEMENTWISE: 25 * 2 * 4 * 48 * scale**2}


def test_triton_kernels_count_as_the_pytorch_forms(monkeypatch):
    module, inputs = FreqFusion(16, 16), (torch.rand(2, 16, 12, 16), torch.rand(2, 16, 6, 8))
    expected = kinds_of(module, *inputs)
    monkeypatch.setattr(choice, "_DEVICE_TYPES", {"cpu"})  # what runs on a GPU, but fake
    monkeypatch.setattr(choice, "_AVAILABLE", True)
    assert kinds_of(module, *inputs) == expected


def test_functions_with_a_backward_of_their_own_are_seen_into():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x @ x

        @staticmethod
        def backward(ctx, grad):
            return grad

    assert kinds_of(Call(Square.apply), torch.zeros(4, 4)) == {MATRIX: 64}


@pytest.mark.parametrize(
    ("module", "shape", "kinds"),
    [
        (nn.BatchNorm2d(4).eval(), (1, 4, 5, 5), {NORM: 100}),
        (nn.BatchNorm2d(4).train(), (1, 4, 5, 5), {NORM: 200}),
        (nn.GroupNorm(2, 4), (1, 4, 5, 5), {NORM: 200}),
        (nn.LayerNorm(5), (1, 4, 5, 5), {NORM: 200}),
        (nn.Upsample(scale_factor=2, mode="bilinear"), (1, 4, 5, 5), {RESIZE: 4 * 400}),
        (nn.Upsample(scale_factor=2, mode="bicubic"), (1, 4, 5, 5), {RESIZE: 16 * 400}),
        (nn.Upsample(scale_factor=2, mode="nearest"), (1, 4, 5, 5), {}),
        (nn.Upsample(size=(5, 5), mode="bicubic"), (1, 4, 5, 5), {}),
        (
            Call(lambda x: F.grid_sample(x, x.new_zeros(1, 3, 3, 2), align_corners=False)),
            (1, 4, 5, 5),
            {SAMPLING: 4 * 36},
        ),
        (nn.Sequential(nn.ReLU(), nn.Softmax(dim=1), nn.MaxPool2d(2)), (1, 4, 4, 4), {}),
    ],
)
def test_other_kinds_count_as_their_table_says(module, shape, kinds):
    assert kinds_of(module, torch.zeros(shape)) == kinds


def test_counting_on_shapes_alone_equals_counting_on_values():
    module, inputs = FreqFusion(16, 16), (torch.rand(1, 16, 12, 16), torch.rand(1, 16, 6, 8))
    by_shapes, by_values = (count_macs(module, *inputs, fake=fake) for fake in (True, False))
    assert by_shapes == by_values


def test_model_computes_the_same_after_it_was_counted():
    network = Network(build_offseg(*SMALL_OFFSEG))
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = network(images)
        assert count_macs(network, images).all > 0
        assert torch.equal(network(images), before)
    assert not any(module._forward_hooks for module in network.modules())


def test_parts_add_up_to_the_whole():
    network = Network(build_offseg(*SMALL_OFFSEG))
    counted = count_macs(network, torch.zeros(1, 3, 64, 64), warm_up=False)
    for depth in (1, 3):
        parts = counted.by_part(depth)
        assert sum(parts.values()) == counted.all
    assert set(counted.by_part()) == {
        "backbone",
        "sem_seg_head.pixel_decoder",
        "sem_seg_head.classifier",
    }


def test_what_a_model_keeps_for_a_size_is_not_part_of_a_call():
    model = build_offseg(*SMALL_OFFSEG)
    first, later = (
        count_macs(model.backbone, torch.zeros(1, 3, 64, 64), warm_up=warm_up).by_kind()
        for warm_up in (False, True)
    )
    assert first[RESIZE] > later[RESIZE]  # attention biases
    assert first[MATRIX] == later[MATRIX]


def test_part_is_named_without_counting_frames():
    assert part_of("backbone.stages.0", 1) == "backbone"
    assert part_of("sem_seg_head.pixel_decoder.align", 1) == "sem_seg_head.pixel_decoder"
    assert part_of("sem_seg_head.pixel_decoder.align.0", 2) == "sem_seg_head.pixel_decoder.align"
    assert part_of("") == ""


def test_amounts_of_modules_are_divided_among_parts_once():
    totals = {"": 10.0, "backbone": 6.0, "backbone.stages.0": 5.0, "sem_seg_head.classifier": 3.0}
    assert split_by_part(totals) == {"": 1.0, "backbone": 6.0, "sem_seg_head.classifier": 3.0}
    deeper = {"": 1.0, "backbone": 1.0, "backbone.stages": 5.0, "sem_seg_head.classifier": 3.0}
    assert split_by_part(totals, depth=2) == deeper


@pytest.mark.parametrize("part", ["backbone", "offset learning"])
def test_convolutions_and_matrix_products_equal_those_of_fvcore(part):
    if part == "backbone":
        module, inputs = build_offseg(*SMALL_OFFSEG).backbone, (torch.zeros(1, 3, 64, 64),)
    else:
        module, inputs = OffsetLearning(8), (torch.zeros(2, 12, 8), torch.zeros(5, 8))
    kinds = count_macs(module, *inputs, warm_up=False).by_kind()
    fvcore = FlopCountAnalysis(module, inputs)
    theirs = fvcore.unsupported_ops_warnings(False).uncalled_modules_warnings(False).by_operator()
    assert kinds[CONVOLUTION] == theirs["conv"]
    assert kinds[MATRIX] == theirs["linear"] + theirs["matmul"] > 0


@pytest.mark.parametrize(
    ("dataset", "model"),
    [pytest.param(*key, marks=pytest.mark.slow) if "offseg_b" in key else key for key in PAPER],
)
def test_convolutions_with_biases_are_what_the_paper_prints(dataset, model):
    network = network_of(dataset, model)
    images = torch.zeros(1, 3, *SIZES[dataset])
    counted = count_macs(Network(network), images, warm_up=False)
    assert round(counted.as_in_paper / 1e9, 1) == PAPER[dataset, model]


@pytest.mark.parametrize(
    "model",
    ["offseg_t", *(pytest.param(x, marks=pytest.mark.slow) for x in ("offseg_b", "offseg_l"))],
)
def test_all_operations_of_the_authors_order_lie_where_they_were_found(model, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    authors_order = pytest.importorskip("authors_order").authors_order
    network = authors_order(network_of("ade20k", model))
    images = torch.zeros(1, 3, 512, 512)
    kinds = count_macs(Network(network), images, warm_up=False).by_kind()
    lowest, highest = ALL_OPERATIONS[model]
    products = (kinds[CONVOLUTION] + kinds[MATRIX] + kinds[ELEMENTWISE]) / 1e9
    assert lowest <= round(products, 1) <= highest
    assert round(products + (kinds[NORM] + kinds[SAMPLING]) / 1e9, 1) == highest


def test_offset_scores_need_a_third_less_than_the_aligned_pair():
    pixels, classes, dim = 128 * 128, 150, 256
    module = OffsetLearning(dim)
    inputs = torch.zeros(1, pixels, dim), torch.zeros(classes, dim)

    def aligned(x, w):
        moved_pixels, moved_classes = module(x, w)
        return moved_pixels @ moved_classes.mT

    ours, theirs = (kinds_of(Call(f), *inputs)[MATRIX] for f in (module.scores, aligned))
    assert theirs == 4 * pixels * classes * dim + (pixels + classes) * dim**2
    assert ours == pixels * classes * (3 * dim + classes) + classes * dim * (classes + 2 * dim)
    assert ours / theirs == pytest.approx(2281 / 3600, abs=0.001)


def test_parameters_by_part_add_up_to_those_of_the_model_zoo():
    counts = count_parameters(network_of("ade20k", "offseg_t"))
    assert counts.pop("") == sum(counts.values()) == 6_183_626
    assert "6 183 626" in (ROOT / "docs" / "MODEL_ZOO.md").read_text()
    assert list(counts) == ["backbone", "sem_seg_head.pixel_decoder", "sem_seg_head.classifier"]


def test_deeper_parts_hold_the_same_parameters():
    model = build_offseg(*SMALL_OFFSEG)
    deep = count_parameters(model, depth=3)
    assert sum(deep.values()) == 2 * deep[""]
    assert "backbone.stages.0" in deep
