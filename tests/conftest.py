"""Fixtures of all tests."""

import logging
from collections.abc import Iterator

import pytest
import torch
from detectron2.utils.logger import setup_logger

from tests.browser import browser
from tests.common import seed_all

__all__ = ["browser"]  # a fixture of all tests

# A backward pass before anything else: PyTorch looks for devices in the first one, takes the
# stand-in of fake tensors for one, if they were there before, and then refuses to work in the
# processes that tests fork.
torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture
def loggers() -> Iterator[None]:
    """Leaves the loggers as they were; commands set them up for their process."""
    own = [logging.getLogger(name) for name in ("fvcore", "detectron2", "offseg_d2")]
    before = [(log, list(log.handlers), log.level, log.propagate) for log in own]
    setup_logger.cache_clear()
    yield
    setup_logger.cache_clear()
    for log, handlers, level, propagate in before:
        for handler in set(log.handlers) - set(handlers):
            handler.close()
        log.handlers, log.propagate = handlers, propagate
        log.setLevel(level)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Every test starts from the same random state, whatever ran before it."""
    seed_all()
    yield
