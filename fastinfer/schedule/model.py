"""A loaded version of a model: signature, implementation, queue, statistics.

:meth:`Model.begin` accepts every request. Most go straight to the scheduler. A request of zero rows is answered without
a run, one of more rows than a batch holds runs in slices, and the outputs of one to an endpoint with a successor
(``next``) go to the successor. The last three are parents (``schedule/lifetime``, which also handles their deadline,
cancellation and statistics). Loop's thread only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from fastinfer.base.errors import ApiError
from fastinfer.schedule.lifetime import Parent
from fastinfer.schedule.scheduler import Scheduler, Target
from fastinfer.schedule.wiring import shapes_fit
from fastinfer.shared.statistics import ModelStats
from fastinfer.tensor.message import InferRequest
from fastinfer.tensor.rows import concatenate, cut
from fastinfer.tensor.signature import Signature
from fastinfer.tensor.tensor import Tensor, TensorSpec

if TYPE_CHECKING:
    from fastinfer.config.model import ModelConfig
    from fastinfer.schedule.backend import Implementation

_CONCURRENT_SLICES = 4  # of one request; further slices are cut when these have run
_MAX_SLICES = 10_000  # of one request


class Model(Target):
    """One version, ready for inference.

    Attributes:
        name: the endpoint's name.
        version: its version, as on the wire.
        platform: ``onnxruntime_onnx``, or the built-in worker's.
        config: the effective configuration.
        successor: the model that gets the outputs, or None.
        stats: its counters.
        content: a digest of its model file and configuration; empty for a worker.
        notes: what the log says when it is published, each without its subject.
        number: of the load; distinguishes loads of the same name, and is the same in all processes.
    """

    def __init__(
        self,
        name: str,
        version: str,
        implementation: Implementation,
        scheduler: Scheduler,
        stats: ModelStats,
        config: ModelConfig,
        successor: Callable[[], Model] | None = None,
        number: int = 0,
        content: str = "",
        notes: tuple[str, ...] = (),
    ) -> None:
        super().__init__(name, version, implementation.signature, scheduler, successor)
        self.platform = implementation.platform
        self.config = config
        self.stats = stats
        self.number = number
        self.content = content
        self.notes = notes
        self._implementation = implementation
        self._last: Signature | None = None  # the last stage's signature from which _shown was made
        self._shown = self.own_signature

    def begin(self, request: InferRequest) -> None:
        """Accepts a decoded request, and settles it later with all outputs in the signature's order or with an error.

        Args:
            request: it is checked against the signature first. When it has ended, ``complete`` is called, unless it
                was dropped.

        Raises:
            ApiError: 400 if the request does not fit, 503 if the queue is full.
        """
        self.signature.check(request, self.name)
        if self.successor is not None:
            _Chain(self, request).start()
        else:
            self.enqueue(request)

    def enqueue(self, request: InferRequest) -> None:
        """Accepts a checked request for this model without its successor; see :meth:`begin`."""
        own = self.own_signature
        if not own.batched or 0 < request.rows <= own.max_batch_size:
            self.scheduler.submit(request)
            return
        if request.rows == 0:
            _NoRows(self.scheduler, request, [_zero_rows(spec, own, request) for spec in own.outputs]).start()
            return
        most = own.max_batch_size * _MAX_SLICES
        if request.rows > most:
            raise ApiError(400, f"inference request batch-size must be <= {most} for '{self.name}'")
        _Slices(self.scheduler, request, own).start()

    @property
    def signature(self) -> Signature:
        """The signature as clients see it: of a chain, with the last stage's outputs."""
        if self.successor is not None:
            last = self.following().signature
            if last is not self._last:
                self._last, self._shown = last, _chained(self.own_signature, last)
        return self._shown

    @property
    def shown_config(self) -> ModelConfig:
        """The effective configuration as clients see it, with the last stage's outputs. ApiError: see following."""
        if self.successor is None:
            return self.config
        return self.config.model_copy(update={"outputs": self.following().shown_config.outputs})

    def following(self) -> Model:
        """Return the currently loaded model that gets the outputs. ApiError if it is not ready."""
        if self.successor is None:
            raise ApiError(500, "there is no next stage")
        following: Model = self.successor()
        return following

    def next_models(self) -> list[Model]:
        """Return the models that get requests or outputs from this one, as far as they are ready."""
        if self.successor is None:
            return []
        try:
            return [self.following()]
        except ApiError:
            return []

    def why_withdrawn(self) -> ApiError | None:
        """Return why this model, or another one that its requests need, cannot run them; None if all can."""
        error = self.scheduler.why_withdrawn()
        if error is None and self.successor is not None:
            with suppress(ApiError):  # a missing stage is reported when a request reaches it
                error = self.following().why_withdrawn()
        return error

    def retire(self, retired: Callable[[], None]) -> None:
        """Accepts no more requests. When those in flight have ended, releases everything and calls ``retired``."""

        def idle() -> None:
            self._implementation.close()
            retired()

        self.scheduler.retire(idle)


