"""From a model file to a session that is known to work: signature, the proof that rows are independent, warm-up.

Runs on a load thread, never on the loop's. Everything that is refused here is told to whoever asked for the load.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event, Lock, Timer
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastinfer._ext.batchrun import BatchRun
from fastinfer._ext.classify import Labels
from fastinfer._ext.datatype import numpy_dtype
from fastinfer._ext.message import InferRequest
from fastinfer._ext.ort import OrtError, Session
from fastinfer._ext.signature import Signature
from fastinfer._ext.tensor import Tensor, TensorSpec
from fastinfer.config.model import ConfigError, ModelConfig, read_labels
from fastinfer.config.model_schema import TensorConfig, WarmupInput
from fastinfer.config.server import ServerConfig
from fastinfer.errors import ApiError, without_paths

log = logging.getLogger(__name__)

_OPEN_DIMENSIONS = (8, 1, 3, 16, 32, 224)  # tried in turn for dimensions that the model leaves open
_TOO_LONG = "a trial run took longer than"
_TRIALS = 2  # draws of random rows that must agree
_TOLERANCE = {"FP16": 2e-3, "BF16": 2e-2, "FP32": 1e-5, "FP64": 1e-10}  # relative to the row's largest magnitude


def load(
    path: Path,
    config: ModelConfig,
    name: str,
    options: dict[str, Any],
    server: ServerConfig,
    trials: TrialRuns | None = None,
    content: bytes | None = None,
) -> tuple[Session, Signature]:
    """Loads a model file.

    Args:
        path: the ``.onnx`` file, in the directory of its version; that one lies in the model's.
        config: the model's configuration.
        name: the model's, for messages.
        options: keyword arguments of :class:`Session`.
        server: the server's configuration.
        trials: told of every run, so that it can be ended with the server.
        content: of the file, if it has been read already.

    Raises:
        ApiError: 400 with ONNX Runtime's reason, or where the configuration does not fit the graph.
    """
    directory = path.parent.parent
    try:
        labels = {output: Labels(text) for output, text in read_labels(directory, config).items()}
        model = _Loaded(name, Session(path, model=content, **options), server, trials or TrialRuns())
        signature = model.signature(config, labels)
        model.warm_up(signature, config, directory / "warmup")
    except ConfigError as error:
        raise ApiError(400, f"model '{name}': {error}") from error
    except OrtError as error:
        raise ApiError(400, f"model '{name}' does not load: {without_paths(str(error))}") from error
    return model.session, signature


class TrialRuns:
    """The runs of loads under way, on any load threads, so that the end of the server can end them."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._runs: set[BatchRun] = set()
        self._ended = False

    @contextmanager
    def running(self, run: BatchRun) -> Iterator[None]:
        """Tells of a run while it lasts. OrtError where the server has ended."""
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


class _TooLongError(OrtError):
    """A run that was ended."""


