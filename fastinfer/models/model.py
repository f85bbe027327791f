"""A version of a model that is loaded: signature, implementation, queue, statistics.

:meth:`Model.infer` is the one way in, whatever the request looks like: most go straight to the scheduler; one of zero
rows is answered without a run, one of more rows than a batch holds is run in slices, and one to an endpoint with a
successor (``next``) goes on to that one. Loop's thread only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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

Complete = Callable[[InferRequest, Outcome], None]
Cancel = Callable[[], None]


class Model(Target):
    """One version, ready to infer.

    Attributes:
        name: the endpoint's name, under which it answers.
        version: its version, as on the wire.
        platform: ``onnxruntime_onnx``, or the built-in worker's.
        signature: what a client sees: the own inputs, and the outputs of the last stage.
        config: the effective configuration.
        successor: the model that gets the outputs, or None.
        stats: what it has done.
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
    ) -> None:
        own = implementation.signature
        signature = own if successor is None else _chained(own, successor().signature)
        super().__init__(name, version, own, signature, scheduler, successor)
        self.platform = implementation.platform
        self.config = config
        self.stats = stats
        self._implementation = implementation

    def infer(self, request: InferRequest, complete: Complete) -> Cancel:
        """Runs a decoded request.

        Args:
            request: checked against the signature here.
            complete: called once, later in this turn of the loop at the earliest, with all outputs in the signature's
                order or with an error.

        Returns:
            What to call when nobody waits any more; ``complete`` is then not called.

        Raises:
            ApiError: 400 where the request does not fit, 503 where the queue is full.
        """
        own = self.own
        if self.successor is not None:
            return _Chain(self, self.successor(), request, complete).start()
        own.check(request, self.name)
        return self.enqueue(request, complete)

    def enqueue(self, request: InferRequest, complete: Complete) -> Cancel:
        """Runs a request that was checked against the own signature; see :meth:`infer`."""
        own = self.own
        if own.batched and not 0 < request.rows <= own.max_batch_size:
            if request.rows > 0:
                return _Slices(self.scheduler, request, own.max_batch_size, complete).start()
            complete(request, [_zero_rows(spec, own, request) for spec in own.outputs])
            return _nothing
        request.complete = complete
        self.scheduler.submit(request)
        return partial(self.scheduler.cancel, request)

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
    """A request of more rows than a batch holds, run as several; the outputs are joined again."""

    def __init__(self, scheduler: Scheduler, request: InferRequest, size: int, complete: Complete) -> None:
        self._scheduler = scheduler
        self._request = request
        self._complete = complete
        self._slices: list[InferRequest] = []
        for start in range(0, request.rows, size):
            rows = min(size, request.rows - start)
            part = InferRequest(
                [tensor.slice_rows(start, rows) for tensor in request.inputs],
                timeout_us=request.timeout_us,
                priority=request.priority,
            )
            part.rows = rows
            part.shape_key = request.shape_key
            part.complete = self._done
            self._slices.append(part)
        self._outputs: dict[InferRequest, list[Tensor]] = {}
        self._ended = False

    def start(self) -> Cancel:
        try:
            for part in self._slices:
                self._scheduler.submit(part)
        except ApiError:
            self.cancel()
            raise
        return self.cancel

    def cancel(self) -> None:
        self._ended = True
        for part in self._slices:
            if part.state:  # it was submitted
                self._scheduler.cancel(part)

    def _done(self, part: InferRequest, outcome: Outcome) -> None:
        if self._ended:
            return
        if isinstance(outcome, ApiError):
            self.cancel()
            self._complete(self._request, outcome)
            return
        self._outputs[part] = outcome
        if len(self._outputs) == len(self._slices):
            parts = [self._outputs[part] for part in self._slices]
            self._complete(self._request, [concatenate(list(column)) for column in zip(*parts, strict=True)])


class _Chain:
    """A request to an endpoint with a successor: its outputs are the successor's inputs."""

    def __init__(self, first: Model, following: Model, request: InferRequest, complete: Complete) -> None:
        self._first = first
        self._following = following
        self._request = request
        self._complete = complete
        self._cancel: Cancel = _nothing

    def start(self) -> Cancel:
        self._first.signature.check(self._request, self._first.name)
        self._cancel = self._first.enqueue(self._request, self._first_done)
        return self.cancel

    def cancel(self) -> None:
        self._cancel()

    def _first_done(self, request: InferRequest, outcome: Outcome) -> None:
        if isinstance(outcome, ApiError):
            self._complete(request, outcome)
            return
        inputs = self._following.signature.inputs
        if {tensor.name for tensor in outcome} != {spec.name for spec in inputs} and len(inputs) == len(outcome):
            outcome = [tensor.renamed(spec.name) for tensor, spec in zip(outcome, inputs, strict=True)]
        stage = InferRequest(outcome, timeout_us=request.timeout_us, priority=request.priority)
        try:
            self._cancel = self._following.infer(stage, self._last_done)
        except ApiError as error:
            status = error.status if error.status == 503 else 500
            self._complete(request, ApiError(status, f"the next stage refused the outputs: {error.message}"))

    def _last_done(self, stage: InferRequest, outcome: Outcome) -> None:
        if not isinstance(outcome, ApiError):
            last = self._following.signature
            if not last.batched and not last.anything:
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
    )
