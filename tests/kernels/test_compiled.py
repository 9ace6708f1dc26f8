"""Triton kernels as machine code for GPUs of three generations: nothing is spilled."""

import itertools

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from offseg_d2.layers.kernels import carafe, carafe_triton
from tests.kernels.compiled import compile_kernel

BLOCK = {"PIXELS": carafe.PIXELS, "CHANNELS": carafe.CHANNELS}
TAP_BLOCK = {"PIXELS": carafe.KERNEL_PIXELS, "TAPS": carafe.TAPS}
# name -> kernel, parameters that point to the given type, constants
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

ALL = [*itertools.product(sorted(KERNELS), (80, 86, 90), ("fp32", "bf16", "fp16"))]
FEW = {("carafe-5-2", 86, "bf16")}
CASES = [pytest.param(*x, marks=[] if x in FEW else [pytest.mark.slow]) for x in ALL]


@pytest.mark.parametrize(("name", "capability", "dtype"), CASES)
def test_kernel_becomes_machine_code_without_spills(name, capability, dtype, record_property):
    kernel, pointers, constants = KERNELS[name]
    report = compile_kernel(kernel, capability, {p: f"*{dtype}" for p in pointers}, constants)
    print(name, capability, dtype, report.registers, report.shared, report.spills)
    assert report.cubin[:4] == b"\x7fELF"
    assert report.spills == 0
    assert report.registers <= 128  # two blocks of 256 threads fit on a multiprocessor
