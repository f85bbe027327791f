"""Makes a session from a model file, and checks it: signature, the proof that rows are independent, warm-up.

Runs on a load thread, never on the loop's. The client that requested the load gets every error.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path

from fastinfer.backends.findings import Findings
from fastinfer.backends.labels import labels_of, labels_of_classes
from fastinfer.backends.onnx import ort
from fastinfer.backends.onnx.batch_axes import Axes, guesses, may_be_common, why_no_rows
from fastinfer.backends.onnx.content import why_no_model
from fastinfer.backends.onnx.graph.classifier import read_classifier
from fastinfer.backends.onnx.graph.external import relocated
from fastinfer.backends.onnx.graph.facts import MAX_INLINED, Facts
from fastinfer.backends.onnx.graph.outline import Graphs, outline
from fastinfer.backends.onnx.graph.rows import Proof
from fastinfer.backends.onnx.graph.visits import collector
from fastinfer.backends.onnx.ort import OrtError, Session
from fastinfer.backends.onnx.places import is_extensions, stamps
from fastinfer.backends.onnx.refusals import explained
from fastinfer.backends.onnx.settings import SessionSettings
from fastinfer.backends.onnx.trial import TOO_LONG, Runs, Trial, TrialRuns
from fastinfer.backends.onnx.weights import find_weights
from fastinfer.backends.warm_up import warm_ups
from fastinfer.base.errors import ApiError, without_paths
from fastinfer.config.model import ConfigError, ModelConfig
from fastinfer.config.model_schema import TensorConfig
from fastinfer.config.server import ServerConfig
from fastinfer.tensor.rows import BatchAxes
from fastinfer.tensor.signature import Signature
from fastinfer.tensor.tensor import Tensor, TensorSpec
from fastinfer.tensor.top_k import Labels

log = logging.getLogger(__name__)

_OPAQUE = "it has a library of operators, which may do anything"
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
        notes: see :attr:`fastinfer.backends.backend.Loaded.notes`.
    """

    session: Session
    signature: Signature
    steady: bool
    combines: bool
    why_alone: str | None
    opsets: Mapping[str, int]
    notes: tuple[str, ...] = ()


