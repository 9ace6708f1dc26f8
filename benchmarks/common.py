"""What the benchmarks share: what they ran on, and their JSON files."""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from detectron2.utils.file_io import PathManager

from offseg_d2.analysis import machine

__all__ = ["machine", "merge_groups", "run_plan", "write_json"]


def write_json(path: str, content: dict[str, Any]) -> None:
    """Write the result of a benchmark."""
    with PathManager.open(path, "w") as file:
        json.dump(content, file, indent=1)
    print(f"wrote {path}")


def merge_groups(path: str, groups: list[dict[str, Any]], keys: Sequence[str]) -> None:
    """Write groups into a file; those that agree with one of them in all keys are replaced."""

    def key(group: dict[str, Any]) -> tuple[str, ...]:
        return tuple(str(group[name]) for name in keys)

    known: dict[tuple[str, ...], dict[str, Any]] = {}
    if PathManager.isfile(path):
        with PathManager.open(path) as file:
            known = {key(group): group for group in json.load(file)["groups"]}
    known.update((key(group), group) for group in groups)
    write_json(path, {"groups": list(known.values())})


def run_plan(script: str, plan: Sequence[Sequence[str]], args: argparse.Namespace) -> None:
    """Run each group of a plan in a process of its own, or print its command with ``--plan``.

    Args:
        script: the program.
        plan: arguments of each group.
        args: has ``threads``, ``seconds``, ``output``, which all groups get, and ``plan``.
    """
    common = [f"--threads={args.threads}", f"--seconds={args.seconds}"]
    common += [f"--output={args.output}"] if args.output else []
    for group in plan:
        command = [sys.executable, script, *group, *common]
        if args.plan:
            print(shlex.join(command))
        else:
            subprocess.run(command, check=True)
