"""What a client is told: one printable line of bounded size, whatever it is made from."""

from __future__ import annotations

import tracemalloc

import pytest

from fastinfer.errors import MAX_MESSAGE_BYTES, clip


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("", ""),
        ("input 'x' is missing", "input 'x' is missing"),
        (" a\r\n\tb\u2028c\xa0\x1fd ", "a b c d"),
        ("a\x00b\x1b[31m\x7f", "a?b?[31m?"),
        ("\ud800x\u202e\ufeff\ue000\U0010ffff", "?x????"),
        ("é😀", "é😀"),
        ("x" * 512, "x" * 512),
        ("x" * 513, "x" * 509 + "..."),
        ("é" * 256, "é" * 256),
        ("é" * 257, "é" * 254 + "..."),
        ("a" + " " * 5000 + "b", "a..."),
        ("a b " * 1000, ("a b " * 128)[:509] + "..."),
    ],
)
def test_a_line(message: str, line: str) -> None:
    assert clip(message) == line
    assert len(line.encode()) <= MAX_MESSAGE_BYTES


@pytest.mark.parametrize("unit", ["ab ", "\x00", "\ud800", "😀"])
def test_nothing_is_made_of_what_is_cut_away(unit: str) -> None:
    message = unit * (1 << 20)
    tracemalloc.start()
    try:
        clip(message)
        assert tracemalloc.get_traced_memory()[1] < 1 << 18
    finally:
        tracemalloc.stop()
