"""Makes a session from a model file, and checks it: signature, the proof that rows are independent, warm-up.

Runs on a load thread, never on the loop's. The client that requested the load gets every error.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fastinfer.backends.findings import Findings
from fastinfer.backends.labels import labels_of, labels_of_classes
from fastinfer.backends.onnx import ort
from fastinfer.backends.onnx.content import why_no_model
from fastinfer.backends.onnx.graph.classifier import read_classifier
from fastinfer.backends.onnx.graph.external import relocated
from fastinfer.backends.onnx.graph.facts import MAX_INLINED, Facts
from fastinfer.backends.onnx.graph.outline import Graphs, outline
from fastinfer.backends.onnx.graph.rows import Proof
from fastinfer.backends.onnx.graph.visits import collector
from fastinfer.backends.onnx.ort import OrtError, Session
from fastinfer.backends.onnx.trial import TOO_LONG, Runs, Trial, TrialRuns
from fastinfer.backends.onnx.weights import find_weights
from fastinfer.backends.warm_up import warm_ups
from fastinfer.base.errors import ApiError, without_paths
from fastinfer.config.model import ConfigError, ModelConfig
from fastinfer.config.model_schema import TensorConfig
from fastinfer.config.server import ServerConfig
from fastinfer.tensor.signature import Signature
from fastinfer.tensor.tensor import TensorSpec
from fastinfer.tensor.top_k import Labels

log = logging.getLogger(__name__)

# Operators of ONNX Runtime 1.32 that crash the process if an input has no elements.
_NEVER_EMPTY = frozenset({"ConvTranspose", "DynamicQuantizeLSTM", "GRU", "LSTM", "STFT", "Unique"})

_RUNTIME_FORMAT = b"ORTM"  # at byte 4 of a file in ONNX Runtime's own format
_NO_LOCALE = re.compile(r"Failed to construct locale with name:([\w.@-]{0,60}):")


@dataclass(frozen=True, slots=True)
class Shared:
    """What the loads of a process share.

    Attributes:
        trials: registers every run, so that the end of the server can terminate it.
        graphs: the facts and proofs of known graphs.
        findings: the results of trials.
    """

    trials: TrialRuns = field(default_factory=TrialRuns)
    graphs: Graphs = field(default_factory=Graphs)
    findings: Findings = field(default_factory=Findings)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that was loaded and checked.

    Attributes:
        session: the runtime's session.
        signature: its inputs and outputs.
        steady: whether the run time depends only on the shapes of the inputs.
        combines: whether requests may share a batch.
        why_alone: why they should not, as a clause; None: they may.
        opsets: the versions of the operator sets that it imports, by domain.
    """

    session: Session
    signature: Signature
    steady: bool
    combines: bool
    why_alone: str | None
    opsets: Mapping[str, int]


def load(
    path: Path,
    content: bytes,
    config: ModelConfig,
    name: str,
    options: dict[str, Any],
    server: ServerConfig,
    shared: Shared | None = None,
    directory: Path | None = None,
) -> LoadedModel:
    """Loads a model file.

    Args:
        path: the ``.onnx`` file.
        content: the file's bytes. The proof and the session use the same ones, even if the file is replaced meanwhile:
            these, or those of the model without maps.
        config: the model's configuration.
        name: the model's name, for messages.
        options: keyword arguments of :class:`Session`.
        server: the server's configuration.
        shared: what the process's loads share; None: nothing.
        directory: the model's directory; None: the file is in a version's directory in it.

    Raises:
        ApiError: 400 with ONNX Runtime's reason, or if the configuration does not fit the graph.
    """
    directory = directory or path.parent.parent
    shared = shared or Shared()
    try:
        if content[4:8] == _RUNTIME_FORMAT:
            raise OrtError("it is in ONNX Runtime's own format (.ort); give the .onnx file that it was made from")
        configured_labels = labels_of(directory, config)
        exact = (config.batching or server.batching) == "exact"
        if (reason := why_no_model(content)) is not None:
            raise OrtError(reason)
        with collector.paused():
            classifier = read_classifier(content)
            served = classifier.model
            known_as = outline(served)
            facts = shared.graphs.facts(known_as, served)
        labels = labels_of_classes(classifier.classes) | configured_labels
        if facts.inlined > MAX_INLINED:  # the runtime would inline them for hours
            raise OrtError(f"the calls of its functions expand to more than {MAX_INLINED} operators")
        session = _session(path, content, served, options, server)
        if facts.sparse_outputs:  # the runtime describes them as dense
            raise OrtError(f"output '{facts.sparse_outputs[0]}' is a sparse tensor; only tensors can be served")
        if facts.sized_by_values is not None:
            log.info("model '%s' never runs on the event loop's thread: %s", name, facts.sized_by_values)
        runs = Runs(session, server.load_run_timeout_s, shared.trials)
        with collector.paused():
            proof = shared.graphs.proof(known_as, served)
        # A trial's result depends on all of this.
        tried = repr((known_as, options, exact, server.load_run_timeout_s, ort.version()))
        once = partial(shared.findings.once, blake2b(tried.encode(), digest_size=16).hexdigest())
        loading = _Loading(name, runs, facts, proof, server.default_max_batch_size, exact, once)
        loaded = loading.model(config, labels, classifier.classes)
        for arrays in warm_ups(name, session.inputs, loaded.signature.batched, config, directory):
            runs.run(_inner_arrays(arrays, session.inputs, loaded.signature.batched, config))
    except ConfigError as error:
        raise ApiError(400, f"model '{name}': {error}") from error
    except OrtError as error:
        raise ApiError(400, f"model '{name}' does not load: {_reason(error)}") from error
    return loaded


