"""One HTTP request and its answer. Loop's thread only."""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, Protocol

from typing_extensions import Buffer

from fastinfer.base.errors import ApiError

JSON: Final[bytes]
"""``application/json``"""
Fields = Sequence[tuple[bytes, bytes]]
"""More fields of an answer's head: names and values."""

class Connection(Protocol):
    """The part of a connection that an exchange uses."""

    def answer(
        self,
        exchange: Exchange,
        status: int,
        content_type: bytes,
        body: Buffer | Sequence[Buffer],
        fields: Sequence[tuple[bytes, bytes]],
    ) -> None:
        """Sends the answer when all earlier requests of the connection are answered."""

class RequestHead:
    """A parsed request head. Immutable after parsing: equal heads share one."""

    method: str
    """One of the known methods."""
    version_10: bool
    """The client speaks HTTP/1.0."""
    headers: dict[bytes, bytes]
    """Field values by lower-case name."""
    body_size: int
    """Bytes of the body; CHUNKED if its size is not announced."""
    keep_alive: bool
    """Whether the client wants the connection to stay open."""
    expects_continue: bool
    """It may wait for ``100 Continue`` before it sends the body."""
    coding: bytes | None
    """``gzip`` or ``deflate`` if the body is compressed."""
    accepted: bytes | None
    """``gzip`` or ``deflate`` if the answer may be compressed."""
    compress_from: int
    """The smallest answer that is compressed, in bytes."""
    plain: bool
    """An HTTP/1.1 request with nothing unusual in its answer's head: the common case."""
    error: ApiError | None
    """The framing is sound, but this is the answer: 404, 405, 413, 415 or 417."""
    handler: Callable[[Exchange], Coroutine[Any, Any, None] | None]
    """The route's; unset if there is an error. If it has a method ``await_body(exchange)``, that is called before a
    body is inflated; the object that it returns gets the job (``work_on``) and its failure (``refuse``)."""
    arguments: tuple[str, ...]
    """The parts of the path that the route captured."""
    max_body_bytes: int
    """The route's limit, also for chunked and for inflated bodies."""
    def __init__(self, method: str, version_10: bool, headers: dict[bytes, bytes]) -> None: ...

class BorrowedBody(Buffer):
    """A body in the connections' shared read buffer. A view that is kept stays valid: the connections then get
    another buffer."""

    def __len__(self) -> int: ...

class Exchange:
    """A request, and the way to answer it.

    The connection makes an exchange when a request's body is complete and hands it to the route's handler. The handler
    answers once, now or later: :meth:`respond` or :meth:`fail`.
    """

    method: str
    """``GET``, ``HEAD`` or ``POST``."""
    arguments: tuple[str, ...]
    """The parts of the path that the route captured: names, already decoded and checked."""
    headers: Mapping[bytes, bytes]
    """Field values by lower-case field name; a repeated field's values joined by ``", "``."""
    body: Buffer
    """The request's body. If ``body_is_stable`` is false, it is in the connections' shared read buffer, and valid
    only until the handler returns; otherwise it may be kept, and read on other threads."""
    body_is_stable: bool
    arrived_ns: int
    """When its first byte came, in nanoseconds of CLOCK_MONOTONIC; without a connection, when it was made."""
    handled_ns: int
    """The start of the callback that called its handler, on the same clock."""
    on_client_gone: Callable[[], None] | None
    """Set by a handler that answers later; called if the client goes away first. Then no answer is needed, and an
    answer is dropped. The log reports its ``stage``, if it has one, for a request under way."""
    answered: bool
    packed: bool
    """The answer's body is compressed already, with a field that says so."""
    in_pieces: bool
    """A large body is sent in pieces, with a turn of the loop between: for reports, which may take long, so that they
    delay no request. Other answers are sent as fast as the client takes them."""
    @property
    def accepted(self) -> bytes | None:
        """The coding that a large answer shall have: ``gzip``, ``deflate`` or none."""
    def __init__(
        self,
        connection: Connection,
        method: str,
        arguments: tuple[str, ...],
        headers: Mapping[bytes, bytes],
        body: Buffer,
        body_is_stable: bool,
    ) -> None: ...
    def respond(
        self,
        status: int,
        body: Buffer | Sequence[Buffer] = b"",
        content_type: bytes = ...,
        fields: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        """Answers. ``body`` is one buffer or a sequence of buffers; their owners are kept until they are written."""
    def fail(self, error: ApiError) -> None:
        """Answers with an error's status and sentence."""
    def guard(self, step: Callable[..., object], *arguments: object) -> None:
        """Calls a step towards the answer; an exception of it is the answer."""
