"""Checkpoints that all tests of the page share."""

import pytest

from tests.web.common import write_checkpoint


@pytest.fixture(scope="session")
def offset_checkpoint(tmp_path_factory) -> str:
    return write_checkpoint(tmp_path_factory.mktemp("offset"))


@pytest.fixture(scope="session")
def plain_checkpoint(tmp_path_factory) -> str:
    return write_checkpoint(tmp_path_factory.mktemp("plain"), classifier="plain", seed=1)
