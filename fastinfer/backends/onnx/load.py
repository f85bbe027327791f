"""From a model file to a session that is known to work: signature, the proof that rows are independent, warm-up.

Runs on a load thread, never on the loop's. Everything that is refused here is told to whoever asked for the load.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastinfer.backends.onnx.graph.facts import MAX_INLINED, Facts, read_facts
from fastinfer.backends.onnx.graph.rows import Proof, prove
from fastinfer.backends.onnx.graph.visits import collector
from fastinfer.backends.onnx.ort import OrtError, Session
from fastinfer.backends.onnx.trial import TOO_LONG, Runs, Trial, TrialRuns, ordinary_values
from fastinfer.base import disk, limits
from fastinfer.base.errors import ApiError, without_paths
from fastinfer.config.model import ConfigError, ModelConfig, read_labels
from fastinfer.config.model_schema import TensorConfig, WarmupInput
from fastinfer.config.server import ServerConfig
from fastinfer.tensor.datatype import numpy_dtype
from fastinfer.tensor.signature import Signature
from fastinfer.tensor.tensor import TensorSpec
from fastinfer.tensor.top_k import Labels

log = logging.getLogger(__name__)

# Operators that end the process, in the runtime's 1.32, if an input has no elements.
_NEVER_EMPTY = frozenset({"ConvTranspose", "DynamicQuantizeLSTM", "GRU", "LSTM", "STFT", "Unique"})


Once = Callable[[Callable[[], str | None]], str | None]


def _always(trial: Callable[[], str | None]) -> str | None:
    return trial()


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is known to work.

    Attributes:
        session: the runtime's.
        signature: what it takes and gives.
        steady: whether the time of a run follows from the shapes of its inputs.
        combines: whether requests may share a batch.
        why_alone: why they should not, as a sentence's end; None: they may.
    """

    session: Session
    signature: Signature
    steady: bool
    combines: bool
    why_alone: str | None


def load(
    path: Path,
    config: ModelConfig,
    name: str,
    options: dict[str, Any],
    server: ServerConfig,
    trials: TrialRuns | None = None,
    content: bytes | None = None,
    once: Once = _always,
) -> LoadedModel:
    """Loads a model file.

    Args:
        path: the ``.onnx`` file, in the directory of its version; that one lies in the model's.
        config: the model's configuration.
        name: the model's, for messages.
        options: keyword arguments of :class:`Session`.
        server: the server's configuration.
        trials: told of every run, so that it can be ended with the server.
        content: of the file, if it has been read already.
        once: runs the trial of rows, unless its result is known.

    Raises:
        ApiError: 400 with ONNX Runtime's reason, or where the configuration does not fit the graph.
    """
    directory = path.parent.parent
    try:
        labels = _labels(directory, config)
        model = _read(path) if content is None else content
        exact = (config.batching or server.batching) == "exact"
        with collector.paused():
            facts = read_facts(model)
        if facts.inlined > MAX_INLINED:  # the runtime would, for hours
            raise OrtError(f"the calls of its functions come to more than {MAX_INLINED} operators")
        session = Session(path, model=model, **options)
        if facts.sparse_outputs:  # the runtime describes them as dense
            raise OrtError(f"output '{facts.sparse_outputs[0]}' is a sparse tensor; only tensors can be served")
        if facts.sized_by_values is not None:
            log.info("model '%s' never runs on the event loop's thread: %s", name, facts.sized_by_values)
        runs = Runs(session, server.load_run_timeout_s, trials or TrialRuns())
        with collector.paused():
            proof = prove(model)
        loading = _Loading(name, runs, facts, proof, server.default_max_batch_size, exact, once)
        loaded = loading.model(config, labels)
        loading.warm_up(loaded.signature, config, directory / "warmup")
    except ConfigError as error:
        raise ApiError(400, f"model '{name}': {error}") from error
    except OrtError as error:
        raise ApiError(400, f"model '{name}' does not load: {without_paths(str(error))}") from error
    return loaded


def _read(path: Path) -> bytes:
    """A model file, read once: what is proven is what is loaded, even if the file is replaced meanwhile. OrtError.

    (It is not mapped: a file that is cut short under a mapping kills the process.)
    """
    try:
        with disk.regular_file(path) as file:
            if os.fstat(file.fileno()).st_size > limits.MAX_MODEL_FILE_BYTES:
                raise OrtError("the model cannot be read: a model file has less than 2 GiB")
            return file.read()
    except OSError as error:
        raise OrtError(f"the model cannot be read: {error.strerror}") from None


def _labels(directory: Path, config: ModelConfig) -> dict[str, Labels]:
    """The labels of outputs; several may share a file. ConfigError."""
    made: dict[str, Labels] = {}
    files = {output.name: output.label_filename for output in config.outputs}
    for output, text in read_labels(directory, config).items():
        try:
            if files[output] not in made:
                made[files[output]] = Labels(text)
        except ValueError as error:
            raise ConfigError(f"the labels of output '{output[:60]}': {files[output]}, {error}") from None
    return {output: made[name] for output, name in files.items() if name}


