"""Operators on shapes: reshaping, broadcasting, joining, dividing, padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fastinfer.backends.onnx.graph.contents import MAX_ELEMENTS, part, stored
from fastinfer.backends.onnx.graph.dims import BATCH, ONE, Dim, product
from fastinfer.backends.onnx.graph.operators.call import (
    MICROSOFT,
    ONNX,
    Call,
    axis_of,
    joined,
    permuted,
    require_free,
    require_untouched,
    rule,
    sizes_of,
    unary,
)
from fastinfer.backends.onnx.graph.values import Content, Mixes, Value, broadcast, constant, free, moved, reshape

_NO_END = 10**9  # larger than any axis: exporters write such numbers for "to the end"; tf2onnx writes this one


@rule("Shape")
def _shape(call: Call) -> list[Value]:
    x = call.need(0)
    if x.dims is None:
        return [free([call.symbols.any_size()])]
    start, end = call.integer("start", 0), call.integer("end", x.rank)
    return [constant(_elements(x.dims[start:end]))]


@rule("Size")
def _size(call: Call) -> list[Value]:
    x = call.need(0)
    return [free([])] if x.dims is None else [constant(_elements([product(x.dims)])[0])]


def _elements(dims: Sequence[Dim]) -> Content:
    content: Content = constant([0] * len(dims)).content  # type: ignore[assignment]
    for i, dim in enumerate(dims):
        content[i] = dim if dim.number is None else dim.number
    return content


@rule("Reshape")
def _reshape(call: Call) -> list[Value]:
    x = call.need(0)
    shape = call.value(1)
    if shape is not None and shape.content is None and x.axis is None and shape.is_free:
        return [free(None)]
    requested = call.content(1)
    if requested is None:
        raise Mixes("has no shape")
    made = reshape(x, list(requested.flat), call.symbols, zero_copies=not call.integer("allowzero", 0))
    return [_with_source(made, x)]


def _with_source(made: Value, x: Value) -> Value:
    return replace(made, source=x.source)


@rule("Flatten")
def _flatten(call: Call) -> list[Value]:
    x = call.need(0)
    axis = call.integer("axis", 1)
    axis = axis + x.rank if axis < 0 else axis
    dims = x.known_dims
    return [reshape(x, [product(dims[:axis]), product(dims[axis:])], call.symbols, zero_copies=False)]


@rule("Squeeze")
def _squeeze(call: Call) -> list[Value]:
    x = call.need(0)
    axes = call.numbers(1, "axes")
    if not axes:
        if x.axis is not None:
            raise Mixes("removes all dimensions of length 1, and so the batch dimension if there is one row")
        axes = [i for i, dim in enumerate(x.known_dims) if dim == ONE]
        if any(dim.number is None for dim in x.known_dims):
            return [free(None)]
    gone = {axis_of(x, axis) for axis in axes}
    require_untouched(x, sorted(gone), "takes one row")
    kept = [i for i in range(x.rank) if i not in gone]
    made = moved(x, [x.known_dims[i] for i in kept], None if x.axis is None else kept.index(x.axis))
    return [_with_source(made, x)]


@rule("Unsqueeze", domains=[ONNX])
def _unsqueeze(call: Call) -> list[Value]:
    x = call.need(0)
    axes = call.numbers(1, "axes") or []
    rank = x.rank + len(axes)
    new = {axis_of(x, axis, rank) for axis in axes}
    if len(new) != len(axes):
        raise Mixes("names an axis twice")
    old = iter(x.known_dims)
    dims = [ONE if i in new else next(old) for i in range(rank)]
    kept = [i for i in range(rank) if i not in new]
    return [_with_source(moved(x, dims, None if x.axis is None else kept[x.axis]), x)]


@rule("Transpose")
def _transpose(call: Call) -> list[Value]:
    x = call.need(0)
    return [permuted(x, call.integers("perm") or list(reversed(range(x.rank))))]


@rule("Expand")
def _expand(call: Call) -> list[Value]:
    x, requested = call.need(0), call.value(1)
    if requested is not None and requested.content is None and x.axis is None and requested.is_free:
        return [free(None)]
    return [broadcast([x, _filled(sizes_of(call.content(1)))], call.symbols)]


def _filled(sizes: Sequence[Dim]) -> Value:
    """Make a value whose elements are all equal. Mixes if its shape is not a multiple of the batch size."""
    holders = [i for i, dim in enumerate(sizes) if dim.batches]
    if not holders:
        return free(sizes)
    after = sizes[holders[0]].over(BATCH)
    if len(holders) > 1 or after is None or after.batches:
        raise Mixes("computes with the batch size")
    return Value(tuple(sizes), holders[0], ONE, after)


@rule("ConstantOfShape")
def _constant_of_shape(call: Call) -> list[Value]:
    shape = call.need(0)
    if shape.content is None and shape.is_free:
        return [free(None)]
    sizes = sizes_of(call.content(0))
    number = product(sizes).number
    value = call.tensor("value")
    element = [0.0] if value is None else stored(value)
    if number is None or number > MAX_ELEMENTS or any(size.number is None for size in sizes):
        return [_filled(sizes)]
    if element is None or len(element) != 1:
        return [_filled(sizes)]
    return [constant(np.full([dim.factor for dim in sizes], element[0], dtype=object))]


@rule("Tile")
def _tile(call: Call) -> list[Value]:
    x = call.need(0)
    repeats = sizes_of(call.content(1))
    if len(repeats) != x.rank:
        raise Mixes("does not have a number for each axis")
    if x.axis is not None and repeats[x.axis] != ONE:
        raise Mixes("repeats the batch dimension")
    dims = [dim * count for dim, count in zip(x.known_dims, repeats, strict=True)]
    if x.axis is not None:
        if any(dim.batches for i, dim in enumerate(dims) if i != x.axis):
            raise Mixes("computes with the batch size")
        return [moved(x, dims)]
    made = _filled(dims)
    if made.axis is not None and x.known_dims[made.axis] != ONE:
        raise Mixes("repeats a constant for each row")
    return [made]


@rule("Concat")
def _concat(call: Call) -> list[Value]:
    values = [value for value in call.inputs if value is not None]
    if not values:
        raise Mixes("lacks inputs")
    return [joined(call, values)]


@rule("Split")
def _split(call: Call) -> list[Value]:
    x = call.need(0)
    axis = axis_of(x, call.integer("axis", 0))
    require_untouched(x, [axis], "divides")
    sizes = call.numbers(1, "split")
    number = x.known_dims[axis].number
    count = call.outputs
    if sizes is None and number is not None:
        each = -(-number // count)
        sizes = [min(each, number - each * i) for i in range(count)]
    made = []
    for i in range(count):
        dims = list(x.known_dims)
        dims[axis] = Dim(sizes[i]) if sizes is not None and i < len(sizes) else call.symbols.any_size()
        made.append(moved(x, dims))
    return made


@rule("Slice")
def _slice(call: Call) -> list[Value]:
    x = call.need(0)
    from_inputs = call.opset >= 10
    starts = call.content(1, "starts") if from_inputs else constant(call.integers("starts") or []).content
    ends = call.content(2) if from_inputs else constant(call.integers("ends") or []).content
    axes = call.numbers(3) if from_inputs else call.integers("axes")
    steps = (call.numbers(4) if from_inputs else None) or []
    if starts is None or ends is None:
        raise Mixes("has no starts or ends")
    axes = axes or list(range(len(starts)))  # the runtime treats an empty list as absent
    dims = list(x.known_dims)
    for i, (axis, start, end) in enumerate(zip(axes, starts.flat, ends.flat, strict=False)):
        axis = axis_of(x, axis)
        step = steps[i] if i < len(steps) else 1
        whole = step == 1 and start == 0 and (end == dims[axis] or (isinstance(end, int) and end >= _NO_END))
        if whole:
            continue
        require_untouched(x, [axis], "takes a part")
        if any(isinstance(bound, Dim) and bound.batches for bound in (start, end)):
            raise Mixes("computes with the batch size")
        number = dims[axis].number
        if number is not None and isinstance(start, int) and isinstance(end, int) and step:
            dims[axis] = Dim(len(range(*part(number, start, end, step).indices(number))))
        else:
            dims[axis] = call.symbols.size(("slice", dims[axis], start, end, step))
    return [moved(x, dims)]


@rule("Pad", domains=[ONNX, MICROSOFT])
def _pad(call: Call) -> list[Value]:
    x = call.need(0)
    require_free(call, 2)
    from_inputs = call.domain == MICROSOFT or call.opset >= 11
    pads = call.content(1) if from_inputs else constant(call.integers("pads") or []).content
    given = call.numbers(3)
    axes = list(range(x.rank)) if given is None else [axis_of(x, axis) for axis in given]
    if pads is None or pads.size != 2 * len(axes):
        raise Mixes("does not have two numbers for each axis")
    dims = list(x.known_dims)
    before, after = list(pads.flat)[: len(axes)], list(pads.flat)[len(axes) :]
    for axis, *edges in zip(axes, before, after, strict=True):
        if edges == [0, 0]:
            continue
        require_untouched(x, [axis], "pads")
        if any(isinstance(edge, Dim) and edge.batches for edge in edges):
            raise Mixes("computes with the batch size")
        number = dims[axis].number
        known = number is not None and not any(isinstance(edge, Dim) for edge in edges)
        dims[axis] = Dim(number + sum(edges)) if known and number is not None else call.symbols.any_size()
    return [moved(x, dims)]


@rule("Trilu", domains=[ONNX, MICROSOFT])
def _trilu(call: Call) -> list[Value]:
    x = call.need(0)
    require_free(call, 1)
    require_untouched(x, [x.rank - 2, x.rank - 1], "cuts")
    return unary(call)
