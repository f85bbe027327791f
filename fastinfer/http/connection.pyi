"""The half of an HTTP/1.1 connection that every request passes; :mod:`fastinfer.http.protocol` has the other half and
the law of both. Loop's thread only."""

import asyncio
from abc import abstractmethod
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from typing_extensions import Buffer

from fastinfer.base.budget import Budget
from fastinfer.base.errors import ApiError
from fastinfer.base.limits import HttpLimits
from fastinfer.http.exchange import Exchange, Head
from fastinfer.http.head_cache import HeadCache
from fastinfer.http.poller import Poller
from fastinfer.http.upload import BodyPool, Upload

JOINED_BYTES: Final[int]
"""Answers are copied together up to this; larger ones are not copied."""
INTERNAL_ERROR: Final[ApiError]

COUNTER_BYTES: int
"""The size of the block of counters of a hub: 64-bit integers, written on the loop's thread, read anywhere."""

class Shared:
    """What all connections of a loop share, as far as every request needs it."""

    limits: HttpLimits
    loop: asyncio.AbstractEventLoop
    buffer: bytearray
    """Where every connection reads; valid until the callback returns."""
    view: memoryview
    """Of the whole buffer."""
    poller: Poller
    """How the loop waits for requests."""
    bodies: BodyPool
    """The memory of bodies that do not lie in the read buffer."""
    heads: HeadCache
    """Request heads seen lately, understood."""
    draining: bool
    """Answers end their connections."""
    now: float
    """The loop's clock, read a few times a second: good enough for limits of seconds."""
    budget: Budget
    """Of the memory that requests hold."""
    in_flight_bytes: int
    """What is used of it."""
    answers: list[int]
    """Answers so far by the status's first digit; a copy."""
    connections_total: int
    """Connections so far."""
    def __init__(
        self,
        limits: HttpLimits,
        loop: asyncio.AbstractEventLoop,
        poller: Poller | None = None,
        counters: Buffer | None = None,
        budget: Budget | None = None,
    ) -> None:
        """``budget`` is by default one of ``limits.in_flight_bytes``. ``counters`` are :data:`COUNTER_BYTES` writable
        bytes, as an earlier process may have left them; memory of its own by default. ValueError where they are too few
        or not aligned."""
    def restless(self, connections: set[Any]) -> list[Any]:
        """Those that wait for something else than their client's next request, or for that too long; of very many
        connections these are few."""
    def renew_buffer(self) -> None:
        """A new read buffer: somebody still looks into the old one."""

class HttpExchange(Exchange):
    """An exchange of this protocol."""

    head: Head
    """The request's."""
    inflating: bool
    """Its body is not there yet."""
    reply: tuple[int, bytes, Buffer | Sequence[Buffer], Sequence[tuple[bytes, bytes]]] | None
    """Its answer, if that came before its turn: status, content type, body, fields."""
    def __init__(self, connection: Connection, head: Head, body: Buffer, stable: bool) -> None: ...

