"""Describes where the rows of a batch are in a value of a graph, and how broadcasting and reshaping move them.

A value either has no rows (a constant, or a result of shapes alone), or it has an *axis of rows*: its length is
``before * batch * after``, and the elements of row ``i`` are those at ``(b * batch + i) * after + a`` for all ``b`` and
``a``. Mostly ``before`` and ``after`` are 1, so slice ``i`` is row ``i``. Any other value is *mixed*: its elements may
depend on several rows, on a row's place in the batch, or on the number of rows.

Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastinfer.backends.onnx.graph.dims import BATCH, BATCH_SYMBOL, ONE, Dim, Symbols, product

Content = NDArray[Any]
"""The elements of a small tensor of numbers: ``int``, ``float``, ``bool``, or a symbolic :class:`Dim`."""


class Mixes(Exception):
    """An operator may mix rows; the text says why, as a clause whose subject is the operator."""


class NeverRuns(Mixes):
    """The runtime refuses to run an operator on such inputs."""


class Place(Enum):
    """How the elements of row ``i`` of a value depend on ``i``."""

    ALL = "all equal i"
    FIRST = "the first along the last axis equal i, the others do not depend on i"
    SOME = "some depend on i"


@dataclass(frozen=True, slots=True)
class Value:
    """The facts about a value.

    Attributes:
        dims: its dimensions; None: the rank is unknown (then it has no rows).
        axis: the axis of rows; None: it has no rows.
        before, after: the factors of the axis' length before and after the batch size.
        content: its elements, if they are few and follow from constants and shapes.
        mixed: why its rows are not independent; None: they are.
        never: it is never computed, because the runtime refuses to; then it is also mixed.
        rounds: the operator type whose rounding of a row may depend on the batch; None: each row has the same bits.
        source: the graph's input that it equals, except for shape and type.
        place: how its elements depend on the row's place in the batch; None: not at all. A value with a place is mixed
            for all operators except those of :mod:`fastinfer.backends.onnx.graph.operators.places`.
        loose: if a request gives it no elements, its dimensions may differ from ``dims``. Only operators whose output
            is then empty, too, may take it.
        filled_with: its last axis is as long as the longest row of the batch needs; shorter rows end with this text.
            Only the operators of :mod:`fastinfer.backends.onnx.graph.operators.texts` may take it.
    """

    dims: tuple[Dim, ...] | None
    axis: int | None = None
    before: Dim = ONE
    after: Dim = ONE
    content: Content | None = None
    mixed: str | None = None
    never: bool = False
    rounds: str | None = None
    source: str | None = None
    place: Place | None = None
    loose: bool = False
    filled_with: bytes | None = None

    @property
    def counts_rows(self) -> bool:
        """Whether its elements depend on the number of rows."""
        return self.content is not None and any(isinstance(e, Dim) and e.batches > 0 for e in self.content.flat)

    @property
    def is_free(self) -> bool:
        """Whether it does not depend on the rows."""
        return self.axis is None and self.mixed is None and not self.counts_rows

    @property
    def rank(self) -> int:
        """The number of dimensions. Mixes if it is unknown."""
        return len(self.known_dims)

    @property
    def known_dims(self) -> tuple[Dim, ...]:
        """Its dimensions. Mixes if they are unknown."""
        if self.dims is None:
            raise Mixes("takes a value of unknown rank")
        return self.dims

    @property
    def is_scalar(self) -> bool:
        """Whether it has one element."""
        return self.dims is not None and all(dim == ONE for dim in self.dims)


def constant(content: Any) -> Value:
    """Make the value of an array of numbers and dimensions."""
    array = np.asarray(content, dtype=object)
    return Value(tuple(Dim(size) for size in array.shape), content=array)


def free(dims: Sequence[Dim] | None) -> Value:
    """Make a value without rows and with unknown content."""
    return Value(None if dims is None else tuple(dims))


def moved(value: Value, dims: Sequence[Dim], axis: int | None = None) -> Value:
    """Return the value with other dimensions, and its rows on the same or another axis."""
    if value.axis is None:
        return free(dims)
    axis = value.axis if axis is None else axis
    made = list(dims)
    made[axis] = value.known_dims[value.axis]
    return Value(tuple(made), axis, value.before, value.after)


def unchanged(value: Value) -> Value:
    """Return a value of the same shape with the rows on the same axis."""
    return replace(value, content=None, source=None)


def broadcast_dim(left: Dim, right: Dim, symbols: Symbols) -> Dim:
    """Return the result of broadcasting two dimensions."""
    if left == ONE or right == left:
        return right
    if right == ONE or left.number is not None:
        return left
    return (
        right
        if right.number is not None
        else symbols.size(("broadcast", left, right), filled=left.is_filled and right.is_filled)
    )


def broadcast(values: Sequence[Value], symbols: Symbols) -> Value:
    """Return the result of an elementwise operator, with numpy's broadcasting. Mixes."""
    with_rows = [value for value in values if value.axis is not None]
    if not with_rows and any(value.dims is None for value in values):
        return free(None)
    rank = max(value.rank for value in values)
    dims = [ONE] * rank
    for value in values:
        for i, dim in enumerate(value.known_dims, rank - value.rank):
            if not (dim.batches and dims[i].batches):
                dims[i] = broadcast_dim(dims[i], dim, symbols)
    if not with_rows:
        return free(dims)
    first = with_rows[0]
    assert first.axis is not None
    axis = first.axis + rank - first.rank
    for value in values:
        own = axis - (rank - value.rank)
        if value.axis is None:
            if own >= 0 and value.known_dims[own] != ONE:
                raise Mixes("combines rows with a constant that has a length along the batch dimension")
        elif own != value.axis or (value.before, value.after) != (first.before, first.after):
            raise Mixes("combines rows with other rows")
    return moved(first, dims, axis)