def load(
    path: Path,
    content: bytes,
    config: ModelConfig,
    name: str,
    settings: SessionSettings,
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
        settings: the session's.
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
        if facts.unserved is not None:
            raise OrtError(facts.unserved)
        session = _session(path, content, served, settings, server)
        notes = [f"runs without an optional input: {reason}" for reason in session.refused_inputs]
        opaque = bool(settings.operator_libraries)  # operators of a library may have any names, also of known ones
        if opaque or settings.run_config:  # runs on the loop's thread share their options
            facts = replace(facts, sized_by_values=_OPAQUE if opaque else "it has options for each run")
        if facts.sized_by_values is not None:
            notes.append(f"never runs on the event loop's thread: {facts.sized_by_values}")
        runs = Runs(session, server.load_run_timeout_s, shared.trials)
        prove: _Prove = partial(shared.graphs.proof, known_as, served)
        if opaque:
            prove = _prove_nothing
        # A trial's result depends on all of this.
        libraries = stamps([*settings.operator_libraries, *settings.provider_libraries.values()])
        axes = sorted(config.batch_axes.items())
        tried = repr((known_as, settings, libraries, exact, axes, server.load_run_timeout_s, ort.version()))
        once = partial(shared.findings.once, blake2b(tried.encode(), digest_size=16).hexdigest())
        loading = _Loading(name, runs, facts, prove, server.default_max_batch_size, exact, once)
        loaded = loading.model(config, labels, classifier.classes)
        session.axes = BatchAxes.of(loaded.signature.inputs, loaded.signature.outputs)
        for tensors in warm_ups(name, loaded.signature, config, directory):
            runs.run_tensors(_in_graphs_shapes(tensors, loaded.signature.batched, config))
    except ConfigError as error:
        raise ApiError(400, f"model '{name}': {error}") from error
    except OrtError as error:
        raise ApiError(400, f"model '{name}' does not load: {_reason(error, settings.operator_libraries)}") from error
    return replace(loaded, notes=(*notes, *loaded.notes))


def _reason(error: OrtError, libraries: Sequence[str]) -> str:
    """Return why a model does not load. The runtime's texts do not say what to install: a locale, or operators."""
    missing = _NO_LOCALE.search(str(error))
    if missing is None:
        extensions = any(is_extensions(path) for path in libraries)
        return without_paths(explained(str(error), extensions=extensions, libraries=bool(libraries)))
    locale = missing[1]
    language, _, charmap = locale.partition(".")
    return (
        f"operator 'StringNormalizer' needs the locale '{locale}', which this machine lacks; install it (on Debian: "
        f"package 'locales', then localedef -i {language} -f {charmap or 'UTF-8'} {locale}), or export the model "
        "with the locale 'C.UTF-8'"
    )


_Once = Callable[[Callable[[], str | None]], str | None]
_Prove = Callable[[Axes], Proof]


def _prove_nothing(_: Axes) -> Proof:
    return Proof(_OPAQUE)


def _session(
    path: Path, content: bytes, served: bytes | memoryview, settings: SessionSettings, server: ServerConfig
) -> Session:
    """Makes the session of the graph that is served, with the external data that the file names. OrtError."""
    if settings.external_data is not None:  # the configuration says where it is
        return Session(path, model=served, settings=settings)
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
        return Session(path, model=served, settings=settings)
    model = relocated(served, weights.names) if weights.names else served
    return Session(path, model=model, weights_folder=str(weights.folder), settings=settings)


def _in_graphs_shapes(tensors: Sequence[Tensor], batched: bool, config: ModelConfig) -> list[Tensor]:
    """Return warm-up inputs in the graph's shapes, if the configuration reshapes them. ConfigError."""
    reshapes = {given.name: given.inner_dims for given in config.inputs if given.reshape is not None}

    def inner(tensor: Tensor) -> Tensor:
        if tensor.name not in reshapes:
            return tensor
        array = tensor.numpy()
        array = array.reshape((*array.shape[: int(batched)], *reshapes[tensor.name]))
        return Tensor.from_numpy(tensor.name, array, tensor.datatype)

    try:
        return [inner(tensor) for tensor in tensors]
    except ValueError:
        raise ConfigError("a warm-up does not have the dims of the inputs") from None


class _Loading:
    """Derives the signature of a session, and whether its rows are independent."""

    def __init__(
        self, name: str, runs: Runs, facts: Facts, prove: _Prove, default_rows: int, exact: bool, once: _Once
    ) -> None:
        self.name = name
        self.session = runs.session
        self._runs = runs
        self._steady = facts.sized_by_values is None
        self._opsets = facts.opsets
        self._never_empty = ", ".join(sorted(facts.operators & _NEVER_EMPTY))
        self._prove = prove
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
        make = partial(
            Signature,
            labels=labels,
            score_matrices=scores,
            never_empty=self._never_empty,
            optional_inputs=session.optional_inputs,
        )
        if config.reshapes and config.max_batch_size is None:  # Triton's default, which says where the dims begin
            config = config.model_copy(update={"max_batch_size": 0})
        configured = config.max_batch_size
        self._check_axes(config)
        if configured == 0:
            self._check_tensors(config, session.inputs, session.outputs)
            return self._loaded(make(session.inputs, session.outputs), False, "max_batch_size is 0")
        if configured is not None and self._takes_one_row():
            self._check_tensors(config, session.inputs, session.outputs)
            return self._row_by_row(configured, make)
        rows = self._rows(config)
        self._check_tensors(config, rows.inputs, rows.outputs)
        if config.reshapes and any(spec.batch_axis != 0 for spec in (*rows.inputs, *rows.outputs)):
            raise self._refusal("a reshape needs the rows of all inputs and outputs along the first dimension")
        if configured is not None:
            self._check_batch_dimensions(rows)
            reason = rows.couples or self._why_rows_depend(rows)
            if reason is not None:
                but = "its requests share no batch, because" if self._exact else f"max_batch_size is {configured}, but"
                log.warning("model '%s': %s %s", self.name, but, reason)
            batched = make(
                rows.inputs, rows.outputs, batched=True, max_batch_size=configured, max_batch_size_configured=True
            )
            return self._loaded(batched, reason is None or not self._exact, reason)
        reason = self._why_not_batched(rows) or rows.couples or self._why_rows_depend(rows)
        if reason is not None:
            alone = self._loaded(make(session.inputs, session.outputs), False, reason)
            if not reason.startswith(TOO_LONG):
                return replace(alone, notes=(f"is not batched: {reason}",))
            log.warning("model '%s' is not batched: %s", self.name, reason)
            return alone
        # Some exporters declare one output row although there is one for each input row; the proof shows it.
        outputs = [_of_rows(spec) for spec in rows.outputs]
        batched = make(rows.inputs, outputs, batched=True, max_batch_size=self._default_rows)
        return self._loaded(batched, True, None)

    def _rows(self, config: ModelConfig) -> _Rows:
        """Find the batch dimensions of inputs and outputs: the configured ones, else those that a proof finds."""
        given = config.batch_axes
        first: _Rows | None = None
        for axes in guesses(self.session.inputs, given):
            with collector.paused():
                proof = self._prove(axes)
            inputs = [spec.along(axes.get(spec.name, 0)) for spec in self.session.inputs]
            found = proof.output_axes
            outputs = [spec.along(found.get(spec.name, given.get(spec.name, 0))) for spec in self.session.outputs]
            rows = _Rows(inputs, outputs, proof)
            if proof.couples is None:
                self._check_output_axes(given, found)
                return rows
            first = first or rows
        assert first is not None
        return first

    def _check_output_axes(self, given: Mapping[str, int], found: Mapping[str, int]) -> None:
        for name, axis in found.items():
            if given.get(name, axis) != axis:
                raise self._refusal(
                    f"batch_axis of output '{name}' is {given[name]}, but its rows are along dimension {axis}"
                )

    def _loaded(self, signature: Signature, combines: bool, why_alone: str | None) -> LoadedModel:
        return LoadedModel(self.session, signature, self._steady, combines, why_alone, self._opsets)

    def _check_axes(self, config: ModelConfig) -> None:
        """Checks that each configured batch dimension is one of an input or output."""
        inputs = {spec.name: spec for spec in self.session.inputs}
        outputs = {spec.name: spec for spec in self.session.outputs}
        for name, axis in config.batch_axes.items():
            spec = inputs.get(name) or outputs.get(name)
            if spec is None:
                raise self._refusal(f"the configuration gives a batch_axis for '{name}', which the graph does not have")
            if axis < 0 and name in inputs and not may_be_common(spec):
                raise self._refusal(f"input '{name}' needs a batch_axis: it is not fixed and small")
            if (axis < 0 and name in outputs) or (not spec.open_rank and axis >= len(spec.shape)):
                raise self._refusal(f"batch_axis {axis} is no dimension of '{name}', whose shape is {list(spec.shape)}")

    def _check_tensors(self, config: ModelConfig, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        """Compares the configuration's inputs and outputs with the graph's.

        Dims have no batch dimension if a batch size is configured (Triton's convention), and have it if the batch size
        is 0. If none is configured, both are accepted (AMD's convention has no batch size and no batch dimension).
        """
        optional = {spec.name: spec for spec in self.session.optional_inputs}
        for each in config.inputs:
            if each.name in optional and each.reshape is not None:
                raise self._refusal(f"the optional input '{each.name}' cannot be reshaped")
            if each.name in optional:
                self._check_tensor("input", each, optional[each.name], None)
            elif each.optional and each.name in {spec.name for spec in inputs}:
                raise self._refusal(f"input '{each.name}' is configured as optional, but the graph needs it")
        required = [each for each in config.inputs if each.name not in optional]
        for what, given, specs in (("input", required, inputs), ("output", config.outputs, outputs)):
            by_name = {spec.name: spec for spec in specs}
            for tensor in given:
                spec = by_name.get(tensor.name)
                if spec is None:
                    raise self._refusal(f"the configuration names {what} '{tensor.name}', the graph does not")
                self._check_tensor(what, tensor, spec, config.max_batch_size)

    def _check_tensor(self, what: str, tensor: TensorConfig, spec: TensorSpec, configured: int | None) -> None:
        if tensor.datatype != spec.datatype:
            raise self._refusal(f"{what} '{tensor.name}' is {spec.datatype}, but configured as {tensor.datatype}")
        if spec.open_rank:
            return
        whole, row, dims = spec.shape, spec.row_shape, tensor.inner_dims
        allowed = [row] if configured else [whole] if configured == 0 else [whole, row]
        if not any(_fits(dims, shape) for shape in allowed):
            raise self._refusal(
                f"{what} '{tensor.name}' has the shape {list(allowed[0])}, but is configured as {list(dims)}"
            )

    def _takes_one_row(self) -> bool:
        """Whether the graph fixes the batch to one row."""
        specs = (*self.session.inputs, *self.session.outputs)
        return all(not spec.open_rank and spec.shape[:1] == (1,) for spec in specs)

    def _row_by_row(self, rows: int, make: Callable[..., Signature]) -> LoadedModel:
        """Serve requests of up to ``rows`` rows, each of which runs alone."""
        signature = make(
            [_of_rows(spec) for spec in self.session.inputs],
            [_of_rows(spec) for spec in self.session.outputs],
            batched=True,
            max_batch_size=1,
            max_batch_size_configured=True,
            max_request_rows=rows,
        )
        reason = "its graph takes one row at a time"
        if rows > 1:
            log.warning("model '%s': max_batch_size is %d, but %s", self.name, rows, reason)
        return self._loaded(signature, False, reason if rows > 1 else None)

    def _check_batch_dimensions(self, rows: _Rows) -> None:
        for name in self.session.sequence_outputs:
            raise self._refusal(f"max_batch_size must be 0, because output '{name}' is a sequence, which has no rows")
        if not self.session.inputs:
            raise self._refusal("max_batch_size needs an input that every request gives")
        if all(spec.batch_axis < 0 for spec in rows.inputs):
            raise self._refusal(f"max_batch_size needs an open first dimension, but {why_no_rows(rows.inputs)}")
        for spec in (*rows.inputs, *rows.outputs):
            axis = spec.batch_axis
            if axis < 0:
                continue
            if axis >= len(spec.shape) or spec.shape[axis] != -1:
                which = "first dimension" if axis == 0 else f"dimension {axis}"
                raise self._refusal(
                    f"max_batch_size needs an open {which}, but '{spec.name}' has the shape {list(spec.shape)}"
                )

    def _refusal(self, sentence: str) -> ApiError:
        return ApiError(400, f"model '{self.name}': {sentence}")

    def _why_not_batched(self, rows: _Rows) -> str | None:
        """Return why inputs have no batch dimension, or None if they have one."""
        for what, specs in (("input", rows.inputs), ("output", rows.outputs)):
            if not specs:
                return f"it has no {what}s"
        texts = next((spec for spec in rows.outputs if spec.batch_axis > 0 and spec.datatype == "BYTES"), None)
        if texts is not None:
            return f"output '{texts.name}' has texts, whose rows can be along the first dimension only"
        return why_no_rows(rows.inputs)

    # --- The proof that rows are independent --------------------------------------------------------------------------

    def _why_rows_depend(self, rows: _Rows) -> str | None:
        """Return why rows must not share a batch although they are independent, by the trial; None: they may."""
        rounds = rows.proof.rounds
        if self._exact and rounds is not None:
            return f"operator '{rounds}' may round a row otherwise in a batch, and batching is 'exact'"
        trial = Trial(self._runs, rows.inputs, rows.outputs, rows.proof.id_limits, exact=self._exact)
        return self._once(trial.why_rows_depend)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Where the rows are: inputs and outputs with their batch dimensions, and the proof for these dimensions."""

    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    proof: Proof

    @property
    def couples(self) -> str | None:
        return self.proof.couples


def _of_rows(spec: TensorSpec) -> TensorSpec:
    """Return the output with an open batch dimension, whatever the graph declares."""
    axis = spec.batch_axis
    if spec.open_rank or len(spec.shape) <= axis or spec.shape[axis] == -1:
        return spec
    shape, symbols = list(spec.shape), list(spec.symbols)
    shape[axis], symbols[axis] = -1, ""
    return TensorSpec(spec.name, spec.datatype, shape, symbols, axis)


def _fits(dims: Sequence[int], shape: Sequence[int]) -> bool:
    return len(dims) == len(shape) and all(a == b or -1 in (a, b) for a, b in zip(dims, shape, strict=True))