def _zero_rows(spec: TensorSpec, signature: Signature, request: InferRequest) -> Tensor:
    """Make an output without rows. An open dimension is that of the input with the same symbol, else 0."""
    known = {
        symbol: dim
        for of, tensor in zip(signature.inputs, request.inputs, strict=True)
        for symbol, dim in zip(of.symbols, tensor.shape, strict=not of.open_rank)
        if symbol
    }
    shape = [
        0 if at == spec.batch_axis else dim if dim >= 0 else known.get(symbol, 0)
        for at, (dim, symbol) in enumerate(zip(spec.shape, spec.symbols, strict=True))
    ]
    return Tensor.empty(spec.name, spec.datatype, shape)


class _NoRows(Parent):
    """A request of zero rows: answered in the next turn of the loop, without a run."""

    def __init__(self, scheduler: Scheduler, request: InferRequest, outputs: list[Tensor]) -> None:
        super().__init__(scheduler.clock, request)
        self._loop = scheduler.loop
        self._outputs = outputs

    def begin(self) -> None:
        self.request.started_ns = self.request.enqueued_ns
        self._loop.call_soon(self.finish, self._outputs)


class _Slices(Parent):
    """A request of more rows than a batch holds: its children are slices, a few at a time; their outputs are joined."""

    def __init__(self, scheduler: Scheduler, request: InferRequest, signature: Signature) -> None:
        super().__init__(scheduler.clock, request)
        self._scheduler = scheduler
        self._admitted = False
        self._size = signature.max_batch_size
        self._axes = [spec.batch_axis for spec in signature.inputs]
        self._output_axes = [spec.batch_axis for spec in signature.outputs]
        self._rest = request.inputs  # rows that are not cut yet; along another dimension than the first, all
        self._rows = request.rows  # number of rows that are not cut yet
        self._places: dict[InferRequest, int] = {}  # position of each slice that has not ended
        self._outputs: list[list[Tensor] | None] = []

    def begin(self) -> None:
        if self.request.step is None:  # else the ensemble is admitted
            self._scheduler.admit()
            self._admitted = True
        while self._rows and len(self._places) < _CONCURRENT_SLICES:
            self._run_next()

    def took(self, child: InferRequest, outputs: list[Tensor]) -> None:
        self._outputs[self._places.pop(child)] = outputs
        if self._rows:
            self._run_next()
        elif not self._places:
            self.finish(self._joined())

    def ended(self) -> None:
        self._places.clear()
        self._rest = []
        if self._admitted:
            self._admitted = False
            self._scheduler.leave()

    def _run_next(self) -> None:
        rows = min(self._size, self._rows)
        done = self.request.rows - self._rows
        cuts = list(zip(self._rest, self._axes, strict=True))
        # Slices are cut from the front of the rest, so that each BYTES element is visited once.
        inputs = [cut(tensor, axis, done if axis else 0, rows) for tensor, axis in cuts]
        part = InferRequest(inputs, priority=self.request.priority)
        part.part = True
        part.step = self.request.step
        part.rows = rows
        part.shape_key = self.request.shape_key
        self._rest = [tensor if axis else tensor.slice_rows(rows, self._rows - rows) for tensor, axis in cuts]
        self._rows -= rows
        self.run(self._scheduler.submit, part)
        self._places[part] = len(self._outputs)
        self._outputs.append(None)

    def _joined(self) -> list[Tensor]:
        columns = zip(*(outputs for outputs in self._outputs if outputs is not None), strict=True)
        try:
            return [concatenate(list(each), axis) for each, axis in zip(columns, self._output_axes, strict=True)]
        except ValueError as error:
            raise ApiError(500, "the outputs of the request's slices do not fit together") from error


