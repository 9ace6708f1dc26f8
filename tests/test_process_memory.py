"""Freed memory: kept for the next tensors, only where the user says nothing else."""

import argparse
import importlib
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from offseg_d2.process_memory import SWITCH, keep_freed_memory, own_settings
from tests.common import ROOT

SETTING = "MALLOC_MMAP_THRESHOLD_"
OTHERS = (
    *("LD_PRELOAD", "GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"),
    *("MALLOC_MMAP_MAX_", SWITCH),
)
# Six tensors of 8 MB each, again and again: page faults of the last round.
PROGRAM = """
import json, os, resource, sys
import torch
from offseg_d2.process_memory import keep_freed_memory
if sys.argv[1] == "keep":
    os.environ.pop("MALLOC_MMAP_THRESHOLD_")  # the C library read it long ago
    kept = keep_freed_memory()
else:
    kept = None
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(2 << 20) for _ in range(6)]
    del tensors
print(json.dumps([kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before]))
"""


def last_round(way: str) -> tuple[bool | None, int]:
    # GNU's C library gives all of it back at once; by itself it changes that as it goes.
    env = {**os.environ, SETTING: str(128 << 10)}
    for name in OTHERS:
        env.pop(name, None)
    command = [sys.executable, "-c", PROGRAM, way]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=env)
    return tuple(json.loads(done.stdout))


def test_kept_memory_is_not_asked_for_again():
    usual = last_round("usual")[1]
    if not usual:
        pytest.skip("this system counts no page faults")
    known, faults = last_round("keep")
    if not known:
        pytest.skip("this C library has no such setting")
    assert faults < usual / 4


@pytest.fixture
def mallopt(monkeypatch):
    """Calls of a C library that takes every setting; no setting of the user."""
    calls = []

    class Library:
        @staticmethod
        def mallopt(*args: int) -> int:
            calls.append(args)
            return 1

    monkeypatch.setattr("offseg_d2.process_memory.ctypes.CDLL", lambda name: Library)
    for name in (SETTING, *OTHERS):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_limit_and_largest_block_are_told_to_the_c_library(mallopt):
    assert keep_freed_memory(5 << 20)
    assert mallopt == [(-1, 5 << 20), (-3, 32 << 20)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (SETTING, "65536"),
        ("MALLOC_TRIM_THRESHOLD_", "65536"),
        ("MALLOC_MMAP_MAX_", "65536"),
        (SWITCH, "0"),
        ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1"),
        ("LD_PRELOAD", "/usr/lib/libjemalloc.so.2"),
    ],
)
def test_settings_of_the_user_are_left_alone(mallopt, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert own_settings() == [name]
    assert keep_freed_memory() is False
    assert not mallopt


def test_switch_has_two_values(mallopt, monkeypatch):
    monkeypatch.setenv(SWITCH, "1")
    assert keep_freed_memory()
    monkeypatch.setenv(SWITCH, "no")
    with pytest.raises(ValueError, match=f"`{SWITCH}` must be 0 or 1, but is 'no'"):
        keep_freed_memory()


@pytest.mark.parametrize("limit", [0, -1])
def test_limit_must_be_positive(limit):
    with pytest.raises(ValueError, match=rf"`limit` must be positive, but is {limit}\."):
        keep_freed_memory(limit)


def test_unknown_c_library_is_left_alone(mallopt, monkeypatch):
    monkeypatch.setattr("offseg_d2.process_memory.ctypes.CDLL", lambda name: object())
    assert keep_freed_memory() is False


class StopHereError(Exception):
    pass


def stop(*args, **kwargs):
    raise StopHereError


@pytest.mark.parametrize(
    ("program", "next_step", "device"),
    [
        ("train_net", "Trainer", "cpu"),
        ("train_net", "Trainer", "cuda"),
        ("demo", "plan", "cpu"),
    ],
)
def test_programs_keep_memory_before_they_load_a_model(monkeypatch, program, next_step, device):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    module, calls = importlib.import_module(program), []
    monkeypatch.setattr(module, "keep_freed_memory", lambda: calls.append(1))
    monkeypatch.setattr(module, next_step, stop)
    args = argparse.Namespace(
        eval_only=False, input=["x"], output="y", draw="overlay", opacity=1.0, legend=False,
        classes=(),
    )  # fmt: skip
    arguments = [args]
    if program == "train_net":
        cfg = SimpleNamespace(MODEL=SimpleNamespace(DEVICE=device))
        monkeypatch.setattr(module, "setup_run", lambda cfg, args: cfg)
        arguments = [cfg, *arguments]
    with pytest.raises(StopHereError):
        module.run(*arguments)
    assert bool(calls) == (device == "cpu")
