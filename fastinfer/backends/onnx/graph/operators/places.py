"""Operators on the places of rows in the batch.

Exporters write ``data[arange(batch), at]`` as a ``Range`` over the batch size, whose numbers select each row's own
elements with ``GatherND``. So a ``Range`` over the batch size is followed up to the ``GatherND``, through operators
that only move its elements. Any other operator on it mixes rows: a row's answer would depend on its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fastinfer.backends.onnx.graph.dims import BATCH, ONE, Dim
from fastinfer.backends.onnx.graph.operators.call import ONNX, Call, rule
from fastinfer.backends.onnx.graph.values import Mixes, Place, Value, free

_MOVE = frozenset({"Cast", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_COMBINE = frozenset(
    {
        "Add", "And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mul", "Or", "Sub",
        "Where",
    }
)  # fmt: skip
_SHAPES = frozenset({"Shape", "Size"})
_WHOLE = (6, 7)  # TensorProto.DataType.INT32, INT64


@rule("Range")
def _range(call: Call) -> list[Value]:
    bounds = [value.content.item() if value.content is not None else None for value in map(call.need, range(3))]
    start, end, step = bounds
    if start == 0 and step == 1 and isinstance(end, Dim):
        if end == BATCH:
            return [Value((BATCH,), 0, place=Place.ALL)]
        if end.is_size and not end.batches:
            return [free([end])]
    if any(isinstance(bound, Dim) and bound.batches for bound in bounds):
        raise Mixes("computes with the batch size")
    return [free([call.symbols.any_size()])]


def place_of(call: Call) -> Place | None:
    """Return how an operator's outputs depend on a row's place. Mixes if it must not compute with places."""
    at = [i for i, value in enumerate(call.inputs) if value is not None and value.place is not None]
    if not at or (call.domain == ONNX and call.op_type in _SHAPES):
        return None
    place = call.need(at[0]).place
    if call.domain == ONNX:
        if call.op_type == "GatherND" and at == [1] and _selects_own_row(call):
            return None
        if call.op_type in _MOVE and at == [0]:
            keeps = call.op_type == "Identity" or (
                place is Place.ALL and (call.op_type != "Cast" or call.integer("to", 0) in _WHOLE)
            )
            return place if keeps else Place.SOME
        if call.op_type in _COMBINE:
            return Place.SOME
        if call.op_type == "Concat":
            first = call.need(0)
            last = call.integer("axis", 0) in (-1, first.rank - 1) and first.known_dims[-1] == ONE
            return Place.FIRST if at == [0] and place is Place.ALL and last else Place.SOME
    raise Mixes("computes with the places of rows in the batch")


def _selects_own_row(call: Call) -> bool:
    """Whether ``GatherND`` selects only from the same row of its data."""
    data, indices = call.need(0), call.need(1)
    depth = indices.known_dims[-1]
    leads = indices.place is Place.FIRST or (indices.place is Place.ALL and depth == ONE)
    apart = data.axis == 0 and data.known_dims[0] == BATCH
    return leads and apart and depth.number is not None and not call.integer("batch_dims", 0)


def placed(values: Sequence[Value], place: Place | None) -> list[Value]:
    """Return an operator's outputs with the result of :func:`place_of`."""
    return list(values) if place is None else [replace(value, place=place) for value in values]
