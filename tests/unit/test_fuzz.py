"""A short run of each fuzz, always the same; `make fuzz` runs them for long."""

from __future__ import annotations

import shutil

import pytest

from tests.fuzz import bodies, pages


def test_bodies() -> None:
    bodies.run(400, seed=1)


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is absent")
def test_pages() -> None:
    ended = pages.run(5_000, seed=1)
    assert ended.returncode == 0, ended.stdout[:1000]
