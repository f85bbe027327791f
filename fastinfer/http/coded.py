"""Inflates the bodies and compresses the answers of connections, on threads where that takes long. Loop's thread only;
the steps of :mod:`fastinfer.http.compression` run on those of :mod:`fastinfer.http.pieces`."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic_ns
from typing import Final, cast

from typing_extensions import Buffer

from fastinfer.base.errors import ApiError
from fastinfer.http.compression import deflating, inflating
from fastinfer.http.exchange import Exchange, Fields, RequestHead
from fastinfer.http.loop_state import LoopState
from fastinfer.http.pieces import Pieces, Task
from fastinfer.http.upload import new_body

_END: Final = object()


class _Waiter:
    """The owner of work for a request that is not an inference: ends the work if the client goes away."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def work_on(self, task: Task) -> None:
        self._exchange.on_client_gone = task.terminate

    def refuse(self, error: ApiError) -> None:
        self._exchange.fail(error)


def inflate(
    shared: LoopState, exchange: Exchange, head: RequestHead, data: Buffer, handle: Callable[[Exchange], None]
) -> None:
    """Inflates the body of a request, which has its place in the order of answers already, then calls ``handle``."""
    limit = head.max_body_bytes
    body = new_body(shared.bodies, shared.budget, limit)
    # await_body starts the deadline and the statistics of an inference.
    await_body = getattr(head.handler, "await_body", None)
    steps = inflating(cast(bytes, head.coding), memoryview(data), body, limit, shared.limits.max_inflation)

    def inflated() -> None:
        if not exchange.answered:
            if await_body is None:
                exchange.on_client_gone = None
            exchange.body = body
            exchange.handled_ns = monotonic_ns()
            handle(exchange)

    def begin() -> None:
        if next(steps, _END) is _END:  # a small body, in its first piece
            inflated()
            return
        waiter = _Waiter(exchange) if await_body is None else await_body(exchange)
        waiter.work_on(shared.pieces.submit(steps, lambda error: waiter.refuse(error) if error else inflated()))

    exchange.guard(begin)


def deflate_apart(
    pieces: Pieces, exchange: Exchange, coding: bytes, parts: list[memoryview], content_type: bytes, fields: Fields
) -> None:
    """Compresses a large answer, then answers with it."""
    packed: list[bytes] = []

    def deflated(error: ApiError | None) -> None:
        if error is not None:
            exchange.fail(error)
        else:
            exchange.respond(200, packed, content_type, fields)

    exchange.on_client_gone = pieces.submit(deflating(coding, parts, packed), deflated).terminate
