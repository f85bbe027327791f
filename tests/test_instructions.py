"""A small request, and an element decoded or encoded, cost no more instructions than was written down."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

FILE = Path(__file__).parents[1] / "bench" / "micro" / "instructions.py"


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_instructions_do_not_grow():
    spec = importlib.util.spec_from_file_location("instructions", FILE)
    instructions = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(instructions)
    before = instructions.baseline()
    assert before, f"no baseline for {instructions.VERSION}: python {FILE} --update"
    counted, _ = instructions.count()
    assert set(counted) == set(before)
    grown = {
        name: f"{before[name]} -> {value}"
        for name, value in counted.items()
        if value > before[name] * instructions.TOLERANCE
    }
    assert not grown, f"more than {instructions.TOLERANCE - 1:.0%} (if that is meant: python {FILE} --update)"
