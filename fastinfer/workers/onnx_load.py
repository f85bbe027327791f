"""From a model file to a session that is known to work: signature, the proof that rows are independent, warm-up.

Runs on a load thread, never on the loop's. Everything that is refused here is told to whoever asked for the load.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastinfer import limits
from fastinfer._ext.batchrun import BatchRun
from fastinfer._ext.message import InferRequest
from fastinfer._ext.ort import OrtError, Session
from fastinfer._ext.signature import Signature
from fastinfer._ext.tensor import Tensor, TensorSpec
from fastinfer.errors import ApiError, without_paths
from fastinfer.model_config import ModelConfig, TensorConfig

log = logging.getLogger(__name__)

_OPEN_DIMENSIONS = (8, 1, 3, 16, 32, 224)  # tried in turn for dimensions that the model leaves open
_TRIALS = 2  # draws of random rows that must agree
_TOLERANCE = {"FP16": 2e-3, "BF16": 2e-2, "FP32": 1e-5, "FP64": 1e-10}  # relative to the row's largest magnitude


def load(path: Path, config: ModelConfig, name: str, options: dict[str, Any]) -> tuple[Session, Signature]:
    """Loads a model file.

    Args:
        path: the ``.onnx`` file.
        config: the effective configuration.
        name: for messages.
        options: keyword arguments of :class:`Session`.

    Raises:
        ApiError: 400 with ONNX Runtime's reason, or where the configuration does not fit the graph.
    """
    try:
        session = Session(str(path), **options)
        signature = _signature(session, config, name)
        _warm_up(session, signature, config, name)
    except OrtError as error:
        raise ApiError(400, f"model '{name}' does not load: {without_paths(str(error))}") from error
    return session, signature


# --- Signature --------------------------------------------------------------------------------------------------------


def _signature(session: Session, config: ModelConfig, name: str) -> Signature:
    configured = config.max_batch_size
    batched = configured is not None and configured > 0
    for given, specs, what in ((config.inputs, session.inputs, "input"), (config.outputs, session.outputs, "output")):
        _check_tensors(given, specs, what, name, batched)
    if configured == 0:
        return Signature(session.inputs, session.outputs)
    if configured is not None:
        _check_first_dimension(session, name)
        reason = _why_rows_depend(session)
        if reason is not None:
            log.warning("model '%s': max_batch_size is %d, but %s", name, configured, reason)
        return Signature(
            session.inputs, session.outputs, batched=True, max_batch_size=configured, max_batch_size_configured=True
        )
    reason = _why_not_batched(session) or _why_rows_depend(session)
    if reason is not None:
        log.info("model '%s' is not batched: %s", name, reason)
        return Signature(session.inputs, session.outputs)
    return Signature(
        session.inputs, session.outputs, batched=True, max_batch_size=limits.DEFAULT_MAX_BATCH_SIZE
    )


def _check_tensors(
    given: Sequence[TensorConfig], specs: Sequence[TensorSpec], what: str, name: str, batched: bool
) -> None:
    """The configuration's inputs or outputs against the graph's."""
    by_name = {spec.name: spec for spec in specs}
    for tensor in given:
        spec = by_name.get(tensor.name)
        if spec is None:
            raise ApiError(400, f"model '{name}': the configuration names {what} '{tensor.name}', the graph does not")
        if tensor.datatype != spec.datatype:
            raise ApiError(
                400, f"model '{name}': {what} '{tensor.name}' is {spec.datatype}, configured as {tensor.datatype}"
            )
        shape = spec.shape[1:] if batched else spec.shape
        dims = tuple(tensor.dims)
        if len(dims) != len(shape) or any(a != b and a != -1 and b != -1 for a, b in zip(dims, shape, strict=True)):
            raise ApiError(
                400, f"model '{name}': {what} '{tensor.name}' has the shape {list(shape)}, configured as {list(dims)}"
            )


def _check_first_dimension(session: Session, name: str) -> None:
    for spec in (*session.inputs, *session.outputs):
        if not spec.shape or spec.shape[0] != -1:
            raise ApiError(
                400,
                f"model '{name}': max_batch_size needs an open first dimension, but '{spec.name}' has the shape "
                f"{list(spec.shape)}",
            )


def _why_not_batched(session: Session) -> str | None:
    """Why the graph alone does not promise a batch dimension; None where it does."""
    symbols = {spec.symbols[0] if spec.shape and spec.shape[0] == -1 else "" for spec in session.inputs}
    symbols |= {spec.symbols[0] if spec.shape and spec.shape[0] == -1 else "" for spec in session.outputs}
    if len(symbols) == 1 and symbols != {""}:
        return None
    return "its inputs and outputs do not all have the same symbolic first dimension"


# --- The proof that rows are independent ------------------------------------------------------------------------------


def _why_rows_depend(session: Session) -> str | None:
    """Runs random rows alone and together (1, 2 and 3); None where each row's answer is the same."""
    random = np.random.default_rng(0)
    problem = "it could not be run on trial inputs"
    for open_dimension in _OPEN_DIMENSIONS:
        try:
            for _ in range(_TRIALS):
                rows = [[_trial_row(spec, open_dimension, random) for spec in session.inputs] for _ in range(3)]
                alone = [_run(session, [rows[i]]) for i in range(3)]
                for together in (1, 2, 3):
                    different = _difference(session, alone, _run(session, rows[:together]), together)
                    if different is not None:
                        return different
            return None
        except OrtError as error:
            problem = f"it could not be run on trial inputs ({without_paths(str(error))})"
    return problem


