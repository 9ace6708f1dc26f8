"""Fixtures of all tests."""

from collections.abc import Iterator

import pytest

from tests.common import seed_all


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Every test starts from the same random state, whatever ran before it."""
    seed_all()
    yield
