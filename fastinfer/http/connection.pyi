"""The half of an HTTP/1.1 connection that every request passes; :mod:`fastinfer.http.protocol` has the other half and
the invariants of both. Loop's thread only."""

import asyncio
from abc import abstractmethod
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from typing_extensions import Buffer

from fastinfer.base.budget import Budget
from fastinfer.base.errors import ApiError
from fastinfer.base.limits import HttpLimits
from fastinfer.http.exchange import Exchange, RequestHead
from fastinfer.http.head_cache import HeadCache
from fastinfer.http.poller import Poller
from fastinfer.http.upload import BodyPool, Upload

JOINED_BYTES: Final[int]
"""Answers are copied together up to this; larger ones are not copied."""
INTERNAL_ERROR: Final[ApiError]

COUNTER_BYTES: int
"""The size of the block of counters of a hub: 64-bit integers, written on the loop's thread, read anywhere."""

class Shared:
    """The state that all connections of a loop share and every request needs."""

    limits: HttpLimits
    loop: asyncio.AbstractEventLoop
    buffer: bytearray
    """Every connection reads into it; valid until the callback returns."""
    view: memoryview
    """Of the whole buffer."""
    poller: Poller
    """Busy polling for requests."""
    bodies: BodyPool
    """The memory of bodies that are not in the read buffer."""
    heads: HeadCache
    """The parsed heads of recent requests."""
    draining: bool
    """Answers end their connections."""
    now: float
    """The loop's clock, read a few times a second: good enough for limits of seconds."""
    budget: Budget
    """Of the memory that requests hold."""
    in_flight_bytes: int
    """The bytes of it that are used."""
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
        bytes, maybe with counts of an earlier process; memory of its own by default. ValueError if they are too few
        or not aligned."""
    def connections_to_check(self, connections: set[Any]) -> list[Any]:
        """The connections that wait for anything but their client's next request, or wait too long for it. They are
        few, even of very many."""
    def renew_buffer(self) -> None:
        """Replaces the read buffer, because a view of the old one is still in use."""

class HttpExchange(Exchange):
    """An exchange of this protocol."""

    head: RequestHead
    """The request's."""
    inflating: bool
    """Its body is still being inflated."""
    reply: tuple[int, bytes, Buffer | Sequence[Buffer], Sequence[tuple[bytes, bytes]]] | None
    """Its answer, if it came before its turn: status, content type, body, fields."""
    def __init__(self, connection: Connection, head: RequestHead, body: Buffer, stable: bool) -> None: ...

class Connection:
    """The hot path of one connection. A subclass handles the rare cases."""

    _hub: Shared
    _transport: asyncio.Transport | None
    """None: lost, or not made yet."""
    _closing: bool
    """No further request is read."""
    _eof: bool
    """The client has closed its side."""
    _write_paused: bool
    _stuck_size: int
    _wake: asyncio.Handle | None
    """A scheduled call of :meth:`_resume`."""
    _since: float
    """When the current wait for the client began."""
    _reading: bool
    """Inside a callback that reads: answers are collected."""
    _more: bool
    """While draining: there are bytes after the message that is being handled."""
    _resumed: bool
    """The bytes that are read begin with a head that was started earlier."""
    _pending: bytes
    """A started head; while reading is paused, all bytes that were read."""
    _upload: Upload | None
    """A body that is not wholly in the buffer."""
    _skip: int
    """Bytes of a refused body, still to be discarded."""
    _queue: list[HttpExchange]
    """Requests that are not answered yet, in order."""
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
        """Calls the route's handler; an exception of it is the answer."""
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
        """Schedules :meth:`_resume` for the loop's next turn."""
    def _resume(self) -> None:
        """Writes the answers collected in the last turn, and resumes reading if it was paused."""

    # The subclass's. Offsets count in the hub's buffer.
    @abstractmethod
    def _skip_empty_lines(self, start: int, end: int) -> int:
        """Where the request line starts; -1 if nothing more can be read now."""
    @abstractmethod
    def _keep_partial_head(self, first: int, start: int, end: int) -> None:
        """Keeps a head that has not ended yet."""
    @abstractmethod
    def _parse_head(self, raw: bytes) -> RequestHead | None:
        """Parses a head that is not cached; None if it was refused."""
    @abstractmethod
    def _answer_early(self, head: RequestHead, error: ApiError, start: int, end: int) -> int:
        """Answers before the body, which begins at ``start``; returns where to go on."""
    @abstractmethod
    def _begin_chunked(self, head: RequestHead, start: int, end: int) -> int:
        """Starts a message with a chunked body; returns where to go on."""
    @abstractmethod
    def _expect(self, upload: Upload) -> None:
        """Asks for the body if the client waits for ``100 Continue``."""
    @abstractmethod
    def _refuse_for_memory(self, head: RequestHead) -> None:
        """Refuses a request because too many bytes are in flight: the connection's last answer."""
    @abstractmethod
    def _feed(self, upload: Any, start: int, end: int) -> int:
        """Takes the bytes of a chunked body; returns where to go on."""
    @abstractmethod
    def _inflate(self, head: RequestHead, data: memoryview) -> None:
        """Handles a request whose body is compressed."""
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
