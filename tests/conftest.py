"""Fixtures of all tests."""

from collections.abc import Iterator

import pytest
import torch

from tests.browser import browser
from tests.common import seed_all

__all__ = ["browser"]  # a fixture of all tests

# A backward pass before anything else: PyTorch looks for devices in the first one, takes the
# stand-in of fake tensors for one, if they were there before, and then refuses to work in the
# processes that tests fork.
torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Every test starts from the same random state, whatever ran before it."""
    seed_all()
    yield
