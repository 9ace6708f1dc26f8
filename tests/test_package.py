"""What an installed package holds, seen from a folder that is no clone."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.common import ROOT

USE = """
import offseg_d2, sys
from offseg_d2.commands import setup_env
from offseg_d2.config import load_config
print(offseg_d2.__file__)
print(load_config("camvid/offseg_t_offset_cpu").DATASETS.TRAIN)
print(setup_env.IS_CLONE, (setup_env.REQUIREMENTS / "detectron2.txt").read_text().count("--hash"))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The package, built as a wheel from a copy of the sources and installed into a folder."""
    folder = tmp_path_factory.mktemp("package")
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("offseg_d2", "configs", "requirements"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), source]
    subprocess.run(wheel, check=True, capture_output=True)
    (file,) = folder.glob("*.whl")
    target = folder / "installed"
    install = [*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(file)]
    subprocess.run(install, check=True, capture_output=True)
    shutil.rmtree(source)
    return target


def test_installed_configurations_are_the_files_of_the_clone(installed):
    found, wanted = (
        {path.relative_to(top): path.read_bytes() for path in top.rglob("*.yaml")}
        for top in (installed / "offseg_d2/configs", ROOT / "configs")
    )
    assert found == wanted


def test_installed_package_needs_no_clone(installed, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    result = subprocess.run(
        [sys.executable, "-c", USE], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    lines = result.stdout.splitlines()
    assert lines[0] == str(installed / "offseg_d2/__init__.py"), result.stderr
    assert lines[1:] == ["('camvid_train',)", "False 1"]


def test_the_program_is_installed(installed):
    script = (installed / "bin/offseg").read_text()
    assert "from offseg_d2.__main__ import main" in script
    assert [path.name for path in (installed / "bin").iterdir()] == ["offseg"]
