"""Runs the checks of a file in one process in which Triton's interpreter stands in for a GPU.

The interpreter must be chosen before Triton is imported. ``python -m tests.kernels.interpreted
tests.kernels.checks_carafe`` calls every function ``check_*`` of that module and prints a JSON
dictionary: name -> "" or what went wrong.
"""

import functools
import importlib
import json
import os
import re
import subprocess
import sys
import time
import traceback

from tests.common import ROOT, seed_all


@functools.cache
def run(module: str) -> dict[str, str]:
    """Results of the checks of ``tests.kernels.MODULE`` by name."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.kernels.interpreted", f"tests.kernels.{module}"],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    if result.returncode:
        raise RuntimeError(result.stderr)
    results: dict[str, str] = json.loads(result.stdout.splitlines()[-1])
    return results


def names(module: str) -> list[str]:
    """Names of the checks of ``tests.kernels.MODULE``, which is not imported."""
    text = (ROOT / f"tests/kernels/{module}.py").read_text(encoding="utf-8")
    return re.findall(r"^def (check_\w+)", text, re.MULTILINE)


def _main(module: str) -> None:
    from offseg_d2.layers.kernels import choice

    choice._DEVICE_TYPES = {"cpu"}
    results = {}
    for name, check in vars(importlib.import_module(module)).items():
        if name.startswith("check_"):
            seed_all()
            start = time.perf_counter()
            try:
                check()
                results[name] = ""
            except Exception:
                results[name] = traceback.format_exc()
            print(f"{name}: {time.perf_counter() - start:.1f} s", file=sys.stderr)
    print(json.dumps(results))


if __name__ == "__main__":
    _main(sys.argv[1])
