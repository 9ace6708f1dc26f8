"""Freed memory: kept for the next tensors, only within limits."""

import json
import os
import subprocess
import sys

import pytest

from offseg_d2.layers.memory import keep_freed_memory
from tests.common import ROOT

# Six tensors of 8 MB each, again and again: page faults of the last round.
PROGRAM = """
import json, resource, sys
import torch
from offseg_d2.layers.memory import keep_freed_memory
kept = keep_freed_memory() if "keep" in sys.argv else None
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(2 << 20) for _ in range(6)]
    del tensors
print(json.dumps([kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before]))
"""


def last_round(*arguments: str) -> tuple[bool | None, int]:
    command = [sys.executable, "-c", PROGRAM, *arguments]
    # GNU's C library then gives all of it back at once; by itself it changes that as it goes.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(128 << 10)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=env)
    return tuple(json.loads(done.stdout))


def test_kept_memory_is_not_asked_for_again():
    known, faults = last_round("keep")
    if not known:
        pytest.skip("this C library has no such setting")
    assert faults < last_round()[1] / 4


@pytest.mark.parametrize("limit", [0, -1])
def test_limit_must_be_positive(limit):
    with pytest.raises(ValueError, match=rf"`limit` must be positive, but is {limit}\."):
        keep_freed_memory(limit)


def test_unknown_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr("offseg_d2.layers.memory.ctypes.CDLL", lambda name: object())
    assert keep_freed_memory() is False
