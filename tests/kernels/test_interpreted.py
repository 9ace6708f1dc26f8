"""Triton kernels, run by Triton's interpreter: one process for each file of checks."""

import importlib.util

import pytest

from tests.kernels.interpreted import names, run

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


@pytest.mark.parametrize("check", names("checks_carafe"))
def test_carafe(check):
    error = run("checks_carafe")[check]
    assert not error, error
