"""The virtual environment: what state it is in, and the steps that bring it up."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from environment.problems import SetupError, check_disk
from environment.runner import Runner, quiet

STATE_FILE = ".offseg_d2-setup.json"
# A change in one of these brings the environment up to date at the next `make`.
FINGERPRINT_FILES = (
    "requirements/build.txt",
    "requirements/base.in",
    "requirements/base.txt",
    "requirements/detectron2.txt",
    "setup.py",
)
# Top-level modules whose absence means that somebody removed a package after the set-up.
NEEDED_MODULES = ("torch", "torchvision", "cv2", "detectron2", "offseg_d2", "pytest", "ruff")
# What pip prints before it touches the environment, after all downloads.
PIP_CHANGES_FILES = "Installing collected packages"
# base.txt was locked for this; see _TELL_PLATFORM.
LOCKED_PLATFORM = "CPython 3.11 linux x86_64"

_TELL_PLATFORM = """
import platform, sys
version = "%d.%d" % sys.version_info[:2]
print(platform.python_implementation(), version, sys.platform, platform.machine())
"""
_FIND_MODULES = """
import importlib.util, sys
found = [importlib.util.find_spec(name) for name in sys.argv[1:]]
sys.exit(any(spec is None or spec.origin is None for spec in found))
"""
# Prints "absent", "pinned" (the wheel of detectron2.txt) or "other" (such as an official build).
_FIND_DETECTRON2 = """
import importlib.metadata, importlib.util, sys
spec = importlib.util.find_spec("detectron2")
try:
    version = importlib.metadata.version("sal-detectron2")
except importlib.metadata.PackageNotFoundError:
    version = None
if spec is None or spec.origin is None:
    print("absent")
elif version is None:
    print("other")
else:
    print("pinned" if version == sys.argv[1] else "absent")