class Connection:
    """The common path of one connection. A subclass supplies what is rare."""

    _hub: Shared
    _transport: asyncio.Transport | None
    """None: lost, or not made yet."""
    _deaf: bool
    """Nothing more is read as a request."""
    _eof: bool
    """The client has closed its side."""
    _write_paused: bool
    _stuck_size: int
    _wake: asyncio.Handle | None
    """A call of :meth:`_resume` that is due."""
    _since: float
    """When the current wait for the client began."""
    _reading: bool
    """Inside a callback that reads: answers are collected."""
    _more: bool
    """While draining: there are bytes behind the message that is being handled."""
    _resumed: bool
    """What is read begins with a head that was started earlier."""
    _pending: bytes
    """A started head; when reading is paused, all that was read."""
    _upload: Upload | None
    """A body that is not in the buffer wholly."""
    _skip: int
    """Bytes of a refused body, still to be thrown away."""
    _queue: list[HttpExchange]
    """What is not answered yet, in order."""
    _out: list[bytes | memoryview]
    """Outgoing bytes, and ..."""
    _out_size: int
    """... how many."""
    def __init__(self, hub: Shared) -> None: ...

    # Called by the transport.
    def get_buffer(self, sizehint: int) -> Buffer: ...
    def buffer_updated(self, size: int) -> None: ...

    # For the subclass.
    _began_ns: int
    """When the first byte of the message that is being read came, on CLOCK_MONOTONIC."""
    def _keep_head(self, start: int, begins: int, end: int) -> None:
        """Keeps a started head, which ``begins`` after empty lines, and the arrival time of its first byte."""
    def _blocked(self) -> bool:
        """Whether no further request may start: too many in flight, or the client does not read its answers."""
    def _enqueue(self, exchange: HttpExchange) -> None:
        """Gives an exchange its place in the order of answers."""
    def _handle(self, exchange: HttpExchange) -> None:
        """Calls the route's handler; what it raises is the answer."""
    def _finish(self, upload: Upload, body: Buffer) -> None:
        """Handles a message whose body came in parts."""
    def _collect(self, part: bytes | memoryview) -> None:
        """Adds to the outgoing bytes; a view has items of one byte."""
    def _retire(self, exchange: HttpExchange, status_class: int) -> None:
        """The exchange's answer is in the outgoing bytes; it is the queue's first and leaves it."""
    def _flush(self) -> None:
        """Hands the collected answers to the transport; after the last one, ends the connection gently."""
    def _write_out(self) -> None:
        """Hands the collected answers to the transport."""
    def _wake_up(self) -> None:
        """Lets :meth:`_resume` be called in the loop's next turn."""
    def _resume(self) -> None:
        """Writes what was collected in the last turn, and goes on reading if that was paused."""

    # The subclass's. Offsets count in the hub's buffer.
    @abstractmethod
    def _skip_empty_lines(self, start: int, end: int) -> int:
        """Where the request line starts; -1 if nothing more can be read now."""
    @abstractmethod
    def _keep_started_head(self, first: int, start: int, end: int) -> None:
        """A head that has not ended yet."""
    @abstractmethod
    def _understand(self, raw: bytes) -> Head | None:
        """The meaning of a head that was not seen before; None if it has none and was refused."""
    @abstractmethod
    def _answer_early(self, head: Head, error: ApiError, start: int, end: int) -> int:
        """Answers before the body, which begins at ``start``; returns where to go on."""
    @abstractmethod
    def _begin_chunked(self, head: Head, start: int, end: int) -> int:
        """Starts a message with a chunked body; returns where to go on."""
    @abstractmethod
    def _expect(self, upload: Upload) -> None:
        """The client may wait to be asked for the body."""
    @abstractmethod
    def _refuse_for_memory(self, head: Head) -> None:
        """Too many bytes of requests are in flight: the connection's last answer."""
    @abstractmethod
    def _feed(self, upload: Any, start: int, end: int) -> int:
        """Takes what belongs to a chunked body; returns where to go on."""
    @abstractmethod
    def _inflate(self, head: Head, data: memoryview) -> None:
        """A request whose body is compressed."""
    @abstractmethod
    def _spawn(self, exchange: HttpExchange, coroutine: Coroutine[Any, Any, None]) -> None:
        """Runs the rest of a handler as a task."""
    @abstractmethod
    def _emit_any(
        self,
        exchange: HttpExchange,
        status: int,
        content_type: bytes,
        body: Any,
        fields: Sequence[tuple[bytes, bytes]],
    ) -> None:
        """Puts an answer that is not the common one into the outgoing bytes."""
    @abstractmethod
    def _send_continue(self, upload: Upload) -> None:
        """Asks for the body."""
    @abstractmethod
    def _linger(self) -> None:
        """The last answer is written: ends the connection gently."""
    @abstractmethod
    def _close(self) -> None:
        """Ends the connection."""
