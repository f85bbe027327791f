"""Trial runs of a session at load: do rows answer together as they do alone?

The second line behind the proof from the graph (:mod:`fastinfer.backends.onnx.graph.rows`): a rule of that table may be
wrong, or an operator of the runtime. Rows of very different size stand beside each other, NaN beside numbers, integers
come from growing ranges. Runs on a load thread, never on the loop's.

Two comparisons, so that rounding is not taken for dependence. A row alone against copies of itself: the number of rows
must not matter, but other numbers take other kernels, so values of ordinary size are compared within a tolerance. A row
among copies of itself against the same row, at the same place, among others: the runs have the same shapes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Lock, Timer
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastinfer.backends.batch_run import BatchRun
from fastinfer.backends.onnx.ort import OrtError, Session
from fastinfer.base import limits
from fastinfer.base.errors import without_paths
from fastinfer.tensor.datatype import numpy_dtype
from fastinfer.tensor.message import InferRequest
from fastinfer.tensor.tensor import Tensor, TensorSpec

log = logging.getLogger(__name__)

Arrays = list[NDArray[Any]]

TOO_LONG = "a trial run took longer than"
_OPEN_DIMENSIONS = (8, 1, 3, 16, 32, 224)  # tried in turn for dimensions that the model leaves open
_TOLERANCE = {"FP16": 2e-3, "BF16": 2e-2, "FP32": 1e-5, "FP64": 1e-10}  # relative to the row's largest magnitude
_ROWS = 3


class TrialRuns:
    """The runs of loads under way, on any load threads, so that the end of the server can end them."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._runs: set[BatchRun] = set()
        self._ended = False

    @contextmanager
    def running(self, run: BatchRun) -> Iterator[None]:
        """Knows of a run while it lasts. OrtError if the server has ended."""
        with self._lock:
            if self._ended:
                raise OrtError("the server is ending")
            self._runs.add(run)
        try:
            yield
        finally:
            with self._lock:
                self._runs.discard(run)

    def end(self) -> None:
        """Ends the runs under way, and lets no more begin."""
        with self._lock:
            self._ended = True
            for run in self._runs:
                run.terminate()


class TrialResults:
    """What trials have found, in this process and in those before it: a restart does not try again what is known.

    Keys say what was tried and how, so an entry is right as long as it is kept. Written on load threads.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._found: dict[str, str | None] = {}
        self._news: dict[str, str | None] = {}  # found here, and not told yet

    def once(self, key: str, trial: Callable[[], str | None]) -> str | None:
        """What a trial finds, or has found before. OrtError as of the trial."""
        with self._lock:
            known = key in self._found
            found = self._found.pop(key, None)
        if known:
            log.debug("the trial of rows is known from before: %s", found or "they are independent")
        else:
            found = trial()
            with self._lock:
                self._news[key] = found
        self._keep(key, found)
        return found

    def _keep(self, key: str, found: str | None) -> None:
        with self._lock:
            self._found[key] = found
            while len(self._found) > limits.MAX_TRIAL_RESULTS:
                del self._found[next(iter(self._found))]

    def told(self) -> dict[str, str | None]:
        """All of it, the latest last."""
        with self._lock:
            self._news = {}
            return dict(self._found)

    def news(self) -> dict[str, str | None]:
        """What was found since it was told last."""
        with self._lock:
            news, self._news = self._news, {}
            return news

    def restore(self, told: Mapping[str, str | None]) -> None:
        """Learns what another process has told."""
        for key, found in told.items():
            self._keep(key, found)


class TooLongError(OrtError):
    """A run that was ended."""


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs a session once at a time, each no longer than ``timeout_s``."""

    session: Session
    timeout_s: float
    trials: TrialRuns

    def run(self, arrays: Sequence[NDArray[Any]]) -> Arrays:
        """The outputs for inputs in the session's order. OrtError; TooLongError: a model may loop for ever."""
        tensors = [
            Tensor.from_numpy(spec.name, array, spec.datatype)
            for spec, array in zip(self.session.inputs, arrays, strict=True)
        ]
        run = BatchRun(self.session, [InferRequest(tensors)], False)
        too_long = Event()

        def end() -> None:
            too_long.set()
            run.terminate()

        watchdog = Timer(self.timeout_s, end)
        watchdog.daemon = True
        watchdog.start()
        try:
            with self.trials.running(run):
                run.run()
        finally:
            watchdog.cancel()
        if run.error is not None:
            raise TooLongError("a run at load took too long") if too_long.is_set() else run.error
        return [tensor.numpy() for tensor in run.split()[0]]


# --- Values -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Draw:
    """How the rows of one trial are drawn.

    Attributes:
        scales: of each row's floating-point values.
        uniform: these are from 0 to the scale, instead of normal.
        nan: the last row has NaN among its values.
        largest: integers are below it.
    """

    scales: tuple[float, float, float]
    uniform: bool
    nan: bool
    largest: int


_DRAWS = (
    _Draw((1, 0.01, 100), False, False, 2),
    _Draw((0.01, 1, 1), True, True, 16),
    _Draw((1, 1000, 1), False, False, 1000),
    _Draw((1, 0.1, 10), False, False, 1_000_000),
    _Draw((1, 1, 1), False, True, 1 << 62),
)
_FLOATING_DRAWS = 2  # are enough for models without integer inputs
_COPIES = _Draw((1, 1, 1), False, False, 2)  # ordinary values: alone, and beside copies of themselves


def ordinary_values(datatype: str, shape: Sequence[int], random: np.random.Generator) -> NDArray[Any]:
    """Standard normals for floating point; zeros and ones for the rest, so that indices stay valid."""
    return _values(datatype, shape, random, _COPIES, 0, 2)


