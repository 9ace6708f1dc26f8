"""What several tests of the engine share."""

import logging

import pytest


@pytest.fixture
def quiet_loggers():
    """Leaves the loggers as they were; a run sets them up for its process."""
    names = ("fvcore", "detectron2", "offseg_d2")
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger, list(logger.handlers), logger.level) for logger in loggers]
    yield
    for logger, handlers, level in before:
        logger.handlers = handlers
        logger.propagate = True
        logger.setLevel(level)
