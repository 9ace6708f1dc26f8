"""Triton kernels as machine code for GPUs of three generations: nothing is spilled."""

import itertools

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from offseg_d2.layers.kernels import (
    carafe,
    carafe_triton,
    resized_triton,
    similarity,
    similarity_triton,
)
from offseg_d2.layers.kernels import resized_argmax as argmax
from offseg_d2.layers.kernels import resized_cross_entropy as loss
from tests.kernels.compiled import compile_kernel

BLOCK = {"PIXELS": carafe.PIXELS, "CHANNELS": carafe.CHANNELS}
TAP_BLOCK = {"PIXELS": carafe.KERNEL_PIXELS, "TAPS": carafe.TAPS}
# name -> kernel, parameters that point to the tested type, constants, types of other parameters
KERNELS = {}
for k, s in ((3, 1), (5, 2)):
    KERNELS[f"carafe-{k}-{s}"] = (
        carafe_triton.forward_kernel, ("features", "weights", "out"), {"K": k, "S": s, **BLOCK},
    )  # fmt: skip
    KERNELS[f"carafe-features-{k}-{s}"] = (
        carafe_triton.grad_features_kernel, ("grad", "weights", "out"), {"K": k, "S": s, **BLOCK},
    )  # fmt: skip
    KERNELS[f"carafe-weights-{k}-{s}"] = (
        carafe_triton.grad_weights_kernel, ("grad", "features", "out"),
        {"K": k, "S": s, **TAP_BLOCK},
    )  # fmt: skip
RATIOS = {"ratio_x": "fp32", "ratio_y": "fp32"}
LOSS = {"targets": "*i64", "log_sum": "*fp32", **RATIOS}
KERNELS["loss"] = (
    resized_triton.loss_kernel, ("scores",), {"PIXELS": loss.PIXELS, "CLASSES": loss.CLASSES},
    LOSS | {"loss": "*fp32"},
)  # fmt: skip
KERNELS["loss-grad"] = (
    resized_triton.grad_kernel, ("scores", "out"),
    {"PIXELS": loss.GRAD_PIXELS, "CLASSES": loss.GRAD_CLASSES}, LOSS | {"grad": "*fp32"},
)  # fmt: skip
SIMILARITY = {"similarity": "*fp32", "norm": "*fp32", "smallest": "fp32"}
KERNELS["similarity"] = (
    similarity_triton.forward_kernel, ("features",), {"PIXELS": similarity.PIXELS}, SIMILARITY,
)  # fmt: skip
KERNELS["similarity-grad"] = (
    similarity_triton.grad_kernel, ("grad", "features", "out"),
    {"PIXELS": similarity.GRAD_PIXELS, "CHANNELS": similarity.GRAD_CHANNELS}, SIMILARITY,
)  # fmt: skip
KERNELS["argmax"] = (
    resized_triton.argmax_kernel, ("scores",),
    {"PIXELS": argmax.PIXELS, "CLASSES": argmax.CLASSES}, RATIOS | {"out": "*u8"},
)  # fmt: skip

ALL = [*itertools.product(sorted(KERNELS), (80, 86, 90), ("fp32", "bf16", "fp16"))]
FEW = {("carafe-5-2", 86, "bf16"), ("loss-grad", 90, "fp32")}
CASES = [pytest.param(*x, marks=[] if x in FEW else [pytest.mark.slow]) for x in ALL]


@pytest.mark.parametrize(("name", "capability", "dtype"), CASES)
def test_kernel_becomes_machine_code_without_spills(name, capability, dtype):
    kernel, pointers, constants, *others = KERNELS[name]
    types = {p: f"*{dtype}" for p in pointers} | dict(*others)
    report = compile_kernel(kernel, capability, types, constants)
    print(name, capability, dtype, report.registers, report.shared, report.spills)
    assert report.cubin[:4] == b"\x7fELF"
    assert report.spills == 0
    assert report.registers <= 128  # four blocks of 128 threads on a multiprocessor


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(KERNELS))
def test_kernel_can_be_built_for_sizes_and_strides_of_one(name):
    # Triton compiles arguments that are 1 in.
    kernel, pointers, constants, *others = KERNELS[name]
    types = {p: "*fp32" for p in pointers} | dict(*others)
    ones = {p: 1 for p in kernel.arg_names if p not in types}
    assert compile_kernel(kernel, 80, types, ones | constants).spills == 0
