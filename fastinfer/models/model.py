"""A version of a model that is loaded: signature, implementation, queue, statistics.

:meth:`Model.infer` is the one way in, whatever the request looks like: most go straight to the scheduler; one of zero
rows is answered without a run, one of more rows than a batch holds is run in slices, and one to an endpoint with a
successor (``next``) goes on to that one. Loop's thread only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from time import monotonic_ns
from typing import TYPE_CHECKING

from fastinfer._ext.batch import concatenate
from fastinfer._ext.inference import Target
from fastinfer._ext.message import InferRequest
from fastinfer._ext.scheduler import Scheduler
from fastinfer._ext.signature import Signature
from fastinfer._ext.tensor import Tensor, TensorSpec
from fastinfer.errors import ApiError
from fastinfer.models.run import Outcome
from fastinfer.models.stats import ModelStats

if TYPE_CHECKING:
    from fastinfer.config.model import ModelConfig
    from fastinfer.workers.base import Implementation

_SLICES_AT_ONCE = 4  # of one request; the others are cut when these have run
_MAX_SLICES = 10_000  # of one request: rows without elements cost nothing to send

Complete = Callable[[InferRequest, Outcome], None]
Cancel = Callable[[], None]


class Model(Target):
    """One version, ready to infer.

    Attributes:
        name: the endpoint's name, under which it answers.
        version: its version, as on the wire.
        platform: ``onnxruntime_onnx``, or the built-in worker's.
        config: the effective configuration.
        successor: the model that gets the outputs, or None.
        stats: what it has done.
        content: a digest of the model file and the configuration that it was made from; empty for a worker.
        number: tells it apart from others that were loaded under the same name, and is the same in all processes.
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
    ) -> None:
        super().__init__(name, version, implementation.signature, scheduler, successor)
        self.platform = implementation.platform
        self.config = config
        self.stats = stats
        self.number = number
        self.content = content
        self._implementation = implementation
        self._last: Signature | None = None  # the last stage's, of which _shown was made
        self._shown = self.own

    def infer(self, request: InferRequest, complete: Complete) -> Cancel:
        """Runs a decoded request.

        Args:
            request: checked against the signature here.
            complete: called once, after this call, with all outputs in the signature's order or with an error.

        Returns:
            What to call when nobody waits any more; ``complete`` is then not called.

        Raises:
            ApiError: 400 where the request does not fit, 503 where the queue is full.
        """
        if self.successor is not None:
            return _Chain(self, request, complete).start()
        self.check(request)
        return self.enqueue(request, complete)

    def check(self, request: InferRequest) -> None:
        """Checks a request against what clients see. ApiError 400."""
        try:
            self.signature.check(request, self.name)
        except ApiError as error:
            self.scheduler.count_refusal(error)
            raise

    def enqueue(self, request: InferRequest, complete: Complete) -> Cancel:
        """Runs a checked request on this model alone; see :meth:`infer`."""
        own = self.own
        if own.batched and not 0 < request.rows <= own.max_batch_size:
            if request.rows > own.max_batch_size * _MAX_SLICES:
                most = own.max_batch_size * _MAX_SLICES
                error = ApiError(400, f"inference request batch-size must be <= {most} for '{self.name}'")
                self.scheduler.count_refusal(error)
                raise error
            if request.rows > 0:
                return _Slices(self.scheduler, request, own.max_batch_size, complete).start()
            self.stats.record_success(0, 0, 0)
            outputs = [_zero_rows(spec, own, request) for spec in own.outputs]
            return asyncio.get_running_loop().call_soon(complete, request, outputs).cancel
        request.complete = complete
        self.scheduler.submit(request)
        return partial(self.scheduler.cancel, request)

    @property
    def signature(self) -> Signature:
        """What a client sees."""
        if self.successor is not None:
            last = self.following().signature
            if last is not self._last:
                self._last, self._shown = last, _chained(self.own, last)
        return self._shown

    @property
    def shown_config(self) -> ModelConfig:
        """The effective configuration as a client sees it: with the last stage's outputs. ApiError as following."""
        if self.successor is None:
            return self.config
        return self.config.model_copy(update={"outputs": self.following().shown_config.outputs})

    def following(self) -> Model:
        """The model that gets the outputs, as it is loaded now. ApiError where it is not ready."""
        if self.successor is None:
            raise ApiError(500, "there is no next stage")
        following: Model = self.successor()
        return following

    def retire(self, retired: Callable[[], None]) -> None:
        """Takes no more requests; releases everything when those in flight have ended, then calls ``retired``."""

        def idle() -> None:
            self._implementation.close()
            retired()

        self.scheduler.retire(idle)


def _nothing() -> None:
    pass


def _zero_rows(spec: TensorSpec, signature: Signature, request: InferRequest) -> Tensor:
    """An output without rows; an open dimension is that of the input with the same symbol, else 0."""
    known = {
        symbol: dim
        for of, tensor in zip(signature.inputs, request.inputs, strict=True)
        for symbol, dim in zip(of.symbols, tensor.shape, strict=True)
        if symbol
    }
    shape = [0] + [
        dim if dim >= 0 else known.get(symbol, 0) for dim, symbol in zip(spec.shape[1:], spec.symbols[1:], strict=True)
    ]
    return Tensor.empty(spec.name, spec.datatype, shape)