class _Chain(Parent):
    """A request to an endpoint with a successor: its children are the stages. Each gets the outputs of the one before
    it, and counts in the statistics of its own model."""

    def __init__(self, first: Model, request: InferRequest) -> None:
        super().__init__(first.scheduler.clock, request)
        self._first = first
        self._following: Model | None = None  # set when the first stage has ended

    def begin(self) -> None:
        self._run_stage(self._first, self.request.inputs, self._first.enqueue, checked_like=self.request)

    def took(self, child: InferRequest, outputs: list[Tensor]) -> None:
        following = self._following
        if following is not None:
            self._end(following, child, outputs)
            return
        # The successor is looked up now because it may have been reloaded meanwhile.
        try:
            self._following = following = self._first.following()
            signature = following.signature
            if not _names_match(outputs, signature) and len(signature.inputs) == len(outputs):
                outputs = [tensor.renamed(spec.name) for tensor, spec in zip(outputs, signature.inputs, strict=True)]
            self._run_stage(following, outputs, following.begin)
        except ApiError as error:
            raise _of_next_stage(error) from error

    def failure(self, child: InferRequest, error: ApiError) -> ApiError:  # noqa: ARG002
        return error if self._following is None else _of_next_stage(error)

    def _run_stage(
        self,
        model: Model,
        inputs: list[Tensor],
        place: Callable[[InferRequest], None],
        checked_like: InferRequest | None = None,
    ) -> None:
        stage = InferRequest(inputs, priority=self.request.priority)
        stage.stats = model.stats
        self.request.stats = None
        stage.step = self.request.step if model is self._first else None
        if checked_like is not None:
            stage.rows, stage.whole, stage.shape_key = checked_like.rows, checked_like.whole, checked_like.shape_key
        self.run(place, stage)

    def _end(self, following: Model, stage: InferRequest, outputs: list[Tensor]) -> None:
        last = following.signature
        if not last.outputs_batched and not last.accepts_anything:
            self.request.implicit_batch = False  # the outputs have no batch dimension to remove
        elif stage.implicit_batch:
            axes = [spec.batch_axis for spec in last.outputs] or [0] * len(outputs)
            outputs = [without_batch(tensor, axis) for tensor, axis in zip(outputs, axes, strict=True)]
        self.finish(outputs)


def _of_next_stage(error: ApiError) -> ApiError:
    """Convert a later stage's error: its inputs are not the client's, so an error in them is a 500."""
    if error.status >= 500:
        return error
    return ApiError(500, f"the next stage refused the outputs: {error.message}")


def _chained(first: Signature, last: Signature) -> Signature:
    """Make the signature of a chain: the first stage's inputs and the last stage's outputs."""
    return Signature(
        first.inputs,
        last.outputs,
        batched=first.batched,
        max_batch_size=first.max_batch_size,
        max_batch_size_configured=first.max_batch_size_configured,
        positional=first.positional,
        accepts_anything=first.accepts_anything,
        outputs_batched=first.batched and (last.outputs_batched or last.accepts_anything),
        item_form=first.item_form,
        never_empty=first.never_empty,
        labels=last.labels,
        score_matrices=last.score_matrices,
        max_request_rows=first.max_request_rows,
        optional_inputs=first.optional_inputs,
    )


def _names_match(outputs: Iterable[Tensor | TensorSpec], following: Signature) -> bool:
    """Whether a stage's outputs are by name inputs of the following one, all those included that it needs."""
    names = {each.name for each in outputs}
    needed = {spec.name for spec in following.inputs}
    return needed <= names <= needed | {spec.name for spec in following.optional_inputs}


def why_not_chained(first: Signature, following: Signature) -> str | None:
    """Return why an endpoint's outputs cannot be another one's inputs, judged by their signatures; None if they may."""
    if following.accepts_anything or first.accepts_anything:
        return None
    outputs, inputs = list(first.outputs), list(following.inputs)
    if _names_match(outputs, following):
        by_name = {spec.name: spec for spec in (*inputs, *following.optional_inputs)}
        inputs = [by_name[spec.name] for spec in outputs]
    if len(outputs) != len(inputs):
        return f"it has {len(outputs)} outputs, but the next stage takes {len(inputs)} inputs"
    for given, taken in zip(outputs, inputs, strict=True):
        if given.datatype != taken.datatype:
            return f"output '{given.name}' is {given.datatype}, but input '{taken.name}' is {taken.datatype}"
        if not shapes_fit(given, taken):
            return f"output '{given.name}' {list(given.shape)} does not fit input '{taken.name}' {list(taken.shape)}"
    return None


def without_batch(tensor: Tensor, axis: int) -> Tensor:
    """The tensor without its batch dimension, unless an optional input has given it another shape."""
    shape = tensor.shape
    return tensor.reshaped(shape[:axis] + shape[axis + 1 :]) if shape[axis : axis + 1] == (1,) else tensor
