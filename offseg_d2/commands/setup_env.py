"""Make the project's Python environment, or add Detectron2 to the one of this Python.

Standard library only. Does nothing, at once, when the environment is complete; brings it up to
date when a requirement file has changed; makes it again from scratch when a set-up was interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
IS_CLONE = (ROOT / "setup.py").is_file()  # or an installed package, beside others
REQUIREMENTS = ROOT / "requirements"
if not REQUIREMENTS.is_dir():  # installed: Detectron2's requirement is with the package
    REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements"
LOCKED_FOR = "CPython 3.11 linux x86_64"  # what base.txt fits; base.in is installed elsewhere
STAMP = ".offseg_d2-setup"  # in a complete environment: for which folder and requirements
# Prints the platform, the folder of packages, and which of the modules it is given can be found.
PROBE = """
import importlib.util as util, platform, sys, sysconfig
version = "%d.%d" % sys.version_info[:2]
print(platform.python_implementation(), version, sys.platform, platform.machine())
print(sysconfig.get_path("purelib"))
specs = {name: util.find_spec(name) for name in sys.argv[1:]}
print(*(name for name, spec in specs.items() if spec is not None and spec.origin is not None))
"""
# A package that somebody removed after the set-up is noticed by these.
NEEDED = ("torch", "torchvision", "cv2", "detectron2", "offseg_d2", "pytest", "ruff")


class SetupError(Exception):
    """A step of the set-up failed; the message names it."""


def run(step: str, *command: str) -> None:
    """Run a command of a step; its output goes to the terminal.

    Raises:
        SetupError: it could not be started, or its exit status is not 0.
    """
    print(f"== Set-up: {step}", flush=True)
    environment = {**os.environ, "PIP_USER": "0", "PIP_NO_INPUT": "1", "PYTHONNOUSERSITE": "1"}
    try:
        # The lock is inherited: what outlives a killed set-up keeps the next one waiting.
        code = subprocess.run(command, cwd=ROOT, env=environment, close_fds=False).returncode
    except OSError as error:
        print(error, file=sys.stderr)
        code = 127
    if code:
        raise SetupError(
            f"Set-up failed at the step: {step} (exit status {code}).\n"
            f"  Command: {shlex.join(command)}\n"
            "  What to do: mend what the lines above name, then run the same command again."
        )


def probe(python: Path, *modules: str) -> tuple[str, Path, set[str]]:
    """Platform, folder of packages and available ``modules`` of an interpreter.

    Returns:
        ("", ".", nothing) if it does not run.
    """
    command = [str(python), "-I", "-c", PROBE, *modules]
    try:
        lines = subprocess.check_output(command, text=True, cwd="/").splitlines()
    except (OSError, subprocess.CalledProcessError):
        return "", Path(), set()
    return lines[0], Path(lines[1]), set(lines[2].split())


def pip(python: Path, *arguments: object) -> list[str]:
    """Command line of an interpreter's pip."""
    command = (python, "-I", "-m", "pip", "--disable-pip-version-check", *arguments)
    return [str(part) for part in command]


def install_requirements(python: Path) -> None:
    """Install the locked requirements, or the open list where the lock does not fit."""
    build = pip(python, "install", "--require-hashes", "-r", REQUIREMENTS / "build.txt")
    run("build tools", *build)
    found = probe(python)[0]
    packages: list[object] = ["--require-hashes", "-r", REQUIREMENTS / "base.txt"]
    if found != LOCKED_FOR:
        print(f"base.txt is locked for {LOCKED_FOR}; {found} gets base.in, without hashes.")
        packages = ["-r", REQUIREMENTS / "base.in"]
    run("requirements (some GB)", *pip(python, "install", "--no-build-isolation", *packages))


