"""Requirement files, package description and the commands of the project agree."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from offseg_d2 import doctor

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("build.txt", "base.txt", "detectron2.txt")


def pins(name: str) -> dict[str, str]:
    """Distribution -> version of a locked requirement file."""
    text = (ROOT / "requirements" / name).read_text()
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", text, flags=re.MULTILINE))


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_requirement_has_a_hash_and_no_file_names_a_host(name):
    text = (ROOT / "requirements" / name).read_text()
    entries = re.findall(r"^[A-Za-z0-9._-]+==\S+ \\\n(    --hash=sha256:[0-9a-f]{64})", text, re.M)
    assert len(entries) == len(pins(name)) > 0
    assert not re.search(r"https?:|--index-url|--extra-index-url|--find-links|file://", text)


def test_build_tools_are_locked_to_the_same_versions_in_both_files():
    assert pins("build.txt").items() <= pins("base.txt").items()


def test_lock_satisfies_setup_py_and_the_requirement_lists():
    locked = pins("base.txt")
    text = (ROOT / "setup.py").read_text()
    needed = re.search(r"install_requires=\[(.*?)\n    \]", text, re.S).group(1)
    dev = re.search(r'"dev": \[(.*?)\]', text, re.S).group(1)
    requirements = re.findall(r'^\s*"([^"]+)",', needed, re.M) + re.findall(r'"([^"]+)"', dev)
    for name in ("base.in", "build.in"):
        lines = (ROOT / "requirements" / name).read_text().splitlines()
        stripped = (line.split("#")[0].strip() for line in lines)
        requirements += [line for line in stripped if line and not line.startswith("-")]
    assert len(requirements) > 40
    for requirement in map(Requirement, requirements):
        assert requirement.name in locked, requirement
        assert requirement.specifier.contains(locked[requirement.name]), requirement


def test_detectron2_requirement_names_one_version_and_its_hash():
    path = ROOT / "requirements" / "detectron2.txt"
    assert pins("detectron2.txt") == {"sal-detectron2": "0.7.2"}
    assert path.read_text().count("--hash=sha256:491af0c7f79bdb2d178e46f6cb16a97c4ac968d4") == 1


def test_version_stands_in_one_place():
    from offseg_d2 import __version__

    command = [sys.executable, "setup.py", "--version"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split()[-1] == __version__ == "0.1.0"
    assert __version__ not in (ROOT / "setup.py").read_text()


def test_pages_setup_doctor_and_matrix_name_the_same_pythons_and_torch():
    text = {
        name: (ROOT / name).read_text() for name in ("README.md", "setup.py", "tests/matrix.py")
    }
    stated = re.search(r"Python 3\.(\d+) to 3\.(\d+), torch ([\d.]+) or newer", text["README.md"])
    oldest, newest, torch = stated.groups()
    assert f'python_requires=">=3.{oldest}"' in text["setup.py"]
    assert f'"torch>={torch}"' in text["setup.py"]
    assert (3, int(newest)) == doctor.NEWEST_PYTHON
    pythons = re.search(r"pythons = \[(.+)\]", text["tests/matrix.py"])[1]
    tried = [f'"python3.{minor}"' for minor in range(int(oldest), int(newest) + 1)]
    assert pythons.split(", ") == tried


def test_ci_runs_the_test_command_and_stops_at_errors():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert "set -euo pipefail" in text
    lines = [line.strip() for line in text.splitlines()]
    assert lines.index("make test </dev/null") < lines.index("make test-slurm </dev/null")
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0


@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("demo", "python tools/make_demo.py"),
        ("test", "python -m pytest"),
        ("test-slurm", "python -m pytest -m slurm"),
        ("lint", "ruff check ."),
    ],
)
def test_make_targets_bring_the_environment_up_first(target, command):
    result = subprocess.run(
        ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.index("tools/setup_env.py") < result.stdout.index(command)