def _reason(error: OrtError) -> str:
    """Return why a model does not load. The runtime's text about a locale does not say how to install one."""
    missing = _NO_LOCALE.search(str(error))
    if missing is None:
        return without_paths(str(error))
    locale = missing[1]
    language, _, charmap = locale.partition(".")
    return (
        f"operator 'StringNormalizer' needs the locale '{locale}', which this machine lacks; install it (on Debian: "
        f"package 'locales', then localedef -i {language} -f {charmap or 'UTF-8'} {locale}), or export the model "
        "with the locale 'C.UTF-8'"
    )


_Once = Callable[[Callable[[], str | None]], str | None]


def _session(
    path: Path, content: bytes, served: bytes | memoryview, options: Mapping[str, Any], server: ServerConfig
) -> Session:
    """Makes the session of the graph that is served, with the external data that the file names. OrtError."""
    roots = [
        place
        for root in server.roots
        for place in ([root] if isinstance(root, Path) else [m.base for m in root.values()])
    ]
    try:
        weights = find_weights(content, path, roots, allow_links=server.allow_linked_weights)
    except OSError as error:
        raise OrtError(f"its external data cannot be read: {error.strerror}") from error
    if weights is None:
        return Session(path, model=served, **options)
    model = relocated(served, weights.names) if weights.names else served
    return Session(path, model=model, weights_folder=str(weights.folder), **options)


def _inner_arrays(
    arrays: Sequence[NDArray[Any]], specs: Sequence[TensorSpec], batched: bool, config: ModelConfig
) -> list[NDArray[Any]]:
    """Return warm-up inputs in the graph's shapes, if the configuration reshapes them. ApiError 400."""
    reshapes = {given.name: given.inner_dims for given in config.inputs if given.reshape is not None}
    try:
        return [
            array.reshape((*array.shape[: int(batched)], *reshapes[spec.name])) if spec.name in reshapes else array
            for array, spec in zip(arrays, specs, strict=True)
        ]
    except ValueError:
        raise ConfigError("a warm-up does not have the dims of the inputs") from None


