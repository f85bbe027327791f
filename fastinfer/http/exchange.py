"""One HTTP request and its answer, as the routes see them.

The connection makes an exchange when a request's body is complete and hands it to the route's handler. The handler
answers once, now or later: :meth:`Exchange.respond` or :meth:`Exchange.fail`. Loop's thread only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from typing_extensions import Buffer

from fastinfer.errors import ApiError

log = logging.getLogger(__name__)

JSON = b"application/json"
Fields = Sequence[tuple[bytes, bytes]]
Body = Buffer | Sequence[Buffer]


class Connection(Protocol):
    """What an exchange needs of the connection that it came over."""

    def answer(self, exchange: Exchange, status: int, content_type: bytes, body: Body, fields: Fields) -> None:
        """Sends the answer when all earlier requests of the connection are answered."""


class Exchange:
    """A request, and the way to answer it.

    Attributes:
        method: ``GET``, ``HEAD`` or ``POST``.
        arguments: the parts of the path that the route captured: names, already decoded and checked.
        headers: field values by lower-case field name; a repeated field's values joined by ``", "``.
        body: the request's body. Where ``body_is_stable`` is false it lies in the connection's shared read buffer and
            is valid only until the handler returns; otherwise it may be kept, and read on other threads.
        abandoned: set by a handler that answers later; called if the client goes away first. Nothing need be
            answered then, and an answer is dropped.
    """

    __slots__ = ("_connection", "abandoned", "answered", "arguments", "body", "body_is_stable", "headers", "method")

    def __init__(
        self,
        connection: Connection,
        method: str,
        arguments: tuple[str, ...],
        headers: Mapping[bytes, bytes],
        body: Buffer,
        body_is_stable: bool,
    ) -> None:
        self._connection = connection
        self.method = method
        self.arguments = arguments
        self.headers = headers
        self.body = body
        self.body_is_stable = body_is_stable
        self.abandoned: Callable[[], None] | None = None
        self.answered = False

    def respond(self, status: int, body: Body = b"", content_type: bytes = JSON, fields: Fields = ()) -> None:
        """Answers. ``body`` is one buffer or a sequence of buffers; their owners are kept until they are written."""
        if self.answered:
            return
        self.answered = True
        self.abandoned = None
        self._connection.answer(self, status, content_type, body, fields)

    def fail(self, error: ApiError) -> None:
        """Answers with an error's status and sentence."""
        self.respond(error.status, error.body(), JSON, error.headers)

    def guard(self, step: Callable[..., object], *arguments: object) -> None:
        """Calls a step towards the answer; whatever it raises is the answer."""
        try:
            step(*arguments)
        except ApiError as error:
            self.fail(error)
        except Exception:
            log.exception("a request could not be answered")
            self.fail(ApiError(500, "internal error"))
