"""Operators that select elements by index."""

from __future__ import annotations

from fastinfer.backends.onnx.graph.operators.call import (
    Call,
    axis_of,
    require_free,
    require_same_rows,
    require_untouched,
    rule,
)
from fastinfer.backends.onnx.graph.values import Mixes, Value, free, moved, unchanged


@rule("Gather")
def _gather(call: Call) -> list[Value]:
    data, indices = call.need(0), call.need(1)
    if data.dims is None and data.axis is None and indices.axis is None:
        return [free(None)]
    axis = axis_of(data, call.integer("axis", 0))
    dims = [*data.known_dims[:axis], *indices.known_dims, *data.known_dims[axis + 1 :]]
    if data.axis is None:
        table = data.known_dims[axis].number
        if indices.source is not None and table is not None:
            call.id_limits[indices.source] = min(table, call.id_limits.get(indices.source, table))
        return [moved(indices, dims, None if indices.axis is None else axis + indices.axis)]
    require_untouched(data, [axis], "selects")
    if not indices.is_free:
        raise Mixes("selects from rows by the values of other rows")
    return [moved(data, dims, data.axis if data.axis < axis else data.axis + indices.rank - 1)]


@rule("GatherElements")
def _gather_elements(call: Call) -> list[Value]:
    data, indices = call.need(0), call.need(1)
    require_same_rows(data, indices)
    require_untouched(data, [axis_of(data, call.integer("axis", 0))], "selects")
    return [unchanged(indices)]


@rule("ScatterElements", "Scatter")
def _scatter_elements(call: Call) -> list[Value]:
    data, indices, updates = call.need(0), call.need(1), call.need(2)
    require_same_rows(data, indices, updates)
    require_untouched(data, [axis_of(data, call.integer("axis", 0))], "writes")
    return [unchanged(data)]


@rule("GatherND")
def _gather_nd(call: Call) -> list[Value]:
    data, indices = call.need(0), call.need(1)
    shared = call.integer("batch_dims", 0)
    depth = indices.known_dims[-1].number
    if depth is None:
        raise Mixes("takes indices of unknown depth")
    dims = [*indices.known_dims[:-1], *data.known_dims[shared + depth :]]
    if indices.place is not None:  # each row selects from itself: place_of has checked that
        return [moved(indices, dims)]
    if data.axis is not None and not shared and indices.is_free:
        require_untouched(data, range(depth), "selects")
        return [moved(data, dims, indices.rank - 1 + data.axis - depth)]
    if data.axis is not None or shared:
        require_same_rows(data, indices)
        if data.axis is None or data.axis >= shared:
            raise Mixes("selects from rows by the values of other rows")
        return [moved(data, dims)]
    require_untouched(indices, [indices.rank - 1], "selects")
    return [moved(indices, dims)]


@rule("Compress")
def _compress(call: Call) -> list[Value]:
    x = call.need(0)
    require_free(call, 1)
    if "axis" not in call.attributes:
        if x.axis is not None:
            raise Mixes("selects from all rows")
        return [free([call.symbols.any_size()])]
    axis = axis_of(x, call.integer("axis", 0))
    require_untouched(x, [axis], "selects")
    dims = list(x.known_dims)
    dims[axis] = call.symbols.any_size()
    return [moved(x, dims)]


@rule("OneHot")
def _one_hot(call: Call) -> list[Value]:
    x = call.need(0)
    require_free(call, 1, 2)
    axis = axis_of(x, call.integer("axis", -1), x.rank + 1)
    dims = [*x.known_dims[:axis], call.symbols.any_size(), *x.known_dims[axis:]]
    return [moved(x, dims, None if x.axis is None else x.axis + (x.axis >= axis))]