class _Loaded:
    """A session that is being looked at."""

    def __init__(self, name: str, session: Session, server: ServerConfig, trials: TrialRuns) -> None:
        self.name = name
        self.session = session
        self._server = server
        self._trials = trials

    # --- Signature ----------------------------------------------------------------------------------------------------

    def signature(self, config: ModelConfig, labels: Mapping[str, Labels]) -> Signature:
        """What the graph says, checked against the configuration."""
        made = partial(Signature, self.session.inputs, self.session.outputs, labels=labels)
        configured = config.max_batch_size
        self._check_tensors("input", config.inputs, self.session.inputs, configured)
        self._check_tensors("output", config.outputs, self.session.outputs, configured)
        if configured == 0:
            return made()
        if configured is not None:
            self._check_first_dimensions()
            reason = self._why_rows_depend()
            if reason is not None:
                log.warning("model '%s': max_batch_size is %d, but %s", self.name, configured, reason)
            return made(batched=True, max_batch_size=configured, max_batch_size_configured=True)
        reason = self._why_not_batched() or self._why_rows_depend()
        if reason is not None:
            level = logging.WARNING if reason.startswith(_TOO_LONG) else logging.INFO
            log.log(level, "model '%s' is not batched: %s", self.name, reason)
            return made()
        return made(batched=True, max_batch_size=self._server.default_max_batch_size)

    def _check_tensors(
        self, what: str, given: Sequence[TensorConfig], specs: Sequence[TensorSpec], configured: int | None
    ) -> None:
        """The configuration's inputs or outputs against the graph's.

        Dims are without the batch dimension where a batch size is configured (Triton's way) and with it where it is 0;
        where nothing is said of batches, both will do (AMD's way has no batch size and no batch dimension).
        """
        by_name = {spec.name: spec for spec in specs}
        for tensor in given:
            spec = by_name.get(tensor.name)
            if spec is None:
                raise self._refusal(f"the configuration names {what} '{tensor.name}', the graph does not")
            if tensor.datatype != spec.datatype:
                raise self._refusal(f"{what} '{tensor.name}' is {spec.datatype}, but configured as {tensor.datatype}")
            whole, row = spec.shape, spec.shape[1:]
            allowed = [row] if configured else [whole] if configured == 0 else [whole, row]
            if not any(_fits(tensor.dims, shape) for shape in allowed):
                raise self._refusal(
                    f"{what} '{tensor.name}' has the shape {list(allowed[0])}, but is configured as {list(tensor.dims)}"
                )

    def _check_first_dimensions(self) -> None:
        for spec in (*self.session.inputs, *self.session.outputs):
            if not spec.shape or spec.shape[0] != -1:
                raise self._refusal(
                    f"max_batch_size needs an open first dimension, but '{spec.name}' has the shape {list(spec.shape)}"
                )

    def _refusal(self, sentence: str) -> ApiError:
        return ApiError(400, f"model '{self.name}': {sentence}")

    def _why_not_batched(self) -> str | None:
        """Why the graph alone does not promise a batch dimension; None where it does."""
        specs = (*self.session.inputs, *self.session.outputs)
        first = {spec.symbols[0] if spec.shape and spec.shape[0] == -1 else "" for spec in specs}
        if len(first) == 1 and first != {""}:
            return None
        return "its inputs and outputs do not all have the same symbolic first dimension"

    # --- The proof that rows are independent --------------------------------------------------------------------------

    def _why_rows_depend(self) -> str | None:
        """Runs random rows alone and together (1, 2 and 3); None where each row's answer is the same."""
        random = np.random.default_rng(0)
        problem = ""
        for open_dimension in _OPEN_DIMENSIONS:
            try:
                for _ in range(_TRIALS):
                    reason = self._trial(open_dimension, random)
                    if reason is not None:
                        return reason
                return None
            except _TooLongError:
                return f"{_TOO_LONG} {self._server.load_run_timeout_s:g} s"
            except OrtError as error:
                problem = without_paths(str(error))
        return f"it could not be run on trial inputs: {problem}"

    def _trial(self, open_dimension: int, random: np.random.Generator) -> str | None:
        rows = [
            [_values(spec.datatype, [1, *_closed(spec.shape[1:], open_dimension)], random)
             for spec in self.session.inputs]
            for _ in range(3)
        ]  # fmt: skip
        alone = [self._run(row) for row in rows]
        for count in (1, 2, 3):
            together = self._run([np.concatenate(column) for column in zip(*rows[:count], strict=True)])
            for position, spec in enumerate(self.session.outputs):
                joined = together[position]
                if joined.ndim == 0 or joined.shape[0] != count:
                    return f"output '{spec.name}' of {count} rows has the shape {list(joined.shape)}"
                for row in range(count):
                    if not _agree(spec.datatype, alone[row][position], joined[row : row + 1]):
                        return f"output '{spec.name}' of a row depends on the rows beside it"
        return None

    def _run(self, arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """A run that is ended when it takes too long; a model may loop for ever. OrtError."""
        tensors = [
            Tensor.from_numpy(spec.name, array, spec.datatype)
            for spec, array in zip(self.session.inputs, arrays, strict=True)
        ]
        run = BatchRun(self.session, [InferRequest(tensors)], False)
        too_long = Event()

        def end() -> None:
            too_long.set()
            run.terminate()

        watchdog = Timer(self._server.load_run_timeout_s, end)
        watchdog.daemon = True
        watchdog.start()
        try:
            with self._trials.running(run):
                run.run()
        finally:
            watchdog.cancel()
        if run.error is not None:
            raise _TooLongError("a run at load took too long") if too_long.is_set() else run.error
        return [tensor.numpy() for tensor in run.split()[0]]

    # --- Warm-up ------------------------------------------------------------------------------------------------------

    def warm_up(self, signature: Signature, config: ModelConfig, directory: Path) -> None:
        """The configured warm-up runs; ``directory`` holds their data files."""
        for sample in config.model_warmup:
            arrays = []
            for spec in self.session.inputs:
                given = sample.inputs.get(spec.name)
                if given is None:
                    raise self._refusal(f"warm-up '{sample.name}' lacks input '{spec.name}'")
                shape = [max(sample.batch_size, 1), *given.dims] if signature.batched else list(given.dims)
                arrays.append(self._warmup_array(spec, given, shape, directory))
            for _ in range(sample.count):
                self._run(arrays)

    def _warmup_array(self, spec: TensorSpec, given: WarmupInput, shape: list[int], directory: Path) -> NDArray[Any]:
        if given.datatype != spec.datatype:
            raise self._refusal(f"input '{spec.name}' is {spec.datatype}, its warm-up {given.datatype}")
        if not given.input_data_file:
            values = _values(spec.datatype, shape, np.random.default_rng(0))
            return values if given.random_data else _zeros_like(values)
        try:
            data = (directory / given.input_data_file).read_bytes()
            if spec.datatype == "BYTES":
                return np.full(shape, data, dtype=object)
            return np.frombuffer(data, numpy_dtype(spec.datatype)).reshape(shape)
        except (OSError, ValueError) as error:
            raise self._refusal(
                f"the warm-up file '{given.input_data_file}' does not fit input '{spec.name}'"
            ) from error


def _fits(dims: Sequence[int], shape: Sequence[int]) -> bool:
    return len(dims) == len(shape) and all(a == b or -1 in (a, b) for a, b in zip(dims, shape, strict=True))


def _closed(shape: Sequence[int], open_dimension: int) -> list[int]:
    return [open_dimension if dim < 0 else dim for dim in shape]


def _values(datatype: str, shape: Sequence[int], random: np.random.Generator) -> NDArray[Any]:
    """Random values for floating point; zeros and ones for the rest, so that indices stay valid."""
    bits = random.integers(0, 2, shape)
    match datatype:
        case "FP16" | "FP32" | "FP64":
            return random.standard_normal(shape).astype(numpy_dtype(datatype))
        case "BF16":
            return (random.standard_normal(shape).astype("f4").view(np.uint32) >> 16).astype("u2")
        case "BYTES":
            return np.where(bits, b"1", b"0").astype(object)
        case _:
            return bits.astype(numpy_dtype(datatype))


def _zeros_like(values: NDArray[Any]) -> NDArray[Any]:
    return np.full(values.shape, b"", dtype=object) if values.dtype == object else np.zeros_like(values)


def _agree(datatype: str, alone: NDArray[Any], joined: NDArray[Any]) -> bool:
    """Whether a row's output is the same alone and in company."""
    tolerance = _TOLERANCE.get(datatype)
    if alone.shape != joined.shape:
        return False
    if tolerance is None:
        return bool(np.array_equal(alone, joined))
    if datatype == "BF16":
        alone, joined = ((array.astype(np.uint32) << 16).view(np.float32) for array in (alone, joined))
    largest = float(np.abs(alone[np.isfinite(alone)]).max(initial=0))
    return bool(np.allclose(joined, alone, rtol=tolerance, atol=tolerance * largest, equal_nan=True))
