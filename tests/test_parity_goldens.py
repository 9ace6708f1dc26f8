"""The authors' numbers, without any outside folder: small cuts of their reference cases.

How the files were cut: ``tests/golden/make.py``. The full comparison: ``tests.parity_report``.
"""

from pathlib import Path

import pytest

from tests.golden.make import CUTS, FOLDER
from tests.parity_report import run_case

# Sliding windows, Mask2Former, and loss and gradients in float64, all at 512 x 512: 10 to 30 s on
# one core.
SLOW = {name for name in CUTS if name.startswith(("G_", "H_", "I_"))}
# More files would be a data set, and the full cases are not the project's to publish.
LARGEST_FOLDER = 130_000


def _case(name: str) -> object:
    return pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])


@pytest.mark.parametrize("name", [_case(name) for name in sorted(CUTS)])
def test_every_number_is_within_its_tolerance(name):
    rows = run_case(FOLDER / f"{name}.npz")
    failed = [
        f"{row.tensor}: {row.difference:.2e} > {row.tolerance:.2e}"
        for row in rows
        if not row.passed
    ]
    assert rows and not failed, failed


def test_folder_holds_just_the_documented_files_and_stays_small():
    files = {path.stem: path.stat().st_size for path in FOLDER.glob("*.npz")}
    assert files.keys() == CUTS.keys()
    assert sum(files.values()) < LARGEST_FOLDER


def test_every_kind_of_case_is_covered():
    letters = {Path(name).name.split("_")[0] for name in CUTS}
    assert letters == set("ABCDGHIJ")