def _difference(
    session: Session, alone: list[list[NDArray[Any]]], together: list[NDArray[Any]], rows: int
) -> str | None:
    for position, spec in enumerate(session.outputs):
        joined = together[position]
        if joined.ndim == 0 or joined.shape[0] != rows:
            return f"output '{spec.name}' of {rows} rows has the shape {list(joined.shape)}"
        for row in range(rows):
            single = alone[row][position]
            if single.shape != (1, *joined.shape[1:]) or not _close(spec.datatype, single[0], joined[row]):
                return f"output '{spec.name}' of a row depends on the rows beside it"
    return None


def _close(datatype: str, single: NDArray[Any], joined: NDArray[Any]) -> bool:
    tolerance = _TOLERANCE.get(datatype)
    if tolerance is None:
        return bool(np.array_equal(single, joined))
    if datatype == "BF16":
        single, joined = ((a.astype(np.uint32) << 16).view(np.float32) for a in (single, joined))
    finite = np.abs(single[np.isfinite(single)])
    largest = float(finite.max(initial=0))
    return bool(np.allclose(joined, single, rtol=tolerance, atol=tolerance * largest, equal_nan=True))


def _trial_row(spec: TensorSpec, open_dimension: int, random: np.random.Generator) -> NDArray[Any]:
    """One row, with the batch dimension: random values for floating point, zeros and ones for the rest."""
    shape = [1] + [open_dimension if dim < 0 else dim for dim in spec.shape[1:]]
    return _random_values(spec.datatype, shape, random)


def _random_values(datatype: str, shape: Sequence[int], random: np.random.Generator) -> NDArray[Any]:
    bits = random.integers(0, 2, shape)
    match datatype:
        case "FP16" | "FP32" | "FP64":
            return random.standard_normal(shape).astype({"FP16": "f2", "FP32": "f4", "FP64": "f8"}[datatype])
        case "BF16":
            return (random.standard_normal(shape).astype("f4").view(np.uint32) >> 16).astype("u2")
        case "BYTES":
            return np.where(bits, b"1", b"0").astype(object)
        case "BOOL":
            return bits.astype(bool)
        case _:
            return bits.astype(datatype.lower())


def _run(session: Session, rows: list[list[NDArray[Any]]]) -> list[NDArray[Any]]:
    joined = [np.concatenate(column) for column in zip(*rows, strict=True)]
    return [tensor.numpy() for tensor in _timed_run(session, joined)]


def _timed_run(session: Session, arrays: Sequence[NDArray[Any]]) -> list[Tensor]:
    """A run that is ended when it takes too long; a model may loop for ever. OrtError."""
    tensors = [
        Tensor.from_numpy(spec.name, array, spec.datatype) for spec, array in zip(session.inputs, arrays, strict=True)
    ]
    run = BatchRun(session, [InferRequest(tensors)], False)
    watchdog = Timer(limits.LOAD_RUN_TIMEOUT_S, run.terminate)
    watchdog.daemon = True
    watchdog.start()
    try:
        run.run()
    finally:
        watchdog.cancel()
    if run.error is not None:
        raise run.error
    return run.split()[0]


# --- Warm-up ----------------------------------------------------------------------------------------------------------


def _warm_up(session: Session, signature: Signature, config: ModelConfig, name: str) -> None:
    for sample in config.model_warmup:
        arrays = []
        for spec in session.inputs:
            if spec.name not in sample.inputs:
                raise ApiError(400, f"model '{name}': warm-up '{sample.name}' lacks input '{spec.name}'")
            given = sample.inputs[spec.name]
            shape = [max(sample.batch_size, 1), *given.dims] if signature.batched else list(given.dims)
            arrays.append(next(_warm_up_values(spec.datatype, shape, given.random_data)))
        for _ in range(max(sample.count, 1)):
            _timed_run(session, arrays)


def _warm_up_values(datatype: str, shape: list[int], random_data: bool) -> Iterator[NDArray[Any]]:
    values = _random_values(datatype, shape, np.random.default_rng(0))
    yield values if random_data else np.zeros_like(values)
