"""Package description of offseg_d2."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    """The version that offseg_d2/version.py states, read without importing the package."""
    text = (ROOT / "offseg_d2" / "version.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, flags=re.MULTILINE)
    if match is None:
        raise RuntimeError('offseg_d2/version.py must have a line `__version__ = "..."`.')
    return match.group(1)


def read_description() -> str:
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


setup(
    name="offseg_d2",
    version=read_version(),
    description="Offset learning (OffSeg) for efficient semantic segmentation, on Detectron2",
    long_description=read_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    # Two folders of a clone lie in an installed package.
    packages=[
        *find_packages(include=["offseg_d2", "offseg_d2.*"]),
        *("offseg_d2.configs", "offseg_d2.requirements"),
    ],
    package_dir={"offseg_d2.configs": "configs", "offseg_d2.requirements": "requirements"},
    package_data={
        "offseg_d2": ["**/*.css", "**/*.j2", "**/*.json", "**/*.txt"],
        "offseg_d2.configs": ["**/*.yaml"],
        "offseg_d2.requirements": ["detectron2.txt"],
    },
    python_requires=">=3.10",
    # Detectron2 is missing on purpose: it has no release on the package index, so that no
    # requirement line can name it. `offseg setup-env --detectron2-here` installs it.
    install_requires=[
        "torch>=2.6",  # the first whose weights_only loading executes nothing
        "torchvision",
        "numpy",
        "scipy",
        "pillow",
        "opencv-python-headless",
        "pycocotools",
        "safetensors",
        "fvcore",
        "iopath",
        "tqdm",
        "tabulate",
        "termcolor",
        "submitit",
        "jinja2",
        # imported by Detectron2
        "cloudpickle",
        "hydra-core",
        "matplotlib",
        "omegaconf",
        "packaging",
        "setuptools<81",
        "tensorboard",
        "yacs",
    ],
    extras_require={
        "dev": ["mypy", "pytest", "pytest-xdist", "ruff"],
        "docs": ["mkdocs"],
        "hub": ["huggingface_hub"],
        "export": ["onnx", "onnxruntime", "onnxscript"],
        "openvino": ["openvino"],
        "timm": ["timm"],
        "deformable": ["torch-ms-deform-attn"],  # compiled; pip install --no-build-isolation
        "web": ["gradio>=6"],
        "video": ["av"],
    },
    entry_points={"console_scripts": ["offseg=offseg_d2.__main__:main"]},
)
