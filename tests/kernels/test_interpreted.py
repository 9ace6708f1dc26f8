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


@pytest.mark.parametrize("check", names("checks_cross_entropy"))
def test_cross_entropy_of_resized_logits(check):
    error = run("checks_cross_entropy")[check]
    assert not error, error


@pytest.mark.parametrize("check", names("checks_similarity"))
def test_similarity(check):
    error = run("checks_similarity")[check]
    assert not error, error


@pytest.mark.parametrize("check", names("checks_argmax"))
def test_argmax_of_resized_scores(check):
    error = run("checks_argmax")[check]
    assert not error, error