class _Loading:
    """Derives the signature of a session, and whether its rows are independent."""

    def __init__(
        self, name: str, runs: Runs, facts: Facts, proof: Proof, default_rows: int, exact: bool, once: _Once
    ) -> None:
        self.name = name
        self.session = runs.session
        self._runs = runs
        self._steady = facts.sized_by_values is None
        self._opsets = facts.opsets
        self._never_empty = ", ".join(sorted(facts.operators & _NEVER_EMPTY))
        self._proof = proof
        self._default_rows = default_rows
        self._exact = exact
        self._once = once

    # --- Signature ----------------------------------------------------------------------------------------------------

    def model(self, config: ModelConfig, labels: Mapping[str, Labels], scores: Collection[str]) -> LoadedModel:
        """Make the signature from the graph, checked against the configuration. ApiError 400.

        Args:
            config: the configuration.
            labels: of the classes of outputs.
            scores: the outputs that are a classifier's, with a row of scores for each row.
        """
        session = self.session
        described = partial(
            Signature, session.inputs, labels=labels, score_matrices=scores, never_empty=self._never_empty
        )
        signature = partial(described, session.outputs)
        configured = config.max_batch_size
        self._check_tensors("input", config.inputs, self.session.inputs, configured)
        self._check_tensors("output", config.outputs, self.session.outputs, configured)
        if configured == 0:
            return self._loaded(signature(), False, "max_batch_size is 0")
        if configured is not None:
            if self._takes_one_row():
                return self._row_by_row(configured, labels, scores)
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
        # Some exporters declare one output row although there is one for each input row; the proof shows it.
        outputs = [_of_rows(spec) for spec in session.outputs]
        batched = described(outputs, batched=True, max_batch_size=self._default_rows)
        return self._loaded(batched, True, None)

    def _loaded(self, signature: Signature, combines: bool, why_alone: str | None) -> LoadedModel:
        return LoadedModel(self.session, signature, self._steady, combines, why_alone, self._opsets)

    def _check_tensors(
        self, what: str, given: Sequence[TensorConfig], specs: Sequence[TensorSpec], configured: int | None
    ) -> None:
        """Compares the configuration's inputs or outputs with the graph's.

        Dims have no batch dimension if a batch size is configured (Triton's convention), and have it if the batch size
        is 0. If none is configured, both are accepted (AMD's convention has no batch size and no batch dimension).
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
            dims = tensor.inner_dims
            if not any(_fits(dims, shape) for shape in allowed):
                raise self._refusal(
                    f"{what} '{tensor.name}' has the shape {list(allowed[0])}, but is configured as {list(dims)}"
                )

    def _takes_one_row(self) -> bool:
        """Whether the graph fixes the batch to one row."""
        specs = (*self.session.inputs, *self.session.outputs)
        return all(not spec.open_rank and spec.shape[:1] == (1,) for spec in specs)

    def _row_by_row(self, rows: int, labels: Mapping[str, Labels], scores: Collection[str]) -> LoadedModel:
        """Serve requests of up to ``rows`` rows, each of which runs alone."""
        signature = Signature(
            [_of_rows(spec) for spec in self.session.inputs],
            [_of_rows(spec) for spec in self.session.outputs],
            batched=True,
            max_batch_size=1,
            max_batch_size_configured=True,
            max_request_rows=rows,
            labels=labels,
            score_matrices=scores,
            never_empty=self._never_empty,
        )
        reason = "its graph takes one row at a time"
        if rows > 1:
            log.warning("model '%s': max_batch_size is %d, but %s", self.name, rows, reason)
        return self._loaded(signature, False, reason if rows > 1 else None)

    def _check_first_dimensions(self) -> None:
        for name in self.session.sequence_outputs:
            raise self._refusal(f"max_batch_size must be 0, because output '{name}' is a sequence, which has no rows")
        for spec in (*self.session.inputs, *self.session.outputs):
            if not spec.shape or spec.shape[0] != -1:
                raise self._refusal(
                    f"max_batch_size needs an open first dimension, but '{spec.name}' has the shape {list(spec.shape)}"
                )

    def _refusal(self, sentence: str) -> ApiError:
        return ApiError(400, f"model '{self.name}': {sentence}")

    def _why_not_batched(self) -> str | None:
        """Return why inputs have no batch dimension, or None if they have one."""
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
        """Return why rows must not share a batch, by the proof or the trial; None if both agree that they may."""
        if self._proof.couples is not None:
            return self._proof.couples
        if self._exact and self._proof.rounds is not None:
            return f"operator '{self._proof.rounds}' may round a row otherwise in a batch, and batching is 'exact'"
        return self._once(Trial(self._runs, self._proof.id_limits, exact=self._exact).why_rows_depend)


def _of_rows(spec: TensorSpec) -> TensorSpec:
    """Return the output with an open first dimension, whatever the graph declares."""
    if spec.open_rank or not spec.shape or spec.shape[0] == -1:
        return spec
    return TensorSpec(spec.name, spec.datatype, (-1, *spec.shape[1:]), ("", *spec.symbols[1:]))


def _fits(dims: Sequence[int], shape: Sequence[int]) -> bool:
    return len(dims) == len(shape) and all(a == b or -1 in (a, b) for a, b in zip(dims, shape, strict=True))