class _Loading:
    """A session that is being looked at."""

    def __init__(
        self, name: str, runs: Runs, facts: Facts, proof: Proof, default_rows: int, exact: bool, once: Once
    ) -> None:
        self.name = name
        self.session = runs.session
        self._runs = runs
        self._steady = facts.sized_by_values is None
        self._never_empty = ", ".join(sorted(facts.operators & _NEVER_EMPTY))
        self._proof = proof
        self._default_rows = default_rows
        self._exact = exact
        self._once = once

    # --- Signature ----------------------------------------------------------------------------------------------------

    def model(self, config: ModelConfig, labels: Mapping[str, Labels]) -> LoadedModel:
        """What the graph says, checked against the configuration. ApiError 400."""
        session = self.session
        signature = partial(Signature, session.inputs, session.outputs, labels=labels, never_empty=self._never_empty)
        configured = config.max_batch_size
        self._check_tensors("input", config.inputs, self.session.inputs, configured)
        self._check_tensors("output", config.outputs, self.session.outputs, configured)
        if configured == 0:
            return self._loaded(signature(), False, "max_batch_size is 0")
        if configured is not None:
            self._check_first_dimensions()
            reason = self._why_rows_depend()
            if reason is not None:
                but = "its requests share no batch, because" if self._exact else f"max_batch_size is {configured}, but"
                log.warning("model '%s': %s %s", self.name, but, reason)
            batched = signature(batched=True, max_batch_size=configured, max_batch_size_configured=True)
            return self._loaded(batched, reason is None or not self._exact, reason)
        reason = self._why_not_batched() or self._why_rows_depend()
        if reason is not None:
            level = logging.WARNING if reason.startswith(TOO_LONG) else logging.INFO
            log.log(level, "model '%s' is not batched: %s", self.name, reason)
            return self._loaded(signature(), False, reason)
        # Some exporters declare an output of one row, and give one for each: the graph is the proof.
        outputs = [_of_rows(spec) for spec in session.outputs]
        batched = Signature(
            session.inputs,
            outputs,
            batched=True,
            max_batch_size=self._default_rows,
            labels=labels,
            never_empty=self._never_empty,
        )
        return self._loaded(batched, True, None)

    def _loaded(self, signature: Signature, combines: bool, why_alone: str | None) -> LoadedModel:
        return LoadedModel(self.session, signature, self._steady, combines, why_alone)

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
            if spec.open_rank:
                continue
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
        """Why inputs have no batch dimension; None if they have."""
        for what, specs in (("input", self.session.inputs), ("output", self.session.outputs)):
            if not specs:
                return f"it has no {what}s"
        batch = {spec.symbols[0] for spec in self.session.inputs if spec.shape and spec.shape[0] == -1} - {""}
        for spec in self.session.inputs:
            if not spec.shape or spec.shape[0] != -1:
                return f"input '{spec.name}' has the shape {list(spec.shape)}, without an open first dimension"
            again = batch.intersection(spec.symbols[1:])
            if again:
                return f"the first dimension '{again.pop()}' is also another one of input '{spec.name}'"
        return None

    # --- The proof that rows are independent --------------------------------------------------------------------------

    def _why_rows_depend(self) -> str | None:
        """Why rows are not to share a batch: the graph or the trial says so; None where both agree that they may."""
        if self._proof.couples is not None:
            return self._proof.couples
        if self._exact and self._proof.rounds is not None:
            return f"operator '{self._proof.rounds}' may round a row otherwise in a batch, and batching is 'exact'"
        return self._once(Trial(self._runs, self._proof.id_limits, exact=self._exact).why_rows_depend)

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
                self._runs.run(arrays)

    def _warmup_array(self, spec: TensorSpec, given: WarmupInput, shape: list[int], directory: Path) -> NDArray[Any]:
        if given.datatype != spec.datatype:
            raise self._refusal(f"input '{spec.name}' is {spec.datatype}, its warm-up {given.datatype}")
        if not given.input_data_file:
            values = ordinary_values(spec.datatype, shape, np.random.default_rng(0))
            return values if given.random_data else _zeros_like(values)
        try:
            most_bytes = limits.MAX_BODY_BYTES
            if spec.datatype != "BYTES":
                most_bytes = math.prod(shape) * np.dtype(numpy_dtype(spec.datatype)).itemsize
            data = disk.read(directory / given.input_data_file, most_bytes)
            if len(data) > most_bytes:
                raise ValueError("it is too large")
            if spec.datatype == "BYTES":
                return np.full(shape, data, dtype=object)
            return np.frombuffer(data, numpy_dtype(spec.datatype)).reshape(shape)
        except (OSError, ValueError) as error:
            raise self._refusal(
                f"the warm-up file '{given.input_data_file}' does not fit input '{spec.name}'"
            ) from error


def _of_rows(spec: TensorSpec) -> TensorSpec:
    """An output whose first dimension is the batch, whatever was declared."""
    if spec.open_rank or not spec.shape or spec.shape[0] == -1:
        return spec
    return TensorSpec(spec.name, spec.datatype, (-1, *spec.shape[1:]), ("", *spec.symbols[1:]))


def _fits(dims: Sequence[int], shape: Sequence[int]) -> bool:
    return len(dims) == len(shape) and all(a == b or -1 in (a, b) for a, b in zip(dims, shape, strict=True))


def _zeros_like(values: NDArray[Any]) -> NDArray[Any]:
    return np.full(values.shape, b"", dtype=object) if values.dtype == object else np.zeros_like(values)