"""


class Environment:
    """The virtual environment ``venv`` that belongs to the clone at ``root``."""

    def __init__(self, root: Path, venv: Path) -> None:
        self.root = root
        self.venv = venv
        self.python = venv / "bin" / "python"
        self._state_file = venv / STATE_FILE

    def fingerprint(self) -> dict[str, str]:
        """What a finished set-up is valid for: its place and requirement files."""
        digest = hashlib.sha256()
        for name in FINGERPRINT_FILES:
            digest.update(name.encode() + b"\0" + (self.root / name).read_bytes())
        return {
            "place": f"{self.venv} of {self.root}",
            "requirements": digest.hexdigest(),
        }

    def state(self) -> dict[str, str] | None:
        """The state written last; None if this folder was not made by a set-up of ours."""
        try:
            state = json.loads(self._state_file.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}

    def write_state(self, state: dict[str, str]) -> None:
        """Replace the state in one move, so that it is whole whenever the machine stops."""
        temporary = self._state_file.with_suffix(".new")
        temporary.write_text(json.dumps(state, indent=1))
        os.replace(temporary, self._state_file)

    def mark(self, interrupted: str = "") -> None:
        """Note that the environment is incomplete; ``interrupted``: the step that must not be.

        pip may take a package that it only half copied for an installed one, so that what an
        interrupted step left cannot be built upon. The user's own environment gets no mark.
        """
        if self.state() is not None:
            place = self.fingerprint()["place"]
            self.write_state({"place": place, "interrupted": interrupted})

    def is_ready(self) -> bool:
        """Whether a set-up ended here for these requirements and its packages still lie there."""
        if self.state() != self.fingerprint():
            return False
        return quiet([str(self.python), "-I", "-c", _FIND_MODULES, *NEEDED_MODULES]).returncode == 0

    def why_unusable(self) -> str:
        """Why an existing folder has to be made anew; empty if it can be built upon.

        An environment the user made by hand has no state and is kept as long as its pip works.
        """
        state, wanted = self.state(), self.fingerprint()
        if state is not None:
            if state.get("place") != wanted["place"]:
                return "it was made for another folder or half made"
            if state.get("interrupted"):
                return f"its set-up was interrupted at the step: {state['interrupted']}"
        if quiet([str(self.python), "-I", "-m", "pip", "--version"]).returncode != 0:
            return "its pip does not work"
        return ""

    def make(self, runner: Runner, step: str) -> None:
        """Create the folder, unless what is there can be built upon."""
        discarded = self.venv.with_name(self.venv.name + ".discarded")
        shutil.rmtree(discarded, ignore_errors=True)
        if self.venv.exists():
            reason = self.why_unusable()
            if not reason:
                self.mark()
                return
            print(f"      {self.venv.name} is made anew: {reason}.", flush=True)
            # Renamed first: a removal that is interrupted must not leave half of it in place.
            os.replace(self.venv, discarded)
            shutil.rmtree(discarded)
        self.venv.parent.mkdir(parents=True, exist_ok=True)
        check_disk(self.venv.parent)
        self.venv.mkdir()
        self.write_state({})
        self.mark(interrupted=step)
        runner.run(step, [sys.executable, "-m", "venv", str(self.venv)], self.root)
        self.mark()

    def pip(self, *arguments: str) -> list[str]:
        """The command line of this environment's ``pip install`` with ``arguments``."""
        return [str(self.python), "-m", "pip", "install", "--progress-bar", "off", *arguments]

    def install_requirements(self, runner: Runner, step: str) -> None:
        """Install the locked requirements, or the open list where the lock does not fit."""
        folder = self.root / "requirements"
        here = quiet([str(self.python), "-I", "-c", _TELL_PLATFORM]).stdout.strip()
        if here == LOCKED_PLATFORM:
            packages = ["--require-hashes", "-r", str(folder / "base.txt")]
        else:
            print(
                f"      base.txt is locked for {LOCKED_PLATFORM}; this is {here}, so the open "
                "list base.in is installed, without hashes.",
                flush=True,
            )
            packages = ["-r", str(folder / "base.in")]
        self.mark(interrupted=step)
        try:
            build_tools = ["--require-hashes", "-r", str(folder / "build.txt")]
            runner.run(step, self.pip(*build_tools), self.root)
            runner.run(step, self.pip("--no-build-isolation", *packages), self.root)
        except SetupError as error:
            if PIP_CHANGES_FILES not in error.output:
                self.mark()  # pip gave up while it was still downloading
            raise
        self.mark()

    def install_package(self, runner: Runner, step: str) -> None:
        """Make the clone itself importable from anywhere."""
        arguments = ["--no-deps", "--no-build-isolation", "-e", str(self.root)]
        runner.run(step, self.pip(*arguments), self.root)

    def install_detectron2(self, runner: Runner, step: str) -> None:
        """Install Detectron2's Python files, unless another Detectron2 is there already.

        Detectron2 has no release on the package index, and building it from its sources takes a
        compiler that fits torch. The wheel of ``requirements/detectron2.txt`` holds the Python
        files of the official repository at commit a59f0563; its compiled part (rotated boxes,
        deformable convolution) serves Python 3.10 and one old torch only, and is not used here.
        """
        requirement = self.root / "requirements" / "detectron2.txt"
        version = pinned_version(requirement)
        found = quiet([str(self.python), "-I", "-c", _FIND_DETECTRON2, version]).stdout.strip()
        if found in ("pinned", "other"):
            kept = "already there" if found == "pinned" else "another build is there and kept"
            print(f"      Detectron2: {kept}.", flush=True)
            return
        query = "import sysconfig; print(sysconfig.get_path('purelib'))"
        purelib = Path(runner.run(step, [str(self.python), "-c", query], self.root).strip())
        with tempfile.TemporaryDirectory(dir=purelib.parent, prefix="detectron2-") as staging:
            # The wheel is tagged for CPython 3.10; --target is what lets pip take it all the same.
            tags = "--only-binary=:all: --python-version 3.10 --implementation cp --abi none"
            target = ["--no-deps", "--target", staging, *tags.split()]
            command = self.pip(*target, "--require-hashes", "-r", str(requirement))
            runner.run(step, command, self.root)
            move_detectron2(Path(staging), purelib)


def pinned_version(requirement: Path) -> str:
    """The version that the one ``name==version`` line of ``requirement`` names."""
    lines = requirement.read_text().splitlines()
    (pin,) = (line for line in lines if "==" in line and not line.startswith("#"))
    return pin.split("==")[1].split()[0]


def move_detectron2(staging: Path, purelib: Path) -> None:
    """Move ``detectron2`` and its metadata from ``staging`` to ``purelib``, and nothing else.

    The wheel also carries a top-level package ``tools``: in site-packages it would hide every
    project's own folder of that name, so it stays behind.
    """
    metadata = list(staging.glob("sal_detectron2-*.dist-info"))
    for stale in purelib.glob("sal_detectron2-*.dist-info"):
        shutil.rmtree(stale)
    # The package goes last: without it the next set-up sees that Detectron2 is absent.
    for source in (*metadata, staging / "detectron2"):
        target = purelib / source.name
        if target.exists():
            shutil.rmtree(target)
        os.replace(source, target)
