"""The simulated GPU: its arithmetic, and the two forms side by side."""

import json
import sys

import pytest
import simulate_gpu
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from offseg_d2.analysis.simulation import pretended_device


@pytest.mark.parametrize(
    ("counts", "milliseconds"),
    [
        ({"operations": 2000, "bytes": 10**9, "flops": 10**10}, 10.0),  # 2000 x 5 us
        ({"operations": 10, "bytes": 5 * 10**10, "flops": 10**10}, 50.0),  # over 1 TB/s
        ({"operations": 10, "bytes": 10**9, "flops": 3 * 10**11}, 30.0),  # over 10 TFLOP/s
    ],
)
def test_the_largest_of_three_times_counts(counts, milliseconds):
    assert simulate_gpu.shortest(counts, (1e12, 1e13, 1e14), "float32") == milliseconds


def test_operations_of_16_bits_have_a_peak_of_their_own():
    counts = {"operations": 0, "bytes": 0, "flops": 3 * 10**11}
    assert simulate_gpu.shortest(counts, (1e12, 1e13, 1e14), "bfloat16") == 3.0


def test_floating_point_operations_by_hand():
    with pretended_device(FakeTensorMode()) as cost:
        left, right = torch.empty(3, 4, device="cuda"), torch.empty(4, 5, device="cuda")
        left @ right
        torch.nn.functional.conv2d(
            torch.empty(1, 2, 6, 6, device="cuda"), torch.empty(7, 2, 3, 3, device="cuda")
        )
    assert cost.flops == 2 * 3 * 4 * 5 + 2 * 7 * 2 * 9 * 4 * 4


def test_our_form_moves_less_and_never_waits(tmp_path, monkeypatch):
    path = tmp_path / "counts.json"
    arguments = ["--models", "segformer_b0", "--size", "64", "64", "--classes", "5"]
    monkeypatch.setattr(sys, "argv", ["simulate_gpu.py", *arguments, "--output", str(path)])
    simulate_gpu.main()
    rows = {(row["work"], row["form"]): row for row in json.loads(path.read_text())["rows"]}
    for work in ("training step", "label map"):
        ours, theirs = rows[work, "ours"], rows[work, "authors' order"]
        assert ours["waits"] == 0
        assert ours["operations"] < theirs["operations"] and ours["bytes"] < theirs["bytes"]
