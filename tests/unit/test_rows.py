"""Rows joined and parted again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastinfer.tensor.rows import concatenate, split
from fastinfer.tensor.tensor import Tensor


def strings(*rows: list[bytes]) -> Tensor:
    array = np.empty((len(rows), len(rows[0])), dtype=object)
    for i, row in enumerate(rows):
        array[i, :] = row
    return Tensor.from_numpy("x", array)


@pytest.mark.parametrize("dtype", ["?", "u1", "i2", "f2", "i4", "f4", "i8", "f8"])
def test_fixed_sizes(dtype: str) -> None:
    arrays = [np.arange(n * 6).reshape(n, 2, 3).astype(dtype) for n in (1, 3, 0, 2)]
    joined = concatenate([Tensor.from_numpy("x", array) for array in arrays])
    assert joined.name == "x"
    assert joined.numpy().tolist() == np.concatenate(arrays).tolist()
    parts = split(joined, [1, 3, 0, 2])
    assert [part.numpy().tolist() for part in parts] == [array.tolist() for array in arrays]
    assert all(part.owner is joined.owner for part in parts)


def test_strings() -> None:
    parts = [strings([b"", b"a\0b"]), strings([b"x" * 5000, b""], [b"\xff", b"y"])]
    joined = concatenate(parts)
    assert joined.shape == (3, 2)
    assert [part.numpy().tolist() for part in split(joined, [1, 2])] == [part.numpy().tolist() for part in parts]


@given(st.lists(st.lists(st.binary(max_size=9), min_size=2, max_size=2), min_size=1, max_size=12), st.data())
def test_any_split_of_strings(rows: list[list[bytes]], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=4)))
    counts = np.diff([0, *cuts, len(rows)]).tolist()
    parts = split(strings(*rows), counts)
    assert [row for part in parts for row in part.numpy().tolist()] == rows
    assert concatenate(parts).numpy().tolist() == rows


def test_rows_without_elements() -> None:
    joined = concatenate([Tensor.empty("x", "BYTES", (2, 0)), Tensor.empty("x", "BYTES", (3, 0))])
    assert joined.shape == (5, 0)
    assert [part.shape for part in split(joined, [4, 1])] == [(4, 0), (1, 0)]


@pytest.mark.parametrize(
    "other", [np.zeros((1, 3), "f4"), np.zeros((1, 2), "f8"), np.zeros((1, 2, 1), "f4"), np.zeros((), "f4")]
)
def test_what_does_not_fit_together(other: object) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        concatenate([Tensor.from_numpy("x", np.zeros((1, 2), "f4")), Tensor.from_numpy("x", other)])


def test_misuse() -> None:
    with pytest.raises(ValueError, match="no tensors"):
        concatenate([])
    with pytest.raises(ValueError, match="does not fit"):
        concatenate([Tensor.from_numpy("x", np.zeros((), "f4"))])
    whole = Tensor.from_numpy("x", np.zeros((3, 1), "f4"))
    for counts in ([], [1, 1], [4], [-1, 4], [2**62, 2**62]):
        with pytest.raises(ValueError, match="row"):
            split(whole, counts)
    with pytest.raises(ValueError, match="rows"):
        split(Tensor.from_numpy("x", np.zeros((), "f4")), [1])