class _Slices:
    """A request of more rows than a batch holds, run as several, a few at a time; the outputs are joined again."""

    def __init__(self, scheduler: Scheduler, request: InferRequest, size: int, complete: Complete) -> None:
        self._scheduler = scheduler
        self._request = request
        self._complete = complete
        self._size = size
        self._rest = request.inputs  # what is not cut yet
        self._rows = request.rows  # of the rest
        self._waiting: dict[InferRequest, int] = {}  # by place
        self._outputs: list[list[Tensor] | None] = []

    def start(self) -> Cancel:
        """Submits the first slices. ApiError 503 where the queue is full."""
        while self._rows and len(self._waiting) < _SLICES_AT_ONCE:
            self._submit_next()
        return self.cancel

    def _submit_next(self) -> None:
        rows = min(self._size, self._rows)
        # The rest is cut from the front each time: the elements of BYTES are walked over once in all.
        part = InferRequest(
            [tensor.slice_rows(0, rows) for tensor in self._rest],
            timeout_us=self._request.timeout_us,
            priority=self._request.priority,
        )
        part.rows = rows
        part.shape_key = self._request.shape_key
        part.complete = self._done
        self._scheduler.submit(part)
        self._rest = [tensor.slice_rows(rows, self._rows - rows) for tensor in self._rest]
        self._rows -= rows
        self._waiting[part] = len(self._outputs)
        self._outputs.append(None)

    def cancel(self) -> None:
        waiting, self._waiting = self._waiting, {}
        self._rows = 0
        for part in waiting:
            self._scheduler.cancel(part)

    def _done(self, part: InferRequest, outcome: Outcome) -> None:
        place = self._waiting.pop(part, None)
        if place is None:
            return  # cancelled
        try:
            if isinstance(outcome, ApiError):
                raise outcome
            self._outputs[place] = outcome
            if self._rows:
                self._submit_next()
            elif not self._waiting:
                self._complete(self._request, self._joined())
        except ApiError as error:
            self.cancel()
            self._complete(self._request, error)

    def _joined(self) -> list[Tensor]:
        columns = zip(*(outputs for outputs in self._outputs if outputs is not None), strict=True)
        try:
            return [concatenate(list(column)) for column in columns]
        except ValueError as error:
            raise ApiError(500, "the outputs of the request's slices do not fit together") from error


class _Chain:
    """A request to an endpoint with a successor: its outputs are the successor's inputs."""

    def __init__(self, first: Model, request: InferRequest, complete: Complete) -> None:
        self._first = first
        self._request = request
        self._complete = complete
        self._cancel: Cancel = _nothing
        self._began_ns = monotonic_ns()

    def start(self) -> Cancel:
        """Submits to the first stage. ApiError as :meth:`Model.infer`."""
        self._first.check(self._request)
        self._cancel = self._first.enqueue(self._request, self._first_done)
        return self.cancel

    def cancel(self) -> None:
        self._cancel()

    def _left_us(self) -> int:
        """What is left of the client's timeout; 0: it gave none. ApiError 504 where nothing is left."""
        if not self._request.timeout_us:
            return 0
        left_us = self._request.timeout_us - (monotonic_ns() - self._began_ns) // 1000
        if left_us <= 0:
            raise ApiError(504, "Request timeout expired")
        return left_us

    def _first_done(self, request: InferRequest, outcome: Outcome) -> None:
        if isinstance(outcome, ApiError):
            self._complete(request, outcome)
            return
        try:
            # Looked up now: it may have been reloaded meanwhile.
            following = self._first.following()
            inputs = following.signature.inputs
            if {tensor.name for tensor in outcome} != {spec.name for spec in inputs} and len(inputs) == len(outcome):
                outcome = [tensor.renamed(spec.name) for tensor, spec in zip(outcome, inputs, strict=True)]
            stage = InferRequest(outcome, timeout_us=self._left_us(), priority=request.priority)
            self._cancel = following.infer(stage, partial(self._last_done, following))
        except ApiError as error:
            if error.status not in (503, 504):
                error = ApiError(500, f"the next stage refused the outputs: {error.message}")
            self._complete(request, error)

    def _last_done(self, following: Model, stage: InferRequest, outcome: Outcome) -> None:
        if not isinstance(outcome, ApiError):
            last = following.signature
            if not last.outputs_batched and not last.anything:
                self._request.implicit_batch = False  # there is no batch dimension to take away
            elif stage.implicit_batch:
                outcome = [tensor.reshaped(tensor.shape[1:]) for tensor in outcome]
        self._complete(self._request, outcome)


def _chained(first: Signature, last: Signature) -> Signature:
    """What a client of a chain sees."""
    return Signature(
        first.inputs,
        last.outputs,
        batched=first.batched,
        max_batch_size=first.max_batch_size,
        max_batch_size_configured=first.max_batch_size_configured,
        positional=first.positional,
        anything=first.anything,
        outputs_batched=first.batched and (last.outputs_batched or last.anything),
        labels=last.labels,
    )


def why_not_chained(first: Signature, following: Signature) -> str | None:
    """Why an endpoint's outputs cannot be another one's inputs, as far as signatures tell; None where they may."""
    if following.anything or first.anything:
        return None
    outputs, inputs = list(first.outputs), list(following.inputs)
    if len(outputs) != len(inputs):
        return f"it gives {len(outputs)} outputs, and {len(inputs)} inputs are taken"
    by_name = {spec.name: spec for spec in inputs}
    if set(by_name) == {spec.name for spec in outputs}:
        inputs = [by_name[spec.name] for spec in outputs]
    for given, taken in zip(outputs, inputs, strict=True):
        if given.datatype != taken.datatype:
            return f"output '{given.name}' is {given.datatype}, and input '{taken.name}' takes {taken.datatype}"
        # Seen from the last dimension: one of both may have a batch dimension in front.
        ends = zip(reversed(given.shape), reversed(taken.shape), strict=False)
        if abs(len(given.shape) - len(taken.shape)) > 1 or any(a != b and -1 not in (a, b) for a, b in ends):
            return f"output '{given.name}' {list(given.shape)} does not fit input '{taken.name}' {list(taken.shape)}"
    return None
