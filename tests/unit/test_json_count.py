"""Counts of values and of nesting, before a JSON text is read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastinfer.base.json_count import values_and_depth

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=50,
)


def counted(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + sum(map(counted, value.values()))
    return 1 + sum(map(counted, value)) if isinstance(value, list) else 1


def nested(value: Any) -> int:
    if isinstance(value, dict | list):
        return 1 + max(map(nested, value.values() if isinstance(value, dict) else value), default=0)
    return 0


@given(VALUES, st.sampled_from([None, 1]))
def test_it_is_a_bound_of_what_a_parser_makes(value: Any, indent: int | None) -> None:
    values, depth = values_and_depth(json.dumps(value, indent=indent).encode())
    assert counted(value) <= values <= 2 * counted(value)
    assert depth == nested(value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", (0, 0)),
        (b"1", (1, 0)),
        (b'"a,b[{"', (1, 0)),
        (b'"\\",[" , [', (3, 1)),
        (b'"\\\\",[', (3, 1)),
        (b'"open', (1, 0)),
        (b'"open\\', (1, 0)),
        (b"]]][", (2, 0)),
        (b"[" * 5 + b"]" * 5, (6, 5)),
        (b'{"a":[1,2]}', (4, 2)),
    ],
)
def test_what_is_counted(text: bytes, expected: tuple[int, int]) -> None:
    assert values_and_depth(text) == expected
    assert values_and_depth(memoryview(text)) == expected
