"""What is kept with a job: its configuration, the program's revision, and the environment."""

import importlib.metadata
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode

from offseg_d2.utils.io import write_atomically

SOURCE_ROOT = Path(__file__).resolve().parents[2]
# Other variables stay out: they may hold passwords.
_VARIABLES = ("CUDA", "DETECTRON2", "GLOO", "LD_LIBRARY_PATH", "NCCL", "OMP", "PYTHONPATH", "TORCH")


def make_job_folder(output_dir: str, cfg: CfgNode, command: Sequence[str]) -> Path:
    """Make ``output_dir/jobs/<time>`` with everything that tells how the job was made.

    Args:
        output_dir: directory of the run, seen by all machines.
        cfg: configuration of the job.
        command: command line that asked for it.

    Returns:
        the folder, absolute.
    """
    folder = _new_folder(Path(output_dir).absolute() / "jobs")
    texts = {
        "config.yaml": cfg.dump(),
        "command.txt": shlex.join(command) + "\n",
        "revision.txt": source_revision() + "\n",
        "uncommitted.diff": _git("diff", "HEAD"),
        "environment.txt": describe_environment(),
    }
    for name, text in texts.items():
        data = text.encode()
        write_atomically(str(folder / name), data)
    return folder


def _new_folder(parent: Path) -> Path:
    name = time.strftime("%Y%m%d-%H%M%S")
    for suffix in ("", *(f"-{number}" for number in range(2, 100))):
        try:
            (parent / f"{name}{suffix}").mkdir(parents=True)
            return parent / f"{name}{suffix}"
        except FileExistsError:
            continue
    raise FileExistsError(f"`{parent}` must be free of folders {name}*, but holds 99 of them.")


def source_revision() -> str:
    """Git revision of the running program, with ``-dirty`` for changes that are not committed."""
    return _git("describe", "--always", "--dirty", "--abbrev=40").strip() or "not a git repository"


def _git(*arguments: str) -> str:
    try:
        finished = subprocess.run(
            ["git", "-C", str(SOURCE_ROOT), *arguments], capture_output=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return finished.stdout.decode(errors="replace") if finished.returncode == 0 else ""


def describe_environment() -> str:
    """Python, installed packages, and the variables that change how a run behaves."""
    found = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    packages = [f"{name}=={version}" for name, version in found.items() if name]
    variables = [
        f"{name}={value}" for name, value in os.environ.items() if name.startswith(_VARIABLES)
    ]
    lines = [f"python {sys.version}", sys.executable, *sorted(packages, key=str.lower)]
    return "\n".join([*lines, *sorted(variables)]) + "\n"
