"""``python -m offseg_d2.doctor``: what is installed, what does not fit, what to do about it.

Imports only the standard library by itself, so that it also runs where torch or Detectron2 is
missing or broken. Exit status 1 if something necessary is broken.
"""

import contextlib
import importlib
import importlib.metadata
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
SETUP = "run `make setup` in the clone of offseg_d2, or `pip install {}`"

# module that must import -> names of the distributions that can bring it
REQUIRED: dict[str, tuple[str, ...]] = {
    "torch": ("torch",),
    "torchvision": ("torchvision",),
    "numpy": ("numpy",),
    "scipy": ("scipy",),
    "PIL": ("pillow",),
    "cv2": (
        "opencv-python-headless",
        "opencv-python",
        "opencv-contrib-python-headless",
        "opencv-contrib-python",
    ),
    "fvcore": ("fvcore",),
    "iopath": ("iopath",),
    "pycocotools": ("pycocotools",),
    "submitit": ("submitit",),
}
# extra of setup.py -> what it is for, its packages; of some any one of several will do
EXTRAS: dict[str, tuple[str, tuple[tuple[str, ...], ...]]] = {
    "web": ("offseg-web, models in the browser", (("gradio",),)),
    "export": (
        "tools/export_model.py, ONNX",
        (("onnx",), ("onnxruntime", "onnxruntime-gpu"), ("onnxscript",)),
    ),
    "openvino": ("tools/demo.py --runtime openvino", (("openvino",),)),
    "timm": ("backbones of timm", (("timm",),)),
    "deformable": ("compiled deformable attention", (("torch-ms-deform-attn",),)),
}
LEAST_MAJOR = {"gradio": 6}  # versions
# data set -> folders that may hold it, below DETECTRON2_DATASETS
DATASETS: dict[str, tuple[str, ...]] = {
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


def _versions(distributions: tuple[str, ...]) -> list[tuple[str, str]]:
    """(name, version) of those ``distributions`` that are installed."""
    found = []
    for name in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append((name, importlib.metadata.version(name)))
    return found


def _import_error(module: str) -> str:
    """Why ``module`` cannot be imported, in one line; empty if it can.

    A wheel that does not fit raises anything: ImportError, OSError, RuntimeError, AttributeError.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(module)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[0]}"
    return ""


def check_python() -> Iterator[Finding]:
    yield Finding(OK, "python", f"{platform.python_version()} ({sys.executable})")
    yield Finding(OK, "offseg_d2", f"{__version__} ({Path(__file__).resolve().parent})")


def check_packages() -> Iterator[Finding]:
    """Each required package: its version, and whether it imports."""
    for module, distributions in REQUIRED.items():
        installed = _versions(distributions)
        label = distributions[0]
        remedy = SETUP.format(label)
        if not has_module(module):
            yield Finding(PROBLEM, label, "not installed", remedy)
            continue
        version = ", ".join(f"{name} {number}" for name, number in installed) or "of unknown origin"
        error = _import_error(module)
        if error:
            yield Finding(PROBLEM, label, f"{version}, but does not import: {error}", remedy)
        else:
            yield Finding(OK, label, version)
        if module == "cv2" and len(installed) > 1:
            names = " ".join(name for name, _ in installed)
            yield Finding(
                WARNING,
                "OpenCV",
                f"{len(installed)} packages share the folder cv2: {version}",
                f"pip uninstall -y {names} && pip install opencv-python-headless",
            )


def check_extras() -> Iterator[Finding]:
    """What may be installed in addition; nothing of it is necessary."""
    for extra, (purpose, packages) in EXTRAS.items():
        found, missing = [], []
        for names in packages:
            installed = _versions(names)
            found += [f"{name} {number}" for name, number in installed]
            least = LEAST_MAJOR.get(names[0], 0)
            if not installed:
                missing.append(f"{names[0]} not installed")
            elif int(installed[0][1].split(".")[0]) < least:
                missing.append(f"{names[0]} {installed[0][1]} is older than {least}")
        if not missing:
            yield Finding(OK, f"extra {extra}", f"{', '.join(found)}: {purpose}")
            continue
        flag = " --no-build-isolation" if extra == "deformable" else ""
        yield Finding(
            NOTE,
            f"extra {extra}",
            f"{', '.join(missing)}: {purpose}",
            f"if you want that: pip install{flag} -e '.[{extra}]' in the clone of offseg_d2",
        )


def check_torch_age() -> Iterator[Finding]:
    """Before 2.6 a checkpoint could execute code although torch was told to load weights only."""
    version = next((number for _, number in _versions(("torch",))), "")
    numbers = re.findall(r"\d+", version)[:2]
    if len(numbers) == 2 and tuple(map(int, numbers)) < (2, 6):
        yield Finding(
            PROBLEM,
            "torch",
            f"{version} is older than 2.6, which loads checkpoints without executing them",
            "pip install --upgrade torch torchvision",
        )


def check_torchvision_ops() -> Iterator[Finding]:
    """Whether torchvision's compiled operators were built for this torch."""
    if not (has_module("torch") and has_module("torchvision")):
        return
    try:
        import torch
        from torchvision.ops import nms

        boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.9], [8.0, 8.0, 9.0, 9.0]])
        kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
        if kept != [0, 2]:
            raise RuntimeError(f"nms must keep boxes [0, 2], but kept {kept}.")
    except Exception as error:
        first_line = (str(error).splitlines() or [""])[0]
        yield Finding(
            PROBLEM,
            "torch + torchvision",
            f"do not fit together: {type(error).__name__}: {first_line}",
            "install the torchvision that was made for this torch: "
            "pip install --upgrade torch torchvision",
        )
        return
    yield Finding(OK, "torch + torchvision", "fit together (torchvision.ops.nms runs)")


