"""Trial runs of a session at load: checks that a row's answer is the same alone and in a batch.

It backs up the proof from the graph (:mod:`fastinfer.backends.onnx.graph.rows`): one of its rules or an operator of the
runtime may be wrong. Rows of very different magnitude are run together, NaN beside numbers, and integers from
growing ranges. Runs on a load thread, never on the loop's.

There are two comparisons, so that rounding does not look like dependence. (1) A row alone and copies of it: the number
of rows must not matter, but it selects the kernels, so values of ordinary magnitude are compared within a tolerance.
(2) A row among copies of itself and the same row, at the same place, among others: both runs have the same shapes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastinfer.backends.batch_run import BatchRun
from fastinfer.backends.draws import ORDINARY, Draw, draw_values
from fastinfer.backends.onnx.ort import OrtError, Session
from fastinfer.base.errors import without_paths
from fastinfer.tensor.message import InferRequest
from fastinfer.tensor.tensor import Tensor, TensorSpec

log = logging.getLogger(__name__)

Arrays = list[NDArray[Any]]

TOO_LONG = "a trial run took longer than"
_OPEN_DIMENSIONS = (8, 1, 3, 16, 32, 224)  # sizes that are tried for open dimensions, in this order
_TOLERANCE = {"FP16": 2e-3, "BF16": 2e-2, "FP32": 1e-5, "FP64": 1e-10}  # relative to the row's largest magnitude
_ROWS = 3
_LOOKS_S = 0.5  # between two looks at the runs


class TooLongError(OrtError):
    """A run was terminated after its timeout."""


@dataclass(eq=False, slots=True)
class _Running:
    """A run, and when it must have ended, on the monotonic clock."""

    run: BatchRun
    deadline: float
    overdue: bool = False


class TrialRuns:
    """Terminates the runs at load, from any load thread, that take too long or outlive the server.

    One thread waits for the first deadline. It ends when it looks and there is no run.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._runs: set[_Running] = set()
        self._ended = False
        self._wakes_at: float | None = None  # None: there is no thread

    @contextmanager
    def running(self, run: BatchRun, timeout_s: float) -> Iterator[_Running]:
        """Registers a run while it lasts. OrtError if the server is ending."""
        running = _Running(run, time.monotonic() + timeout_s)
        with self._changed:
            if self._ended:
                raise OrtError("the server is ending")
            self._runs.add(running)
            if self._wakes_at is None:
                Thread(target=self._watch, name="fastinfer-trials", daemon=True).start()
                self._wakes_at = running.deadline
            elif running.deadline < self._wakes_at:
                self._changed.notify()
        try:
            yield running
        finally:
            with self._changed:
                self._runs.discard(running)

    def _watch(self) -> None:
        with self._changed:
            while True:
                now = time.monotonic()
                deadline = self._end_overdue(now)
                self._wakes_at = None if deadline is None else min(deadline, now + _LOOKS_S)
                if self._wakes_at is None:
                    return
                self._changed.wait(self._wakes_at - now)

    def _end_overdue(self, now: float) -> float | None:
        """Terminate overdue runs; return the next deadline. Apart from the wait, which must not keep a run alive."""
        for each in self._runs:
            if each.deadline <= now and not each.overdue:
                each.overdue = True
                each.run.terminate()
        return min((each.deadline for each in self._runs if not each.overdue), default=None)

    def end(self) -> None:
        """Terminates the current runs; later ones fail."""
        with self._changed:
            self._ended = True
            for each in self._runs:
                each.run.terminate()


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs a session, each run for at most ``timeout_s``."""

    session: Session
    timeout_s: float
    trials: TrialRuns

    def run(self, arrays: Sequence[NDArray[Any]]) -> Arrays:
        """Run once, with all inputs that are not optional; returns the outputs. OrtError, TooLongError."""
        return self.run_tensors(
            [
                Tensor.from_numpy(spec.name, array, spec.datatype)
                for spec, array in zip(self.session.inputs, arrays, strict=True)
            ]
        )

    def run_tensors(self, tensors: list[Tensor]) -> Arrays:
        """Run once, with inputs in the session's order, then optional ones; returns the outputs. Errors as run."""
        run = BatchRun(self.session, [InferRequest(tensors)], False)
        with self.trials.running(run, self.timeout_s) as running:
            run.run()
        if run.error is not None:
            raise TooLongError("a run at load took too long") if running.overdue else run.error
        return [tensor.numpy() for tensor in run.split()[0]]


# --- Values -----------------------------------------------------------------------------------------------------------


_DRAWS = (
    Draw((1, 0.01, 100), False, False, 2),
    Draw((0.01, 1, 1), True, True, 16),
    Draw((1, 1000, 1), False, False, 1000),
    Draw((1, 0.1, 10), False, False, 1_000_000),
    Draw((1, 1, 1), False, True, 1 << 62),
)
_FLOATING_DRAWS = 2  # draws for models without integer inputs


# --- The trial --------------------------------------------------------------------------------------------------------


