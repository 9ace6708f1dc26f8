"""``python -m offseg_d2.doctor``: what is installed, what does not fit, what to do about it.

Imports only the standard library by itself, so that it also runs where torch or Detectron2 is
missing or broken. Exit status 1 if something necessary is broken.
"""

import contextlib
import importlib
import importlib.metadata
import logging
import os
import platform
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from offseg_d2._requirements import detectron2_install_command, has_module
from offseg_d2.version import __version__

OK, NOTE, WARNING, PROBLEM = "ok", "note", "warning", "PROBLEM"
NEWEST_PYTHON = (3, 13)  # that `make matrix` has tried
# module that must import -> distributions any of which brings it
MODULES = {
    "torch": ("torch",),
    "torchvision": ("torchvision",),
    "numpy": ("numpy",),
    "scipy": ("scipy",),
    "PIL": ("pillow",),
    "cv2": (
        *("opencv-python-headless", "opencv-python"),
        *("opencv-contrib-python-headless", "opencv-contrib-python"),
    ),
    "fvcore": ("fvcore",),
    "iopath": ("iopath",),
    "pycocotools": ("pycocotools",),
    "submitit": ("submitit",),
    "pkg_resources": ("setuptools",),  # imported by Detectron2's model zoo
    "detectron2": ("detectron2", "sal-detectron2"),
    "detectron2.engine": ("detectron2", "sal-detectron2"),
}
# other distributions that serve for one of setup.py
ALTERNATIVES = {
    "opencv-python-headless": MODULES["cv2"],
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
}
# dataset -> folders that may hold it, below DETECTRON2_DATASETS
DATASETS = {
    "CamVid": ("camvid",),
    "ADE20K": ("ADEChallengeData2016", "ade/ADEChallengeData2016", "ade"),
    "Cityscapes": ("cityscapes",),
    "COCO-Stuff": ("coco_stuff164k", "coco"),
    "Pascal Context": ("VOCdevkit/VOC2010", "VOC2010"),
}


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        level: OK, NOTE, WARNING or PROBLEM (which makes the exit status 1).
        name: what was looked at.
        text: what was found.
        remedy: what to do about it; empty if nothing.
    """

    level: str
    name: str
    text: str
    remedy: str = ""


def installed(*distributions: str) -> dict[str, str]:
    """Name -> version of those ``distributions`` that are installed."""
    found = {}
    for name in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def import_error(module: str) -> str:
    """Reason why ``module`` cannot be imported, in one line; empty if it can.

    A wheel that does not fit raises anything: ImportError, OSError, RuntimeError, AttributeError.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(module)
    except Exception as error:
        return _one_line(error)
    return ""


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def check_modules() -> Iterator[Finding]:
    """Check the necessary modules: their versions, and that they import."""
    for module, distributions in MODULES.items():
        versions = installed(*distributions)
        found = ", ".join(f"{name} {version}" for name, version in versions.items())
        install = f"`make setup` in the clone of offseg_d2, or `pip install {distributions[0]}`"
        if distributions == ("setuptools",):
            install = 'pip install "setuptools<81"'
        if "detectron2" in module:
            install = detectron2_install_command()
        if not has_module(module.split(".")[0]):
            yield Finding(PROBLEM, module, f"not installed (found: {found or 'nothing'})", install)
        elif error := import_error(module):
            yield Finding(PROBLEM, module, f"{found}, but does not import: {error}", install)
        else:
            yield Finding(OK, module, found or "of unknown origin")


def check_python() -> Iterator[Finding]:
    """The version of Python; one that is too old cannot import this file."""
    version = platform.python_version()
    if sys.version_info[:2] > NEWEST_PYTHON:
        newest = ".".join(map(str, NEWEST_PYTHON))
        text = f"{version} was not tried; 3.10 to {newest} were"
        yield Finding(WARNING, "Python", text, "if something fails, take one that was tried")
    else:
        yield Finding(OK, "Python", version)


