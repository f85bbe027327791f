"""One server on the bundled repository for all tests that leave it as it was."""

import pytest
from support import Server, serving


@pytest.fixture(scope="session")
def server():
    with serving() as running:
        yield running


@pytest.fixture
def own_server():
    """A server that the test may change."""
    with serving("--load", "simple") as running:
        yield running


__all__ = ["Server"]
