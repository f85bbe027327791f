"""``POST /v2/models/M[/versions/V]/infer``: from body to tensors to answer.

A small body is decoded on the loop's thread where it lies; a large one, and a large answer, on a native thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fastinfer._ext.decode import DecodeJob, decode
from fastinfer._ext.encode import Encoded, EncodeJob, encode
from fastinfer._ext.message import InferRequest
from fastinfer.errors import ApiError
from fastinfer.http.exchange import JSON, Exchange
from fastinfer.models.scheduler import Outcome
from fastinfer.routes.router import Route

if TYPE_CHECKING:
    from fastinfer.service import Service

HEADER_LENGTH = b"inference-header-content-length"
OCTETS = b"application/octet-stream"


def routes(service: Service) -> list[Route]:
    """The two forms of the endpoint."""

    def infer(exchange: Exchange) -> None:
        inference = _Inference(service, exchange)
        json_size = _json_size(exchange)
        body, stable = exchange.body, exchange.body_is_stable
        if stable and memoryview(body).nbytes > service.config.off_loop_bytes:
            service.executor.submit(DecodeJob(body, json_size, inference.name), inference.decoded)
        else:
            inference.start(decode(body, json_size, stable=stable, model=inference.name))

    max_body_bytes = service.config.max_body_bytes
    return [
        Route(("POST",), "/v2/models/{model}/infer", infer, max_body_bytes),
        Route(("POST",), "/v2/models/{model}/versions/{version}/infer", infer, max_body_bytes),
    ]


def _json_size(exchange: Exchange) -> int:
    """The bytes of JSON before the binary tensors; -1 where the whole body is JSON."""
    value = exchange.headers.get(HEADER_LENGTH)
    if value is None:
        return -1
    size = memoryview(exchange.body).nbytes
    if not value.isdigit() or len(value) > 18 or int(value) > size:
        raise ApiError(400, f"Inference-Header-Content-Length must be a decimal number from 0 to {size}")
    return int(value)


class _Inference:
    """One inference on its way; lives until it is answered or abandoned."""

    __slots__ = ("_cancel", "_exchange", "_gone", "_model", "_service", "_version", "name")

    def __init__(self, service: Service, exchange: Exchange) -> None:
        self.name = exchange.arguments[0]
        self._version = exchange.arguments[1] if len(exchange.arguments) > 1 else None
        self._service = service
        self._exchange = exchange
        self._model = service.repository.find(self.name, self._version)  # 404 before the body is looked at
        self._cancel: Callable[[], None] | None = None
        self._gone = False
        exchange.abandoned = self._abandoned

    def decoded(self, job: DecodeJob) -> None:
        if not self._gone:
            self._exchange.guard(self._restart, job)

    def _restart(self, job: DecodeJob) -> None:
        # The model may have been replaced meanwhile.
        self._model = self._service.repository.find(self.name, self._version)
        self.start(job.result())

    def start(self, request: InferRequest) -> None:
        self._cancel = self._model.infer(request, self._complete)

    def _abandoned(self) -> None:
        self._gone = True
        if self._cancel is not None:
            self._cancel()

    def _complete(self, request: InferRequest, outcome: Outcome) -> None:
        if not self._gone:
            self._exchange.guard(self._encode, request, outcome)

    def _encode(self, request: InferRequest, outcome: Outcome) -> None:
        if isinstance(outcome, ApiError):
            raise outcome
        response = self._model.respond(request, outcome)
        if sum([tensor.nbytes for tensor in response.outputs]) > self._service.config.off_loop_bytes:
            self._service.executor.submit(EncodeJob(response, self._service.nonfinite), self._encoded)
        else:
            self._answer(encode(response, self._service.nonfinite))

    def _encoded(self, job: EncodeJob) -> None:
        if not self._gone:
            self._exchange.guard(lambda: self._answer(job.result()))

    def _answer(self, encoded: Encoded) -> None:
        if encoded.binary:
            length = (b"Inference-Header-Content-Length", b"%d" % encoded.json_size)
            self._exchange.respond(200, encoded.parts(), OCTETS, (length,))
        else:
            self._exchange.respond(200, encoded, JSON)