def check_pkg_resources() -> Iterator[Finding]:
    """Detectron2's model zoo imports pkg_resources, which newer setuptools no longer carry."""
    version = next((number for _, number in _versions(("setuptools",))), "not installed")
    if has_module("pkg_resources"):
        yield Finding(OK, "setuptools", f"{version} (has pkg_resources)")
        return
    yield Finding(
        PROBLEM,
        "setuptools",
        f"{version}: has no pkg_resources, which Detectron2 imports",
        'pip install "setuptools<81"',
    )


def check_detectron2() -> Iterator[Finding]:
    """Where Detectron2 comes from, and whether the parts used here import."""
    if not has_module("detectron2"):
        yield Finding(PROBLEM, "detectron2", "not installed", detectron2_install_command())
        return
    origin = _versions(("detectron2", "sal-detectron2"))
    source = ", ".join(f"{name} {version}" for name, version in origin) or "not from a package"
    for module in ("detectron2", "detectron2.modeling", "detectron2.engine"):
        error = _import_error(module)
        if error:
            yield Finding(
                PROBLEM,
                "detectron2",
                f"{source}, but {module} does not import: {error}",
                "mend the problems above first; then, if it stays: pip uninstall "
                f"{' '.join(name for name, _ in origin) or 'detectron2'} and "
                f"{detectron2_install_command()}",
            )
            return
    import detectron2

    folder = Path(detectron2.__file__ or "").parent
    yield Finding(OK, "detectron2", f"{detectron2.__version__} from {source} ({folder})")
    compiled = "is there" if not _import_error("detectron2._C") else "is missing; not needed here"
    yield Finding(NOTE, "detectron2._C", f"compiled part {compiled}")


def check_devices() -> Iterator[Finding]:
    """CUDA, cores and threads."""
    if not has_module("torch") or _import_error("torch"):
        return
    import torch

    built_for = torch.version.cuda
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(count))
        yield Finding(OK, "CUDA", f"{built_for}, {count} device(s): {names}")
    elif shutil.which("nvidia-smi"):
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = f", CUDA_VISIBLE_DEVICES={hidden!r}" if hidden is not None else ""
        yield Finding(
            WARNING,
            "CUDA",
            f"nvidia-smi is there, but torch (made for CUDA {built_for}) sees no device{why}",
            "compare the driver that nvidia-smi prints with torch's CUDA version; update the "
            "driver or install a torch made for it",
        )
    else:
        yield Finding(NOTE, "CUDA", f"no device (torch is made for CUDA {built_for}): runs on CPU")
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    omp = os.environ.get("OMP_NUM_THREADS", "not set")
    text = f"{torch.get_num_threads()} threads on {cores} usable cores (OMP_NUM_THREADS {omp})"
    yield Finding(OK, "threads", text)


def check_datasets() -> Iterator[Finding]:
    """Which data sets lie below DETECTRON2_DATASETS."""
    value = os.environ.get("DETECTRON2_DATASETS") or "datasets"
    root = Path(value).expanduser()
    if not root.is_dir():
        yield Finding(
            NOTE,
            "data sets",
            f"DETECTRON2_DATASETS={value!r} is no folder here",
            "none is needed for `make demo`; datasets/README.md tells where each one goes",
        )
        return
    yield Finding(OK, "data sets", f"below {root.resolve()}")
    for name, folders in DATASETS.items():
        found = [folder for folder in folders if (root / folder).is_dir()]
        if found:
            yield Finding(OK, name, found[0])
        else:
            yield Finding(NOTE, name, f"not found ({' or '.join(folders)})")


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_python,
    check_packages,
    check_extras,
    check_torch_age,
    check_torchvision_ops,
    check_pkg_resources,
    check_detectron2,
    check_devices,
    check_datasets,
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
    lines.append(
        f"{problems} problem(s) to mend before offseg_d2 can run." if problems else "All is well."
    )
    return "\n".join(lines)


def main() -> int:
    """Print the report; 1 if something necessary is broken, else 0."""
    findings = [finding for check in CHECKS for finding in check()]
    print(report(findings))
    return int(any(finding.level == PROBLEM for finding in findings))


if __name__ == "__main__":
    raise SystemExit(main())
