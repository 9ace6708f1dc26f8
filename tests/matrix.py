"""Installs the project for several Pythons and versions of PyTorch, and uses it (``make matrix``).

::

    python tests/matrix.py --pythons python3.10 python3.13 --torch 2.6.0 newest

In a fresh environment of each combination: install the project and Detectron2, import, train two
iterations, evaluate, draw. All of it outside the clone, on the CPU, with scenes that the project
draws. An environment takes some GB and is deleted afterwards, unless ``--keep``.

Exit status: 1 if a combination failed; those whose Python is not here are named.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "shapes/offseg_t_offset_demo"
SHORT = ("SOLVER.MAX_ITER", "2", "SOLVER.WARMUP_ITERS", "0", "OUTPUT_DIR", "run")
IMPORTS = """
import offseg_d2, torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import META_ARCH_REGISTRY
assert "shapes_val" in DatasetCatalog.list() and "PerPixelSegmentor" in META_ARCH_REGISTRY
assert ROOT not in offseg_d2.__file__, offseg_d2.__file__
print("torch", torch.__version__)
"""


def commands(python: str, torch: str, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Steps with their commands, to be run in ``folder``."""
    binaries = folder / "environment" / "bin"
    pip = [str(binaries / "python"), "-m", "pip", "install", "--quiet"]
    offseg = str(binaries / "offseg")
    wanted = [] if torch == "newest" else [f"torch=={torch}"]
    yield "environment", [python, "-m", "venv", str(folder / "environment")]
    yield "environment", [*pip, "setuptools<81", "wheel"]
    yield "install", [*pip, "--no-build-isolation", str(ROOT), *wanted]
    yield "Detectron2", [offseg, "setup-env", "--detectron2-here"]
    yield "doctor", [offseg, "doctor"]
    code = IMPORTS.replace("ROOT", repr(str(ROOT)))
    yield "import", [str(binaries / "python"), "-c", code]
    train = [offseg, "train", "--config-file", CONFIG, "--num-gpus", "0"]
    yield "train", [*train, *SHORT]
    weights = ["MODEL.WEIGHTS", "run/model_final.pth"]
    yield "evaluate", [*train, "--eval-only", *SHORT, *weights]
    scenes = ["--weights", "run/model_final.pth", "--input", "data/shapes/*/images/val/*"]
    yield "demo", [offseg, "demo", *scenes, "--output", "pictures"]


def check(python: str, torch: str, folder: Path) -> str:
    """Run a combination; returns the name of the step that failed, or "" if none did."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "DETECTRON2_DATASETS")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment["DETECTRON2_DATASETS"] = str(folder / "data")
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for step, command in commands(python, torch, folder):
        start = time.perf_counter()
        ran = subprocess.run(
            command, cwd=folder, env=environment, text=True, stdout=-1, stderr=subprocess.STDOUT
        )
        seconds = time.perf_counter() - start
        print(f"{python} {torch}: {step}, {seconds:.0f} s, exit status {ran.returncode}")
        if ran.returncode:
            print("\n".join(ran.stdout.splitlines()[-40:]), flush=True)
            return step
        if step == "import":
            print(ran.stdout.strip().splitlines()[-1], flush=True)
    return "" if list((folder / "pictures").glob("*.png")) else "demo"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    pythons = ["python3.10", "python3.11", "python3.12", "python3.13"]
    parser.add_argument("--pythons", nargs="+", default=pythons, help="programs, or their paths")
    parser.add_argument("--torch", nargs="+", default=["2.6.0", "newest"], metavar="VERSION")
    parser.add_argument("--folder", type=Path, help="for the environments (temporary)")
    parser.add_argument("--keep", action="store_true", help="keep the environments")
    args = parser.parse_args(arguments)
    top = Path(args.folder or tempfile.mkdtemp(prefix="offseg-matrix-")).absolute()
    outcome = {}
    for python in args.pythons:
        for torch in args.torch:
            if (program := shutil.which(python)) is None:
                outcome[python, torch] = "not tried: no such Python here"
                continue
            folder = top / f"{Path(python).name}-torch-{torch}"
            failed = check(program, torch, folder)
            outcome[python, torch] = f"FAILED: {failed}" if failed else "works"
            if not args.keep:
                shutil.rmtree(folder)
    print(
        "\n".join(f"{python}, torch {torch}: {text}" for (python, torch), text in outcome.items())
    )
    return int(any(text.startswith("FAILED") for text in outcome.values()))


if __name__ == "__main__":
    sys.exit(main())
