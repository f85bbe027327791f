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
from fastinfer.backends.onnx.graph.classifier import read_classifier
from fastinfer.backends.onnx.graph.facts import MAX_INLINED, Facts
from fastinfer.backends.onnx.graph.outline import Graphs, outline
from fastinfer.backends.onnx.graph.rows import Proof
from fastinfer.backends.onnx.graph.visits import collector
from fastinfer.backends.onnx.ort import OrtError, Session
from fastinfer.backends.onnx.places import is_extensions, stamps
from fastinfer.backends.onnx.refusals import explained
from fastinfer.backends.onnx.settings import SessionSettings
from fastinfer.backends.onnx.trial import TOO_LONG, Runs, Trial, TrialRuns
from fastinfer.backends.warm_up import warm_ups
from fastinfer.base.errors import ApiError, without_paths
from fastinfer.config.model import ConfigError, ModelConfig
from fastinfer.config.model_schema import InputConfig, TensorConfig
from fastinfer.config.server import ServerConfig
from fastinfer.tensor.signature import Signature
from fastinfer.tensor.tensor import TensorSpec
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
        session = Session(path, model=served, settings=settings)
        for reason in session.refused_inputs:
            log.info("model '%s' runs without an optional input: %s", name, reason)
        opaque = bool(settings.operator_libraries)  # operators of a library may have any names, also of known ones
        if opaque or settings.run_config:  # runs on the loop's thread share their options
            facts = replace(facts, sized_by_values=_OPAQUE if opaque else "it has options for each run")
        if facts.sized_by_values is not None:
            log.info("model '%s' never runs on the event loop's thread: %s", name, facts.sized_by_values)
        runs = Runs(session, server.load_run_timeout_s, shared.trials)
        with collector.paused():
            proof = Proof(_OPAQUE) if opaque else shared.graphs.proof(known_as, served)
        # A trial's result depends on all of this.
        libraries = stamps([*settings.operator_libraries, *settings.provider_libraries.values()])
        tried = repr((known_as, settings, libraries, exact, server.load_run_timeout_s, ort.version()))
        once = partial(shared.findings.once, blake2b(tried.encode(), digest_size=16).hexdigest())
        loading = _Loading(name, runs, facts, proof, server.default_max_batch_size, exact, once)
        loaded = loading.model(config, labels, classifier.classes)
        for tensors in warm_ups(name, loaded.signature, config, directory):
            runs.run_tensors(tensors)
    except ConfigError as error:
        raise ApiError(400, f"model '{name}': {error}") from error
    except OrtError as error:
        raise ApiError(400, f"model '{name}' does not load: {_reason(error, settings.operator_libraries)}") from error
    return loaded


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
        signature = partial(
            Signature,
            session.inputs,
            labels=labels,
            score_matrices=scores,
            never_empty=self._never_empty,
            optional_inputs=session.optional_inputs,
        )
        configured = config.max_batch_size
        self._check_inputs(config.inputs, configured)
        self._check_tensors("output", config.outputs, self.session.outputs, configured)
        if configured == 0:
            return self._loaded(signature(session.outputs), False, "max_batch_size is 0")
        if configured is not None:
            self._check_first_dimensions()
            reason = self._why_rows_depend()
            if reason is not None:
                but = "its requests share no batch, because" if self._exact else f"max_batch_size is {configured}, but"
                log.warning("model '%s': %s %s", self.name, but, reason)
            batched = signature(
                session.outputs, batched=True, max_batch_size=configured, max_batch_size_configured=True
            )
            return self._loaded(batched, reason is None or not self._exact, reason)
        reason = self._why_not_batched() or self._why_rows_depend()
        if reason is not None:
            level = logging.WARNING if reason.startswith(TOO_LONG) else logging.INFO
            log.log(level, "model '%s' is not batched: %s", self.name, reason)
            return self._loaded(signature(session.outputs), False, reason)
        # Some exporters declare one output row although there is one for each input row; the proof shows it.
        outputs = [_of_rows(spec) for spec in session.outputs]
        return self._loaded(signature(outputs, batched=True, max_batch_size=self._default_rows), True, None)

    def _loaded(self, signature: Signature, combines: bool, why_alone: str | None) -> LoadedModel:
        return LoadedModel(self.session, signature, self._steady, combines, why_alone, self._opsets)

    def _check_inputs(self, given: Sequence[InputConfig], configured: int | None) -> None:
        """Compares the configuration's inputs with the graph's, which may have optional ones: see _check_tensors."""
        required, optional = self.session.inputs, self.session.optional_inputs
        names = {spec.name for spec in optional}
        self._check_tensors("input", [each for each in given if each.name not in names], required, configured)
        self._check_tensors("input", [each for each in given if each.name in names], optional, None)
        for tensor in given:
            if tensor.optional and tensor.name not in names:
                raise self._refusal(f"input '{tensor.name}' is configured as optional, but the graph needs it")

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
            if not any(_fits(tensor.dims, shape) for shape in allowed):
                raise self._refusal(
                    f"{what} '{tensor.name}' has the shape {list(allowed[0])}, but is configured as {list(tensor.dims)}"
                )

    def _check_first_dimensions(self) -> None:
        for name in self.session.sequence_outputs:
            raise self._refusal(f"max_batch_size must be 0, because output '{name}' is a sequence, which has no rows")
        if not self.session.inputs:
            raise self._refusal("max_batch_size needs an input that every request gives")
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
