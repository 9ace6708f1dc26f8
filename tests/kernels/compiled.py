"""Compiles Triton kernels for GPUs that are not here, and reads what ptxas says of them."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Report:
    """Registers of a thread, bytes of shared memory, bytes of spilled registers, machine code."""

    registers: int
    shared: int
    spills: int
    cubin: bytes


def compile_kernel(
    kernel: Any, capability: int, types: dict[str, str], constants: dict[str, int]
) -> Report:
    """Build a kernel to machine code; needs no driver.

    Args:
        kernel: function decorated with ``triton.jit``.
        capability: 80 for 8.0.
        types: parameter -> Triton's name, such as "*fp32"; "i32" where it is left out.
        constants: values of the parameters that are constants.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import get_ptxas
    from triton.compiler import ASTSource

    signature = {
        name: "constexpr" if name in constants else types.get(name, "i32")
        for name in kernel.arg_names
    }
    source = ASTSource(kernel, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(compiled.asm["ptx"])
        target = re.findall(r"\.target (\w+)", compiled.asm["ptx"])[0]  # "sm_90a" for 90
        command = [get_ptxas(capability).path, "-v", f"--gpu-name={target}", str(path)]
        result = subprocess.run(
            [*command, "-o", f"{folder}/cubin"], capture_output=True, text=True, check=True
        )
    registers = re.search(r"Used (\d+) registers", result.stderr)
    spills = re.findall(r"(\d+) bytes spill", result.stderr)
    assert registers and spills, result.stderr
    shared = compiled.metadata.shared
    return Report(int(registers[1]), shared, sum(map(int, spills)), compiled.asm["cubin"])
