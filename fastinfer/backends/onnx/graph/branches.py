"""Branches of ``If`` whose condition depends on the sizes of a request: each proof assumes one of the choices.

``squeeze(-1) if size(-1) == 1`` has a result of another rank in each branch. Requests of a batch have the same sizes,
so they take the same branch, and the graph is followed once for each combination of choices. A choice with which the
runtime refuses to run proves everything.

Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fastinfer.backends.onnx.graph.dims import Dim
from fastinfer.backends.onnx.graph.values import Content, Value, free

Choices = tuple[bool, ...]
MAX_COMBINATIONS = 16


class UndecidedError(Exception):
    """A choice is needed that was not given."""


class Decisions:
    """The choices of one run through the graph, in the order in which they are needed; equal conditions need one."""

    def __init__(self, choices: Choices) -> None:
        self._choices = choices
        self._decided: dict[Dim, bool] = {}

    def decide(self, condition: Dim) -> bool:
        """Return the assumed value of a condition. UndecidedError if no choice is left."""
        if condition not in self._decided:
            if len(self._decided) == len(self._choices):
                raise UndecidedError
            self._decided[condition] = self._choices[len(self._decided)]
        return self._decided[condition]


def by_sizes(content: Content | None) -> Dim | None:
    """Return a condition that depends on sizes; None: it depends on something else, or is known."""
    only = content.flat[0] if content is not None and content.size == 1 else None
    return only if isinstance(only, Dim) else None


def merged(branches: Sequence[Sequence[Value]]) -> list[Value]:
    """Merge the values of two branches, either of which may be taken."""
    return [_either(one, other) for one, other in zip(*branches, strict=True)]


def _either(one: Value, other: Value) -> Value:
    if one.never or other.never:
        return other if one.never else one
    if one.mixed is not None or other.mixed is not None:
        return one if one.mixed is not None else other
    if one.counts_rows or other.counts_rows:
        return Value(None, mixed="operator 'If' gives numbers that depend on the batch size")
    if one.loose or other.loose:
        return Value(None, mixed="operator 'If' computes with sizes that may differ if one of them is 0")
    if one.filled_with is not None or other.filled_with is not None:
        return Value(None, mixed="operator 'If' gives rows that are filled up to the longest of all rows")
    if one.place is not other.place:
        return Value(None, mixed="operator 'If' computes with the places of rows in the batch")
    if one.axis is None and other.axis is None:
        return free(one.dims if one.dims == other.dims else None)
    if (one.dims, one.axis, one.before, one.after) != (other.dims, other.axis, other.before, other.after):
        return Value(None, mixed="operator 'If' has branches with rows on different axes")
    return replace(one, rounds=one.rounds or other.rounds)