class Trial:
    """Compares the outputs of rows alone and in batches.

    Args:
        runs: runs the session.
        inputs: the session's inputs, with their batch dimensions.
        outputs: the session's outputs, likewise.
        id_limits: exclusive upper bounds of integer inputs, by name.
        exact: answers must have the same bits.
    """

    def __init__(
        self,
        runs: Runs,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        id_limits: Mapping[str, int],
        *,
        exact: bool,
    ) -> None:
        self._runs = runs
        self._inputs = inputs
        self._outputs = outputs
        self._id_limits = id_limits
        self._exact = exact

    def why_rows_depend(self) -> str | None:
        """Return why rows must not share a batch, as a clause; None: they answer the same alone and in a batch."""
        random = np.random.default_rng(0)
        problem = ""
        for open_dimension in _OPEN_DIMENSIONS:
            try:
                return self._copies(open_dimension, random) or self._neighbours(open_dimension, random)
            except TooLongError:
                return f"{TOO_LONG} {self._runs.timeout_s:g} s"
            except OrtError as error:
                problem = without_paths(str(error))
        return f"it could not be run on trial inputs: {problem}"

    def _copies(self, open_dimension: int, random: np.random.Generator) -> str | None:
        """Compares rows alone with copies of themselves. OrtError."""
        for row in self._rows(open_dimension, random, ORDINARY)[: _ROWS - 1]:
            alone = self._runs.run(row)
            for count in (2, _ROWS):
                copies = self._runs.run(self._joined([row] * count))
                reason = self._compare_shapes(copies, count)
                for place in range(count if reason is None else 0):
                    reason = reason or self._compare(alone, copies, 0, place, "how many rows there are")
                if reason is not None:
                    return reason
        return None

    def _neighbours(self, open_dimension: int, random: np.random.Generator) -> str | None:
        """Compares rows among copies of themselves with rows among others. OrtError if ordinary values fail."""
        integers = any(spec.datatype not in _TOLERANCE for spec in self._inputs)
        for number, draw in enumerate(_DRAWS if integers else _DRAWS[:_FLOATING_DRAWS]):
            rows = self._rows(open_dimension, random, draw)
            try:
                among_copies = [self._runs.run(self._joined([row] * _ROWS)) for row in rows]
            except OrtError:
                if number == 0:
                    raise
                return None  # the model does not accept numbers this large
            together = self._runs.run(self._joined(rows))
            reason = self._compare_shapes(together, _ROWS)
            for place in range(_ROWS if reason is None else 0):
                reason = reason or self._compare(among_copies[place], together, place, place, "the rows beside it")
            if reason is not None:
                return reason
        return None

    def _rows(self, open_dimension: int, random: np.random.Generator, draw: Draw) -> list[Arrays]:
        """Draw three rows; each is a list of inputs with a batch dimension of 1. Inputs without rows are equal."""
        rows = [
            [self._values(spec, open_dimension, random, draw, row) for spec in self._inputs] for row in range(_ROWS)
        ]
        for row in rows[1:]:
            row[:] = [
                first if spec.batch_axis < 0 else own
                for spec, first, own in zip(self._inputs, rows[0], row, strict=True)
            ]
        return rows

    def _values(
        self, spec: TensorSpec, open_dimension: int, random: np.random.Generator, draw: Draw, row: int
    ) -> NDArray[Any]:
        shape = [open_dimension if dim < 0 else dim for dim in spec.shape]
        if spec.batch_axis >= 0:
            shape[spec.batch_axis] = 1
        largest = min(draw.largest, self._id_limits.get(spec.name, draw.largest))
        return draw_values(spec.datatype, shape, random, draw, row, largest)

    def _joined(self, rows: Sequence[Arrays]) -> Arrays:
        return [
            column[0] if spec.batch_axis < 0 else np.concatenate(column, spec.batch_axis)
            for spec, column in zip(self._inputs, zip(*rows, strict=True), strict=True)
        ]

    def _compare_shapes(self, outputs: Arrays, count: int) -> str | None:
        for spec, output in zip(self._outputs, outputs, strict=True):
            if output.ndim <= spec.batch_axis or output.shape[spec.batch_axis] != count:
                return f"output '{spec.name}' of {count} rows has the shape {list(output.shape)}"
        return None

    def _compare(self, expected: Arrays, outputs: Arrays, at: int, place: int, what: str) -> str | None:
        for spec, one, other in zip(self._outputs, expected, outputs, strict=True):
            if not self._agree(spec, one.take([at], spec.batch_axis), other.take([place], spec.batch_axis)):
                return f"output '{spec.name}' of a row depends on {what}"
        return None

    def _agree(self, spec: TensorSpec, one: NDArray[Any], other: NDArray[Any]) -> bool:
        tolerance = _TOLERANCE.get(spec.datatype)
        if one.shape != other.shape:
            return False
        if one.dtype == object:
            return bool(np.array_equal(one, other))
        same = one.tobytes() == other.tobytes()
        if same or tolerance is None or self._exact:
            return same
        if spec.datatype == "BF16":
            one, other = ((array.astype(np.uint32) << 16).view(np.float32) for array in (one, other))
        largest = float(np.abs(one[np.isfinite(one)]).max(initial=0))
        return bool(np.allclose(other, one, rtol=tolerance, atol=tolerance * largest, equal_nan=True))