def check_versions() -> Iterator[Finding]:
    """Installed versions against those that setup.py asks for, extras included."""
    try:
        from packaging.requirements import Requirement

        requirements = importlib.metadata.requires("offseg_d2") or []
    except ImportError as error:  # PackageNotFoundError is one, too
        remedy = "to have versions checked: pip install --no-deps -e . in the clone of offseg_d2"
        yield Finding(NOTE, "versions", f"not checked: {_one_line(error)}", remedy)
        return
    missing: dict[str, list[str]] = {}  # extra -> what it lacks
    for requirement in map(Requirement, requirements):
        extra = re.search(r'extra == "([^"]+)"', str(requirement.marker))
        found = installed(*ALTERNATIVES.get(requirement.name, (requirement.name,)))
        wanted = f"{requirement.name}{requirement.specifier}"
        if any(requirement.specifier.contains(v, prereleases=True) for v in found.values()):
            continue
        text = ", ".join(found.values()) or "not installed"
        if extra is None:
            install = f'pip install "{wanted}"'
            yield Finding(PROBLEM, requirement.name, f"{text}: must be {wanted}", install)
        elif extra[1] != "dev":
            missing.setdefault(extra[1], []).append(f"{wanted} ({text})")
    for name, packages in missing.items():
        flag = " --no-build-isolation" if name == "deformable" else ""
        install = f"if you want that: pip install{flag} 'offseg_d2[{name}]'"
        yield Finding(NOTE, f"extra {name}", f"lacks {', '.join(packages)}", install)


def check_opencv() -> Iterator[Finding]:
    """Several packages that share the folder ``cv2``."""
    found = installed(*MODULES["cv2"])
    if len(found) > 1:
        remedy = f"pip uninstall -y {' '.join(found)} && pip install opencv-python-headless"
        yield Finding(WARNING, "OpenCV", f"{', '.join(found)} share the folder cv2", remedy)


def check_torchvision() -> Iterator[Finding]:
    """Compiled operators of torchvision, which must be built for this torch."""
    if import_error("torch") or import_error("torchvision"):
        return
    try:
        import torch
        from torchvision.ops import nms

        nms(torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.tensor([0.9]), 0.5)
    except Exception as error:
        remedy = "pip install --upgrade torch torchvision"
        text = f"do not fit together: {_one_line(error)}"
        yield Finding(PROBLEM, "torch + torchvision", text, remedy)


def check_cuda() -> Iterator[Finding]:
    """GPUs that torch sees."""
    if import_error("torch"):
        return
    import torch

    built_for = torch.version.cuda
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(count))
        yield Finding(OK, "CUDA", f"{built_for}, {count} device(s): {names}")
    elif shutil.which("nvidia-smi"):
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
        text = f"torch (made for CUDA {built_for}) sees no GPU; CUDA_VISIBLE_DEVICES: {hidden}"
        remedy = "compare the driver that nvidia-smi prints with torch's CUDA version"
        yield Finding(WARNING, "CUDA", text, remedy)
    else:
        yield Finding(NOTE, "CUDA", f"no device (torch is made for CUDA {built_for}): runs on CPU")


def check_datasets() -> Iterator[Finding]:
    """Datasets below DETECTRON2_DATASETS."""
    value = os.environ.get("DETECTRON2_DATASETS") or "datasets"
    root = Path(value).expanduser()
    if not root.is_dir():
        text = f"DETECTRON2_DATASETS={value!r} is no folder here"
        remedy = "none is needed for `make demo`; datasets/README.md says where each one goes"
        yield Finding(NOTE, "datasets", text, remedy)
        return
    yield Finding(OK, "datasets", f"below {root.resolve()}")
    for name, folders in DATASETS.items():
        found = [folder for folder in folders if (root / folder).is_dir()]
        text = found[0] if found else f"not found ({' or '.join(folders)})"
        yield Finding(OK if found else NOTE, name, text)


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    *(check_python, check_modules, check_versions),
    *(check_opencv, check_torchvision, check_cuda, check_datasets),
)


def report(findings: list[Finding]) -> str:
    """The findings as text, one line each, remedies below their line."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.level:<8} {finding.name:<{width}}  {finding.text}")
        if finding.remedy:
            lines.append(f"{'':<8} {'':<{width}}  -> {finding.remedy}")
    problems = sum(finding.level == PROBLEM for finding in findings)
    lines.append(f"{problems} problem(s) to mend." if problems else "All is well.")
    return "\n".join(lines)


def main() -> int:
    """Print Detectron2's description of the environment and the report.

    Returns:
        1 if something necessary is broken, else 0.
    """
    print(f"offseg_d2 {__version__} ({Path(__file__).resolve().parent})")
    print(f"Python {platform.python_version()} ({sys.executable})")
    findings = [finding for check in CHECKS for finding in check()]
    with contextlib.suppress(Exception):  # what is broken stands in the findings
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # no GPU
        from detectron2.utils.collect_env import collect_env_info

        print(collect_env_info().split("\nPyTorch built with")[0])
        print("(detectron2._C, Detectron2's compiled part, is not needed here)")
    print(report(findings))
    return int(any(finding.level == PROBLEM for finding in findings))


if __name__ == "__main__":
    raise SystemExit(main())