def install_detectron2(python: Path) -> None:
    """Install the Python files of Detectron2, unless another build of it is there.

    Detectron2 has no release on the package index. The wheel of ``requirements/detectron2.txt``
    holds the Python files of the official repository at commit a59f0563. pip does not install it:
    it is tagged for Python 3.10, which its compiled part (not used here) needs, and carries a
    top-level package ``tools`` that would hide every project's own.
    """
    (requirement,) = (
        line.split()[0]
        for line in (REQUIREMENTS / "detectron2.txt").read_text().splitlines()
        if line.startswith("sal-detectron2==")
    )
    metadata = f"{requirement.replace('-', '_').replace('==', '-')}.dist-info"
    _, packages, found = probe(python, "detectron2")
    installed = [path.name for path in packages.glob("sal_detectron2-*.dist-info")]
    if found and installed in ([], [metadata]):
        return
    with tempfile.TemporaryDirectory(dir=packages.parent, prefix="detectron2-") as folder:
        tags = ("--only-binary=:all:", "--python-version=3.10", "--implementation=cp", "--abi=none")
        pinned = ("--no-deps", "--require-hashes", "-r", REQUIREMENTS / "detectron2.txt")
        run("Detectron2", *pip(python, "download", "--dest", folder, *tags, *pinned))
        unpack_detectron2(Path(folder), packages, metadata)


def unpack_detectron2(folder: Path, packages: Path, metadata: str) -> None:
    """Move ``detectron2`` and its metadata out of the wheel in ``folder`` into ``packages``."""
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    for stale in packages.glob("sal_detectron2-*.dist-info"):
        shutil.rmtree(stale)
    for name in (metadata, "detectron2"):  # without the last one the next set-up tries again
        shutil.rmtree(packages / name, ignore_errors=True)
        os.replace(folder / name, packages / name)


def stamp(venv: Path) -> str:
    """Two lines that a complete environment holds: its folder, and a digest of requirements."""
    files = (*sorted(REQUIREMENTS.glob("*.*")), ROOT / "setup.py")
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()
    return f"{venv} of {ROOT}\n{digest}\n"


def make_environment(venv: Path) -> None:
    """Make or complete ``venv``.

    Raises:
        SetupError: a step failed, or the folder holds something else than an environment.
    """
    python, stamp_file, wanted = venv / "bin" / "python", venv / STAMP, stamp(venv)
    incomplete = venv.with_name(f"{venv.name}.incomplete")  # outlives the deletion of the folder
    interrupted = incomplete.exists()
    found = stamp_file.read_text() if stamp_file.exists() else ""
    if found == wanted and not interrupted and set(NEEDED) <= probe(python, *NEEDED)[2]:
        return
    if venv.exists() and not (interrupted or (venv / "pyvenv.cfg").exists()):
        raise SetupError(f"`--venv` must be a new folder or an environment, but is {venv}.")
    moved = bool(found) and found.splitlines()[0] != wanted.splitlines()[0]
    again = interrupted or moved or not python.exists()
    if again or found:  # an environment that the user made is never deleted
        venv.parent.mkdir(parents=True, exist_ok=True)
        incomplete.touch()
    if again:
        run(f"environment {venv}", sys.executable, "-m", "venv", "--clear", str(venv))
    install_requirements(python)
    install_detectron2(python)
    editable = ("--no-deps", "--no-build-isolation", "--editable", ROOT)
    run("offseg_d2", *pip(python, "install", *editable))
    run("check", str(python), "-m", "offseg_d2.doctor")
    stamp_file.write_text(wanted)
    incomplete.unlink(missing_ok=True)


def lock_clone() -> contextlib.AbstractContextManager[Any]:
    """Wait until no other set-up of this clone runs; the lock lasts until the file is closed."""
    if not IS_CLONE:
        return contextlib.nullcontext()
    lock = open(ROOT / ".setup.lock", "w")  # noqa: SIM115
    os.set_inheritable(lock.fileno(), True)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("Another set-up of this clone is running; waiting for it to end.", flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def make_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = argparse.ArgumentParser(description="Make the Python environment of offseg_d2.")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="folder to make")
    here = "only add Detectron2 to the environment of the Python that runs this"
    parser.add_argument("--detectron2-here", action="store_true", help=here)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(arguments)
    if not (IS_CLONE or args.detectron2_here):
        sys.exit("Set-up failed: an environment is made in a clone of offseg_d2; without one there "
                 "is --detectron2-here.")  # fmt: skip
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which ends the running command, too
    try:
        with lock_clone():
            if args.detectron2_here:
                install_detectron2(Path(sys.executable))
            else:
                make_environment(args.venv.absolute())
    except SetupError as error:
        sys.exit(f"\n{error}")


if __name__ == "__main__":
    main()
