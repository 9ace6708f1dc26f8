"""Shared by the benchmarks: the machine, processes of their own, and their JSON files."""

import argparse
import json
import multiprocessing
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from detectron2.utils.file_io import PathManager

from offseg_d2.analysis import machine

__all__ = [
    "check_group",
    "in_new_process",
    "machine",
    "merge_groups",
    "peak_memory",
    "read_groups",
    "run_plan",
    "write_json",
]


def in_new_process(function: Callable[..., Any], *args: Any) -> Any:
    """Result of a module's function in a process of its own, which imports everything again.

    Raises:
        BrokenProcessPool: the process was killed, most likely for want of memory.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def peak_memory() -> int:
    """Peak resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kilobytes on Linux


def write_json(path: str, content: dict[str, Any]) -> None:
    """Write the result of a benchmark."""
    with PathManager.open(path, "w") as file:
        json.dump(content, file, indent=1)
    print(f"wrote {path}")


def read_groups(path: str) -> list[dict[str, Any]]:
    """Groups of a file of results, none if it does not exist yet.

    Raises:
        ValueError: it holds something else.
    """
    if not PathManager.isfile(path):
        return []
    with PathManager.open(path) as file:
        content = json.load(file)
    if not isinstance(content, dict) or not isinstance(content.get("groups"), list):
        raise ValueError(f"`{path}` must hold a list `groups`, as a file of this benchmark does.")
    return content["groups"]


def merge_groups(path: str, groups: list[dict[str, Any]], keys: Sequence[str]) -> None:
    """Write groups into a file; those that agree with one of them in all keys are replaced."""

    def key(group: dict[str, Any]) -> tuple[str, ...]:
        return tuple(str(group[name]) for name in keys)

    known = {key(group): group for group in read_groups(path)}
    known.update((key(group), group) for group in groups)
    write_json(path, {"groups": list(known.values())})


def check_group(
    parser: argparse.ArgumentParser,
    args: argparse.Namespace,
    one: bool,
    own: Sequence[str],
    keys: Sequence[str],
) -> None:
    """End the program with one line if arguments would be ignored, or the output not merged.

    Args:
        parser: made ``args``, which have ``plan`` and ``output``.
        args: of the program.
        one: whether they name a group.
        own: names of the arguments of a group.
        keys: that every group of an output has.
    """
    if one and args.plan:
        parser.error("`--plan` must stand without a group: it prints the commands of all of them.")
    for name in () if one else own:
        if getattr(args, name) != parser.get_default(name):
            option = "--" + name.replace("_", "-")
            parser.error(f"`{option}` must stand with a group: the plan has its own for each.")
    if not args.output:
        return
    if PathManager.isdir(args.output):
        parser.error(f"`--output` must be a file, but {args.output} is a folder.")
    try:
        groups = read_groups(args.output)
    except ValueError as error:  # that of text that is no JSON, too
        parser.error(f"`--output` must be a file of this benchmark, but: {error}")
    for group in groups:
        if missing := [key for key in keys if key not in group]:
            parser.error(
                f"`--output` must be a file of this benchmark, but a group of {args.output} "
                f"has no {missing}."
            )


def run_plan(script: str, plan: Sequence[Sequence[str]], args: argparse.Namespace) -> None:
    """Run each group of a plan in a process of its own, or print its command with ``--plan``.

    Args:
        script: the program.
        plan: arguments of each group.
        args: has ``threads``, ``output``, which all groups get, and ``plan``.
    """
    common = [f"--threads={args.threads}"]
    common += [f"--output={args.output}"] if args.output else []
    for group in plan:
        command = [sys.executable, script, *group, *common]
        if args.plan:
            print(shlex.join(command))
        else:
            subprocess.run(command, check=True)
