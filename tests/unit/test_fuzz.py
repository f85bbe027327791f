"""A short run of each fuzz, always the same; `make fuzz` runs them for long."""

from __future__ import annotations

import shutil

import pytest

from tests.fuzz import bodies, guided, pages
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_corpus(name: str) -> None:
    target = TARGETS[name]()
    try:
        assert guided.replay(target) > len(target.seeds) + 20
    finally:
        target.close()


def test_bodies() -> None:
    bodies.run(400, seed=1)


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is absent")
def test_pages() -> None:
    ended = pages.run(5_000, seed=1)
    assert ended.returncode == 0, ended.stdout[:1000]
