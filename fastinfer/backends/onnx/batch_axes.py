"""Guesses which dimension of each input is the batch, for the proof from the graph to decide.

Exporters name dimensions as they like, or not at all, so a name is a hint only. Mostly the batch is the first
dimension; recurrent models take and return a state whose second dimension it is (``[layers, batch, hidden]``). An input
without rows (a sampling rate, a threshold) has one value in a batch: requests with other values run apart.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod

from fastinfer.tensor.signature import names_a_batch
from fastinfer.tensor.tensor import TensorSpec

NO_ROWS = -1
_MAX_COMMON_ELEMENTS = 16  # of an input without rows; its value is a part of the key by which requests are queued

Axes = Mapping[str, int]
"""The batch dimension of inputs by name, where it is not the first."""


def guesses(inputs: Sequence[TensorSpec], configured: Axes) -> Iterator[Axes]:
    """Yield where the rows may be in each input, the most likely first.

    Args:
        inputs: the model's inputs.
        configured: the batch dimension of inputs for which the configuration gives it.
    """
    likely = {spec.name: configured.get(spec.name, _likely(spec)) for spec in inputs}
    yield _elsewhere(likely)
    first = {spec.name: configured.get(spec.name, 0 if spec.shape else NO_ROWS) for spec in inputs}
    if first != likely:
        yield _elsewhere(first)


def _elsewhere(axes: Axes) -> Axes:
    return {name: axis for name, axis in axes.items() if axis != 0}


def _likely(spec: TensorSpec) -> int:
    """Return the dimension that is named like a batch, else the first open one."""
    if spec.open_rank:
        return 0
    dims = list(zip(spec.shape, spec.symbols, strict=True))
    named = [at for at, (dim, symbol) in enumerate(dims) if dim < 0 and names_a_batch(symbol)]
    if named:
        return named[0]
    unnamed = [at for at, (dim, _) in enumerate(dims) if dim < 0]
    if unnamed:
        return unnamed[0]
    return NO_ROWS if may_be_common(spec) else 0


def may_be_common(spec: TensorSpec) -> bool:
    """Whether an input may have no rows: its value is small, whatever a request says."""
    fixed = not spec.open_rank and all(dim >= 0 for dim in spec.shape)
    return fixed and spec.datatype != "BYTES" and prod(spec.shape) <= _MAX_COMMON_ELEMENTS


def why_no_rows(inputs: Sequence[TensorSpec]) -> str | None:
    """Return why inputs with these batch dimensions have no rows in common, as a clause; None: they have."""
    with_rows = [spec for spec in inputs if spec.batch_axis >= 0]
    if not with_rows:
        return f"input '{inputs[0].name}' has the shape {list(inputs[0].shape)}, without an open first dimension"
    for spec in with_rows:
        if spec.batch_axis >= len(spec.shape) or spec.shape[spec.batch_axis] != -1:
            which = "first dimension" if spec.batch_axis == 0 else f"dimension {spec.batch_axis}"
            return f"input '{spec.name}' has the shape {list(spec.shape)}, without an open {which}"
        if spec.batch_axis > 0 and spec.datatype == "BYTES":
            return f"input '{spec.name}' has texts, whose rows can be along the first dimension only"
    batch = {spec.symbols[spec.batch_axis] for spec in with_rows} - {""}
    for spec in inputs:
        others = [symbol for at, symbol in enumerate(spec.symbols) if at != spec.batch_axis]
        again = batch.intersection(others)
        if again:
            which = "first dimension" if all(each.batch_axis == 0 for each in with_rows) else "batch dimension"
            return f"the {which} '{again.pop()}' is also another one of input '{spec.name}'"
    return None
