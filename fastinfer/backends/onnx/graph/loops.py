"""Follows rows through ``Scan`` and ``Loop``: a body that is applied again and again to its own results, the states.

The body is followed once. That covers all its runs if the rows are at the same place in each state before and after it,
and if the states and the number of runs do not depend on values of rows otherwise.

scikit-learn's converter writes the distances between the rows of a batch and those of the training data as a ``Scan``
over the training data, whose state is the batch. A ``Scan`` over rows would carry its state from row to row. Keras'
recurrent layers are loops over time.

Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from fastinfer.backends.onnx.graph.dims import Dim
from fastinfer.backends.onnx.graph.operators.call import Call, axis_of
from fastinfer.backends.onnx.graph.proto import Graph
from fastinfer.backends.onnx.graph.values import Mixes, Value, free, moved, unchanged

_MAX_RUNS = 10_000  # of a loop, e.g. over time
_MIN_SCAN = 9  # the version before has a batch dimension of its own

Body = Callable[[Graph, Sequence[Value]], list[Value]]
"""Computes the outputs of a subgraph from its inputs."""


def scan(call: Call, body: Body) -> list[Value]:
    """Return the outputs of a ``Scan``: final states, then the slices that the body makes, joined. Mixes."""
    values = [call.need(at) for at in range(len(call.inputs))]
    scanned = call.integer("num_scan_inputs", 0)
    if call.opset < _MIN_SCAN or not 0 < scanned <= len(values):
        raise Mixes("is of a version that is not known")
    count = len(values) - scanned
    axes = call.integers("scan_input_axes") or [0] * scanned
    slices = [_slice(value, axis) for value, axis in zip(values[count:], axes, strict=True)]
    made = _repeated(call, body, values[:count], lambda states: [*states, *slices])
    length = values[count].known_dims[axis_of(values[count], axes[0])]
    output_axes = call.integers("scan_output_axes") or [0] * (len(made) - count)
    joined = [_joined(value, axis, length) for value, axis in zip(made[count:], output_axes, strict=True)]
    return [*made[:count], *joined]


def loop(call: Call, body: Body) -> list[Value]:
    """Return the outputs of a ``Loop``: final states, then the values that the body makes, joined. Mixes."""
    limit, condition, *states = [call.value(at) for at in range(max(2, len(call.inputs)))]
    given = [value for value in states if value is not None]
    if len(given) != len(states):
        raise Mixes("lacks an input")
    if any(value is not None and not value.is_free for value in (limit, condition)):
        raise Mixes("runs as often as rows say")
    if limit is None or limit.content is None or not _is_few(limit.content.flat[0]):
        raise Mixes("runs an unknown number of times")  # the trial would take long
    number, condition = free([]), free([])  # the condition is a state, and so must stay free
    made = _repeated(call, body, [condition, *given], lambda states: [number, *states])
    joined = [_joined(value, 0, call.symbols.any_size()) for value in made[1 + len(given) :]]
    return [*made[1 : 1 + len(given)], *joined]


def _is_few(runs: object) -> bool:
    """Whether a loop ends soon: after a small number of runs, or one that is a size."""
    return runs.is_size if isinstance(runs, Dim) else isinstance(runs, int) and runs <= _MAX_RUNS


def _repeated(
    call: Call, body: Body, states: Sequence[Value], arguments: Callable[[Sequence[Value]], Sequence[Value]]
) -> list[Value]:
    """Return what the body makes: first the states. Mixes unless one run of it covers all."""
    graph = call.attributes["body"].g if "body" in call.attributes else None
    if graph is None:
        raise Mixes("has no body")
    if any(_counts(value) for value in states):
        raise Mixes("computes with the batch size")
    states = [unchanged(value) for value in states]
    made = body(graph, arguments(states))
    count = len(states)
    mixed = next((value for value in made[:count] if value.mixed is not None), None)
    if mixed is not None:
        return [_may_run(mixed)] * len(made)
    for before, after in zip(states, made[:count], strict=True):
        if _facts(before) != _facts(after):
            raise Mixes("changes where the rows of its state are")
    return [*map(unchanged, made[:count]), *made[count:]]


def _may_run(value: Value) -> Value:
    """Return a value of a body, which may be run not at all."""
    return replace(value, never=False) if value.never else value


def _facts(value: Value) -> tuple[object, ...]:
    return value.dims, value.axis, value.before, value.after, _counts(value)


def _counts(value: Value) -> bool:
    """Whether a value depends on the batch in another way than by its rows."""
    return value.counts_rows or value.loose or value.place is not None or value.filled_with is not None


def _slice(value: Value, axis: int) -> Value:
    """Return the facts about one slice."""
    at = axis_of(value, axis)
    if value.axis == at:
        raise Mixes("carries its state from row to row")
    dims = [dim for i, dim in enumerate(value.known_dims) if i != at]
    return moved(value, dims, None if value.axis is None else value.axis - (value.axis > at))


def _joined(value: Value, axis: int, length: Dim) -> Value:
    """Return the facts about slices that are joined along a new axis."""
    if value.mixed is not None or (value.is_free and value.dims is None):
        return _may_run(value)
    if _counts(value):
        raise Mixes("computes with the batch size")
    at = axis_of(value, axis, value.rank + 1)
    dims = [*value.known_dims[:at], length, *value.known_dims[at:]]
    return moved(value, dims, None if value.axis is None else value.axis + (value.axis >= at))
