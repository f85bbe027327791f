"""A short run of each fuzz, always the same; `make fuzz` runs them for long."""

from __future__ import annotations

import os
import shutil
import subprocess

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


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is absent")
def test_pages_with_every_width_on_any_cpu() -> None:
    if not has_simde():
        if os.environ.get("REQUIRE_SIMDE"):
            pytest.fail("SIMDe is not installed")
        pytest.skip("SIMDe is not installed (Debian: libsimde-dev)")
    ended = pages.run(3_000, seed=2, emulated=True)
    assert ended.returncode == 0, ended.stdout[:1000]
    assert "of up to 512 bits" in ended.stdout


def has_simde() -> bool:
    words = ["g++", "-x", "c++", "-fsyntax-only", "-include", "simde/x86/avx512.h", "/dev/null"]
    return subprocess.run(words, capture_output=True).returncode == 0
