"""Where the rows of a batch are in a value of a graph, and what broadcasting and reshaping make of them.

A value either has no rows (a constant, or what follows from shapes), or it has an *axis of rows*: its length is
``before * batch * after``, and what belongs to row ``i`` are the elements at ``(b * batch + i) * after + a`` of it, for
each ``b`` and ``a``. Mostly ``before`` and ``after`` are 1, and slice ``i`` is row ``i``. A value of which that cannot
be said is *mixed*: its elements may depend on several rows, on a row's place, or on how many there are.

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
"""The elements of a small tensor of numbers: ``int``, ``float``, ``bool``, or a :class:`Dim` that is no number."""


class Mixes(Exception):
    """An operator's outputs cannot be said to keep rows apart; the text says why, with the operator as its subject."""


class Place(Enum):
    """What the elements of row ``i`` of a value say of ``i``."""

    ALL = "all are i"
    FIRST = "the first along the last axis are i, and the others say nothing of it"
    SOME = "some depend on i"


@dataclass(frozen=True, slots=True)
class Value:
    """What is known of a value.

    Attributes:
        dims: its dimensions; None: not even the rank is known (then it has no rows).
        axis: the axis of rows; None: it has none.
        before, after: what the axis holds beside the batch size.
        content: its elements, if they are few and follow from constants and shapes.
        mixed: why its rows are not apart; None: they are.
        rounds: the operator type that may round a row otherwise in other batches; None: each row has the same bits.
        source: the graph's input that it is, but for its shape and type.
        place: what its elements say of the row's place in the batch; None: nothing. A value that has it is mixed for
            all but the operators of :mod:`fastinfer.backends.onnx.graph.operators.places`.
        loose: in a request for which it has no elements its dimensions may be others. Only operators that give no
            elements then may take it.
    """

    dims: tuple[Dim, ...] | None
    axis: int | None = None
    before: Dim = ONE
    after: Dim = ONE
    content: Content | None = None
    mixed: str | None = None
    rounds: str | None = None
    source: str | None = None
    place: Place | None = None
    loose: bool = False

    @property
    def counts_rows(self) -> bool:
        """Its elements depend on how many rows there are."""
        return self.content is not None and any(isinstance(e, Dim) and e.batches > 0 for e in self.content.flat)

    @property
    def is_free(self) -> bool:
        """It is the same whatever rows there are."""
        return self.axis is None and self.mixed is None and not self.counts_rows

    @property
    def rank(self) -> int:
        """How many dimensions it has. Mixes if that is not known."""
        return len(self.known_dims)

    @property
    def known_dims(self) -> tuple[Dim, ...]:
        """Its dimensions. Mixes if they are not known."""
        if self.dims is None:
            raise Mixes("takes a value of unknown rank")
        return self.dims

    @property
    def is_scalar(self) -> bool:
        """It has one element."""
        return self.dims is not None and all(dim == ONE for dim in self.dims)


def constant(content: Any) -> Value:
    """The value of an array of numbers and dimensions."""
    array = np.asarray(content, dtype=object)
    return Value(tuple(Dim(size) for size in array.shape), content=array)


def free(dims: Sequence[Dim] | None) -> Value:
    """A value without rows, of which the content is not known."""
    return Value(None if dims is None else tuple(dims))


def moved(value: Value, dims: Sequence[Dim], axis: int | None = None) -> Value:
    """A value whose rows are where they were, or on another axis, with other dimensions beside them."""
    if value.axis is None:
        return free(dims)
    axis = value.axis if axis is None else axis
    made = list(dims)
    made[axis] = value.known_dims[value.axis]
    return Value(tuple(made), axis, value.before, value.after)


def unchanged(value: Value) -> Value:
    """A value of the same shape with the rows at the same place."""
    return replace(value, content=None, source=None)


def broadcast_dim(left: Dim, right: Dim, symbols: Symbols) -> Dim:
    """The dimension of two that are broadcast."""
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
    """What is computed of several values element by element, as numpy broadcasts them. Mixes."""
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


def reshape(value: Value, wanted: Sequence[Any], symbols: Symbols, *, zero_copies: bool = True) -> Value:
    """A value with other dimensions and the same elements in the same order.

    Args:
        value: what is reshaped.
        wanted: numbers and dimensions; -1 stands for what is left.
        symbols: the graph's.
        zero_copies: 0 stands for the dimension at its place.

    Raises:
        Mixes: rows are not apart in the result, or it depends on the symbols whether they are.
    """
    if value.dims is None:
        return free([Dim(each) if isinstance(each, int) and each > 0 else symbols.any_size() for each in wanted])
    dims = []
    shape = _Shape(zero_copies, -1 in wanted)
    loose = value.loose and (-1 in wanted or 0 in wanted)
    for i, each in enumerate(wanted):
        if each == 0 and zero_copies:
            if i >= value.rank:
                raise Mixes("copies a dimension that is not there")
            dims.append(value.dims[i])
        elif isinstance(each, Dim):
            dim, may_differ = _wanted(value, each, i, shape, symbols)
            dims.append(dim)
            loose = loose or may_differ
        else:
            dims.append(ONE if each == -1 else _dim(each))
    if -1 in wanted:
        dims[list(wanted).index(-1)] = _what_is_left(value, dims, symbols)
    holders = [i for i, dim in enumerate(dims) if dim.batches]
    if value.axis is None:
        if holders:
            raise Mixes("gives a constant the batch dimension")
        return replace(free(dims), loose=loose)
    if len(holders) != 1:
        raise Mixes("reshapes rows to a shape that does not follow the batch size" if not holders else "mixes rows")
    at = holders[0]
    # The runtime checks the number of elements. So it is enough to know what stands before the rows: the rest follows.
    before = (product(value.dims[: value.axis]) * value.before).over(product(dims[:at]))
    after = None if before is None else dims[at].over(before * BATCH)
    if before is None or after is None:
        raise Mixes("reshapes rows so that they may not stay apart")
    return Value(tuple(dims), at, before, after, loose=loose)


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a reshape's shape has beside the dimension that is looked at: whether 0 copies, whether there is a -1."""

    zero_copies: bool
    infers: bool


def _wanted(value: Value, each: Dim, at: int, shape: _Shape, symbols: Symbols) -> tuple[Dim, bool]:
    """The dimension that a reshape makes of a symbolic one, and whether the result is loose for it.

    It may be 0 in some requests, or -1 if it is opaque, and then stands for another size. That does not matter if the
    dimension that 0 copies is 0 with it. If it is a size of the value too, the value has no elements then.
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
        raise Mixes("reshapes rows so that they may not stay apart")
    if value.axis is not None:
        rest, reduced = total.over(BATCH), others.over(BATCH)
        if rest is None or reduced is None or reduced.batches:
            raise Mixes("reshapes rows so that they may not stay apart")
        total, others = rest, reduced
    return symbols.size(("left", total, others), filled=total.is_filled)