def reshape(value: Value, requested: Sequence[Any], symbols: Symbols, *, zero_copies: bool = True) -> Value:
    """Reshape a value: other dimensions, the same elements in the same order.

    Args:
        value: the value.
        requested: numbers and dimensions; -1 stands for the remaining size.
        symbols: the graph's symbols.
        zero_copies: 0 copies the dimension at its place.

    Raises:
        Mixes: the rows of the result are mixed, or may be for some values of the symbols.
    """
    if value.dims is None:
        return free([Dim(each) if isinstance(each, int) and each > 0 else symbols.any_size() for each in requested])
    dims = []
    shape = _Shape(zero_copies, -1 in requested)
    loose = value.loose and (-1 in requested or 0 in requested)
    for i, each in enumerate(requested):
        if each == 0 and zero_copies:
            if i >= value.rank:
                raise Mixes("copies a dimension that does not exist")
            dims.append(value.dims[i])
        elif isinstance(each, Dim):
            dim, may_differ = _requested_dim(value, each, i, shape, symbols)
            dims.append(dim)
            loose = loose or may_differ
        else:
            dims.append(ONE if each == -1 else _dim(each))
    if -1 in requested:
        dims[list(requested).index(-1)] = _what_is_left(value, dims, symbols)
    holders = [i for i, dim in enumerate(dims) if dim.batches]
    if value.axis is None:
        if holders:
            raise Mixes("gives a constant the batch dimension")
        return replace(free(dims), loose=loose)
    if len(holders) != 1:
        raise Mixes("reshapes rows to a shape that does not follow the batch size" if not holders else "mixes rows")
    at = holders[0]
    # The runtime checks the number of elements, so the sizes before the rows determine the sizes after them.
    before = (product(value.dims[: value.axis]) * value.before).over(product(dims[:at]))
    after = None if before is None else dims[at].over(before * BATCH)
    if before is None or after is None:
        raise Mixes("reshapes rows so that they may be mixed")
    return Value(tuple(dims), at, before, after, loose=loose)


@dataclass(frozen=True, slots=True)
class _Shape:
    """Properties of a reshape's whole shape: whether 0 copies, whether it has a -1."""

    zero_copies: bool
    infers: bool


def _requested_dim(value: Value, each: Dim, at: int, shape: _Shape, symbols: Symbols) -> tuple[Dim, bool]:
    """Return the dimension that a reshape makes of a symbolic one, and whether it makes the result loose.

    The symbolic dimension may be 0 in some requests, or -1 if it is opaque, and then stands for another size. That has
    no effect if the dimension that 0 copies is 0 in the same requests. If it is also a size of the value, the value has
    no elements then.
    """
    dims = value.known_dims
    if each.is_filled:
        return each, False
    if each.is_size and not (shape.zero_copies and at < len(dims)):
        return each, False
    own = set(each.symbols) - {BATCH_SYMBOL}
    if not own or (at < len(dims) and not value.loose and own <= set(dims[at].symbols)):
        return each, False
    if (shape.infers or value.loose) and own <= set(product(dims).symbols):
        return each, True
    if value.loose:
        raise Mixes("reshapes rows to a shape that may be empty")
    if not each.batches:
        return symbols.size(("reshaped", at, each, dims)) if each.is_size else symbols.any_size(), False
    if not each.is_size or at != value.axis or value.before != ONE:
        raise Mixes("reshapes rows to a shape that may be empty")
    return BATCH * symbols.size(("reshaped", at, each, dims)), False


def _dim(each: Any) -> Dim:
    if not isinstance(each, int) or each < 0:
        raise Mixes(f"is given the dimension {each}")
    return Dim(each)


def _what_is_left(value: Value, dims: Sequence[Dim], symbols: Symbols) -> Dim:
    total, others = product(value.known_dims), product(dims)
    left = total.over(others)
    if left is not None:
        return left
    if value.axis is not None and not others.batches:
        raise Mixes("reshapes rows so that they may be mixed")
    if value.axis is not None:
        rest, reduced = total.over(BATCH), others.over(BATCH)
        if rest is None or reduced is None or reduced.batches:
            raise Mixes("reshapes rows so that they may be mixed")
        total, others = rest, reduced
    return symbols.size(("left", total, others), filled=total.is_filled)