def _values(
    datatype: str, shape: Sequence[int], random: np.random.Generator, draw: _Draw, row: int, limit: int
) -> NDArray[Any]:
    match datatype:
        case "FP16" | "FP32" | "FP64" | "BF16":
            drawn = random.random(shape) if draw.uniform else random.standard_normal(shape)
            drawn *= draw.scales[row]
            if draw.nan and row == _ROWS - 1:
                drawn[random.random(shape) < 0.25] = np.nan
            if datatype == "BF16":
                return (drawn.astype("f4").view(np.uint32) >> 16).astype("u2")
            return drawn.astype(numpy_dtype(datatype))
        case "BYTES":
            texts = [str(number).encode() for number in random.integers(0, limit, shape).flat]
            return np.array(texts, dtype=object).reshape(shape)
        case "BOOL":
            return random.integers(0, 2, shape).astype(bool)
    dtype = numpy_dtype(datatype)
    # The smallest number of a type has no opposite: dividing it by -1 ends the process.
    highest = min(limit - 1, int(np.iinfo(dtype).max))
    lowest = -highest if limit > np.iinfo(dtype).max and np.iinfo(dtype).min else 0
    if row == 1:  # a row of small numbers beside the others, and one of large ones
        highest, lowest = max(highest // 100, min(1, highest)), 0
    elif row == 2:
        lowest = highest // 2
    return random.integers(lowest, highest, shape, dtype=np.int64, endpoint=True).astype(dtype)


# --- The trial --------------------------------------------------------------------------------------------------------


class Trial:
    """Compares rows alone with rows together.

    Args:
        runs: runs the session.
        id_limits: numbers that integer inputs must stay below, by name.
        exact: answers must have the same bits.
    """

    def __init__(self, runs: Runs, id_limits: Mapping[str, int], *, exact: bool) -> None:
        self._runs = runs
        self._inputs = runs.session.inputs
        self._outputs = runs.session.outputs
        self._id_limits = id_limits
        self._exact = exact

    def why_rows_depend(self) -> str | None:
        """Why rows are not to share a batch, as a sentence's end; None: each answers together as alone."""
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
        """Rows alone against copies of themselves. OrtError."""
        for row in self._rows(open_dimension, random, _COPIES)[: _ROWS - 1]:
            alone = self._runs.run(row)
            for count in (2, _ROWS):
                copies = self._runs.run(_joined([row] * count))
                reason = self._compare_shapes(copies, count)
                for place in range(count if reason is None else 0):
                    reason = reason or self._compare(alone, copies, 0, place, "how many rows there are")
                if reason is not None:
                    return reason
        return None

    def _neighbours(self, open_dimension: int, random: np.random.Generator) -> str | None:
        """Rows among copies of themselves against rows beside others. OrtError if ordinary values fail."""
        integers = any(spec.datatype not in _TOLERANCE for spec in self._inputs)
        for number, draw in enumerate(_DRAWS if integers else _DRAWS[:_FLOATING_DRAWS]):
            rows = self._rows(open_dimension, random, draw)
            try:
                among_copies = [self._runs.run(_joined([row] * _ROWS)) for row in rows]
            except OrtError:
                if number == 0:
                    raise
                return None  # the model does not take numbers as large as these
            together = self._runs.run(_joined(rows))
            reason = self._compare_shapes(together, _ROWS)
            for place in range(_ROWS if reason is None else 0):
                reason = reason or self._compare(among_copies[place], together, place, place, "the rows beside it")
            if reason is not None:
                return reason
        return None

    def _rows(self, open_dimension: int, random: np.random.Generator, draw: _Draw) -> list[Arrays]:
        """Three rows: for each the inputs, with a first dimension of 1."""
        return [
            [
                _values(
                    spec.datatype, [1, *(open_dimension if dim < 0 else dim for dim in spec.shape[1:])], random, draw,
                    row, min(draw.largest, self._id_limits.get(spec.name, draw.largest)),
                )
                for spec in self._inputs
            ]
            for row in range(_ROWS)
        ]  # fmt: skip

    def _compare_shapes(self, outputs: Arrays, count: int) -> str | None:
        for spec, output in zip(self._outputs, outputs, strict=True):
            if output.ndim == 0 or output.shape[0] != count:
                return f"output '{spec.name}' of {count} rows has the shape {list(output.shape)}"
        return None

    def _compare(self, expected: Arrays, outputs: Arrays, at: int, place: int, what: str) -> str | None:
        for spec, one, other in zip(self._outputs, expected, outputs, strict=True):
            if not self._agree(spec, one[at : at + 1], other[place : place + 1]):
                return f"output '{spec.name}' of a row depends on {what}"
        return None

    def _agree(self, spec: TensorSpec, one: NDArray[Any], other: NDArray[Any]) -> bool:
        tolerance = _TOLERANCE.get(spec.datatype)
        if one.shape != other.shape:
            return False
        if tolerance is None or self._exact:
            return one.tobytes() == other.tobytes() if one.dtype != object else bool(np.array_equal(one, other))
        if spec.datatype == "BF16":
            one, other = ((array.astype(np.uint32) << 16).view(np.float32) for array in (one, other))
        largest = float(np.abs(one[np.isfinite(one)]).max(initial=0))
        return bool(np.allclose(other, one, rtol=tolerance, atol=tolerance * largest, equal_nan=True))


def _joined(rows: Sequence[Arrays]) -> Arrays:
    return [np.concatenate(column) for column in zip(*rows, strict=True)]
