"""One HTTP/1.1 connection: bytes from the socket to exchanges, answers back in request order.

Here is what is rare: refusals, bodies that come in parts, compression, timeouts, the end. What every request passes,
from the read buffer to the handler and from the answer to the transport, is the base class, ``http/connection.pyx``.

The law of both:

- All connections of a loop read into one buffer, the hub's. Nothing of it outlives the callback that it came with: a
  started head is kept apart (``_pending``), a body that does not lie in it wholly gets a buffer of its own, one that
  does is lent to its handler.
- A message is answered once. ``_queue`` holds what is not answered yet, in order; an answer that comes too early waits
  in its exchange. Only the first of the queue is ever written.
- ``_deaf`` means that nothing more is read as a request: the last answer is on its way, then the connection lingers, so
  that the client can read it, and ends.
- No task, future or timer per request. The hub's sweep looks at each connection every few seconds (:meth:`check`).

Loop's thread only.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import socket
import termios
from collections.abc import Coroutine, Iterator
from time import monotonic_ns
from typing import Any, Final, cast

from fastinfer.base import limits as constants
from fastinfer.base.errors import ApiError
from fastinfer.http.chunked import ChunkedUpload
from fastinfer.http.compression import deflate, deflating, inflating
from fastinfer.http.connection import JOINED_BYTES, Connection, HttpExchange
from fastinfer.http.exchange import Fields, Head
from fastinfer.http.head import check_started, parse
from fastinfer.http.hub import Hub, Sweepable
from fastinfer.http.pieces import Task
from fastinfer.http.reply import reply_head
from fastinfer.http.upload import Upload, new_body

log = logging.getLogger(__name__)

_INLINE_DEFLATE_BYTES: Final = 64 * constants.KIB
_END: Final = object()
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_CLOSED: Final = 7  # states of a connection in the system's eyes (Linux's tcp_states.h): it was reset, and ...
_CLOSED_BY_CLIENT: Final = 8  # ... the client has closed its side


class _Waiter:
    """Of work for a request that is no inference: ends the work with the client."""

    def __init__(self, exchange: HttpExchange) -> None:
        self._exchange = exchange

    def work_on(self, task: Task) -> None:
        self._exchange.abandoned = task.terminate

    def refuse(self, error: ApiError) -> None:
        self._exchange.fail(error)


def _not_understood(method: str) -> Head:
    head = Head(method, False, {})
    head.keep_alive = False
    return head


_UNSOUND: Final = _not_understood("GET")
_UNSOUND_HEAD: Final = _not_understood("HEAD")


def _unsound(raw: bytes) -> Head:
    """Stands for a message that could not be understood; an answer to HEAD has no body, whatever it says."""
    return _UNSOUND_HEAD if raw.startswith(b"HEAD ") else _UNSOUND


def _described(head: Head) -> str:
    handler = getattr(head.handler, "__name__", type(head.handler).__name__)
    return " ".join([head.method, handler, *map(str, head.arguments)])


def _abandon(exchange: HttpExchange) -> None:
    """Ends the work for a request that is answered without it, or never."""
    abandoned, exchange.abandoned = exchange.abandoned, None
    if abandoned is not None:
        try:
            abandoned()
        except Exception:
            log.exception("a request could not be abandoned")


class HttpProtocol(Connection, asyncio.BufferedProtocol):
    """One connection; see the head of the file. The state of the common path is the base's."""

    __slots__ = ("_linger_end", "_lingering", "_pieces", "_refusal", "_slot", "_sound", "_stuck_since")

    _hub: Hub

    def __init__(self, hub: Hub, refusal: ApiError | None = None) -> None:
        """``refusal``: the only answer that this connection will give; the server has too many of them."""
        super().__init__(hub)
        self._slot: set[Sweepable] = set()
        self._refusal = refusal
        self._lingering: asyncio.TimerHandle | None = None
        self._linger_end = 0.0
        self._sound = 0  # bytes of the started head that are checked already
        self._pieces: list[memoryview] = []  # of the answer that leaves in pieces, the last one first
        self._stuck_since = 0.0  # when the write buffer was last seen to shrink, to _stuck_size

    # --- Called by the transport --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._slot = self._hub.connected(self)
        if self._refusal is not None:
            self._refuse(self._refusal)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._transport = None
        self._deaf = True
        self._pending = b""
        self._out.clear()
        self._out_size = 0
        self._pieces = []
        self._upload = None
        if self._lingering is not None:
            self._lingering.cancel()
        if self._wake is not None:
            self._wake.cancel()
        queue, self._queue = self._queue, []
        for exchange in queue:
            exchange.body = b""
            exchange.answered = True
            exchange.reply = None
            _abandon(exchange)
        self._hub.disconnected(self, self._slot)

    def eof_received(self) -> bool:
        self._eof = True
        if self._queue and not self._lingering:
            self._hub.half_closed[self] = (self._hub.now, False)
        elif not self._pending or not self._blocked():
            self._close()
        return True

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        self._wake_up()
        if self._pieces:
            self._hub.in_turn(self._write_piece)

    # --- Bytes to requests --------------------------------------------------------------------------------------------

    def _skip_empty_lines(self, start: int, end: int) -> int:
        """Where the request line starts; -1 if that is not known yet or the client sends too many empty lines."""
        buffer = self._hub.buffer
        first = start
        while buffer.startswith(b"\r\n", start, end):
            start += 2
        if (start - first) // 2 > constants.MAX_LEADING_EMPTY_LINES:
            self._refuse(ApiError(400, "malformed request line"))
            return -1
        if start == end or (start + 1 == end and buffer[start] == 13):
            self._keep(first, start, end)
            return -1
        return start

    def _keep(self, start: int, begins: int, end: int, sound: int = 0) -> None:
        """Keeps a started head, which ``begins`` after empty lines; its time runs from its first byte."""
        if start or not self._resumed:
            self._since = self._hub.now
        self._sound = sound
        self._keep_head(start, begins, end)

    def _keep_started_head(self, first: int, start: int, end: int) -> None:
        """A head that has not ended yet: refused as soon as it cannot become a sound one."""
        raw = bytes(self._hub.view[start:end])
        try:
            sound = check_started(raw, 0 if first or not self._resumed else self._sound, self._hub.limits)
        except ApiError as error:
            self._refuse(error, _unsound(raw))
        else:
            self._keep(first, start, end, sound)

    def _understand(self, raw: bytes) -> Head | None:
        """The meaning of a head that was not seen before; None if it has none and was refused."""
        hub = self._hub
        try:
            if len(raw) > hub.limits.max_head_bytes:
                check_started(raw, 0, hub.limits)  # the size is what is wrong, or something before
            head = parse(raw, hub.limits, hub.router)
        except ApiError as error:
            self._refuse(error, _unsound(raw))
            return None
        if head.error is None:
            hub.heads.remember(raw, head)
        return head

    def _begin_chunked(self, head: Head, start: int, end: int) -> int:
        """Starts a message with a chunked body, which begins at ``start``; returns where to go on."""
        hub = self._hub
        if hub.in_flight_bytes > hub.budget.limit:
            self._refuse_for_memory(head)
            return end
        body = new_body(hub.bodies, hub.budget, head.max_body_bytes)
        upload = ChunkedUpload(head, hub.now, self._began_ns, hub.limits, body)
        self._upload = upload
        if head.expects_continue and start == end:
            self._expect(upload)
        return start

    def _expect(self, upload: Upload) -> None:
        """The client may wait to be asked for the body."""
        upload.wants_continue = True
        if not self._queue:
            self._send_continue(upload)

    def _answer_early(self, head: Head, error: ApiError, start: int, end: int) -> int:
        """Answers before the body; it is thrown away if it is small and surely coming, else the connection ends."""
        size = head.body_size
        certain = 0 <= size <= constants.MAX_SKIPPED_BODY_BYTES and not head.expects_continue
        if not certain or not head.keep_alive:
            self._refuse(error, head)
            return end
        skipped = min(size, end - start)
        self._skip = size - skipped
        exchange = HttpExchange(self, head, b"", True)
        self._queue.append(exchange)
        exchange.fail(error)
        return start + skipped

    def _feed(self, upload: ChunkedUpload, start: int, end: int) -> int:
        hub = self._hub
        try:
            start = upload.feed(hub.buffer, start, end)
        except ApiError as error:
            self._refuse(error, upload.head)
            return end
        except MemoryError:
            self._refuse_for_memory(upload.head)
            return end
        if upload.complete:
            self._more = start < end
            self._finish(upload, upload.body())
        return start

    def _inflate(self, head: Head, data: memoryview) -> None:
        """Inflates a body, then handles its request; its place in the order of answers is taken at once."""
        hub, limit = self._hub, head.max_body_bytes
        exchange = HttpExchange(self, head, b"", True)
        self._enqueue(exchange)
        exchange.inflating = True
        body = new_body(hub.bodies, hub.budget, limit)
        # An inference has a deadline meanwhile, and is counted.
        await_body = getattr(head.handler, "await_body", None)
        steps = inflating(cast(bytes, head.coding), data, body, limit, hub.limits.max_inflation)

        def inflated() -> None:
            exchange.inflating = False
            if not exchange.answered:
                if await_body is None:
                    exchange.abandoned = None
                exchange.body = body
                exchange.handled_ns = monotonic_ns()
                self._handle(exchange)

        def begin() -> None:
            if next(steps, _END) is _END:  # a small body, in its first piece
                inflated()
                return
            waiter = _Waiter(exchange) if await_body is None else await_body(exchange)
            waiter.work_on(hub.pieces.submit(steps, lambda error: waiter.refuse(error) if error else inflated()))

        exchange.guard(begin)

    # --- Requests to handlers -----------------------------------------------------------------------------------------

    def _spawn(self, exchange: HttpExchange, coroutine: Coroutine[Any, Any, None]) -> None:
        """Runs the rest of a handler as a task: for requests that are rare and long, such as loading a model."""
        if not exchange.body_is_stable:
            exchange.body = bytes(exchange.body)
            exchange.body_is_stable = True
        self._hub.spawn(exchange, coroutine)

    def _refuse(self, error: ApiError, head: Head = _UNSOUND) -> None:
        """Answers a message whose end is uncertain: the connection's last answer."""
        log.debug("a connection ends with %d: %s", error.status, error.message)
        self._deaf = True
        self._pending = b""
        self._upload = None
        exchange = HttpExchange(self, head, b"", True)
        self._queue.append(exchange)
        exchange.fail(error)

    def _refuse_for_memory(self, head: Head) -> None:
        self._refuse(ApiError(503, "too many bytes of requests are in flight", retry_after_s=1), head)

    # --- Answers ------------------------------------------------------------------------------------------------------

    def _emit_any(self, exchange: HttpExchange, status: int, content_type: bytes, body: Any, fields: Fields) -> None:
        parts = [memoryview(part) for part in (body if isinstance(body, (list, tuple)) else (body,))]
        parts = [part.cast("B") for part in parts if part.nbytes]
        size = sum([len(part) for part in parts])
        head = exchange.head
        coding = head.accepted
        if coding is not None and size >= head.compress_from and status == 200 and not exchange.packed:
            exchange.packed = True
            fields = (*fields, (b"Content-Encoding", coding), (b"Vary", b"Accept-Encoding"))
            if size > _INLINE_DEFLATE_BYTES:
                self._deflate(exchange, coding, parts, content_type, fields)
                return
            parts = [memoryview(deflate(coding, *parts))]
            size = len(parts[0])
        last = len(self._queue) == 1 and (self._deaf or (self._hub.draining and self._is_idle()))
        start = reply_head(status, content_type, size, fields, last, head.version_10)
        if head.method == "HEAD":
            self._collect(start)
        elif exchange.in_pieces and size > JOINED_BYTES:
            self._deaf = self._deaf or last
            self._begin_pieces(exchange, start, parts)
            return
        elif size <= JOINED_BYTES:
            self._collect(b"".join((start, *parts)))
        else:  # not copied
            self._collect(start)
            for part in parts:
                self._collect(part)
        if last:
            self._deaf = True
        self._retire(exchange, status // 100)

    def _deflate(
        self, exchange: HttpExchange, coding: bytes, parts: list[memoryview], content_type: bytes, fields: Fields
    ) -> None:
        """Compresses a large answer on threads; it keeps its place in the queue, as one that has not come yet."""
        packed: list[bytes] = []
        exchange.reply = None
        exchange.answered = False

        def deflated(error: ApiError | None) -> None:
            if error is not None:
                exchange.fail(error)
            else:
                exchange.respond(200, packed, content_type, fields)

        exchange.abandoned = self._hub.pieces.submit(deflating(coding, parts, packed), deflated).terminate

    def _begin_pieces(self, exchange: HttpExchange, start: bytes, parts: list[memoryview]) -> None:
        """Writes a large answer a piece at a time; until the last one it keeps its place in the queue."""
        exchange.reply = None
        self._collect(start)
        pieces = [part[at : at + JOINED_BYTES] for part in parts for at in range(0, len(part), JOINED_BYTES)]
        self._pieces = pieces[::-1]
        self._hub.in_turn(self._write_piece)

    def _write_piece(self) -> None:
        if self._transport is None or self._write_paused or not self._pieces:
            return  # lost, or goes on when the client has read
        self._write_out()
        self._transport.write(self._pieces.pop())
        if self._pieces:
            if not self._write_paused:
                self._hub.in_turn(self._write_piece)
            return
        self._retire(self._queue[0], 2)
        following = self._queue[0] if self._queue else None
        if following is None:
            self._flush()
        elif following.reply is not None:
            status, content_type, body, fields = following.reply
            following.answered = False
            following.respond(status, body, content_type, fields)
        self._wake_up()

    def _is_idle(self) -> bool:
        """Whether nothing of a further request has arrived, here or in the system's buffer."""
        if self._more or self._pending or self._skip or self._upload is not None or self._transport is None:
            return False
        unread = bytearray(4)
        fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), termios.FIONREAD, unread)
        return not any(unread)

    def _send_continue(self, upload: Upload) -> None:
        """Asks for the body, when that is the next thing that the client waits for."""
        upload.wants_continue = False
        upload.started = upload.window_started = self._hub.now
        if not upload.received:
            self._collect(_CONTINUE)

    # --- For people ---------------------------------------------------------------------------------------------------

    def state(self) -> str:
        """What the connection does, in a few words."""
        if self._queue:
            return "waits for answers" if not self._pieces else "writes in pieces"
        if self._deaf:
            return "ends"
        if self._upload is not None or self._skip:
            return "receives a body"
        if self._transport is not None and self._transport.get_write_buffer_size():
            return "writes"
        return "receives a head" if self._pending else "idle"

    def requests(self) -> Iterator[tuple[int, str, str]]:
        """What is not answered yet: when its first byte came, its stage, and what it is."""
        for exchange in self._queue:
            yield exchange.arrived_ns, self._stage(exchange), _described(exchange.head)
        if self._upload is not None:
            upload = self._upload
            yield upload.arrived_ns, f"receiving, {upload.received} bytes so far", _described(upload.head)

    def _stage(self, exchange: HttpExchange) -> str:
        if exchange.answered:
            return "writing" if exchange.reply is None else "answered, after others of its connection"
        if exchange.packed:
            return "compressing"
        if exchange.inflating:
            return "inflating"
        return getattr(exchange.abandoned, "stage", "in its handler")

    # --- The end ------------------------------------------------------------------------------------------------------

    def _linger(self) -> None:
        """Closes our side and waits for the client to close its own, so that it gets the whole answer: a little, and
        longer while it still sends, since the system resets a connection that is closed with bytes unread."""
        transport = self._transport
        if self._lingering is not None or transport is None or transport.is_closing():
            return
        if self._eof:
            self._close()
            return
        transport.write_eof()
        transport.resume_reading()
        hub = self._hub
        self._linger_end = hub.loop.time() + constants.MAX_LINGERS * hub.limits.linger_s
        self._lingering = hub.loop.call_later(hub.limits.linger_s, self._lingered)

    def _lingered(self) -> None:
        transport, hub = self._transport, self._hub
        now, linger_s = hub.loop.time(), hub.limits.linger_s
        sends = now - self._since < linger_s and now < self._linger_end
        if transport is not None and (sends or transport.get_write_buffer_size()):
            self._lingering = hub.loop.call_later(linger_s, self._lingered)
        else:
            self._close()

    def _close(self) -> None:
        self._deaf = True
        if self._transport is not None:
            self._transport.close()

    def check(self, now: float) -> None:
        """Called by the hub every now and then: ends what takes too long."""
        transport = self._transport
        if transport is None:
            return
        limits = self._hub.limits
        size = transport.get_write_buffer_size() + sum(map(len, self._pieces))
        if size:
            if size > JOINED_BYTES and 4 * size > 3 * self._stuck_size > 0 and self._hub.is_short_of_memory():
                log.debug("a connection is closed: memory is short, and its client reads too slowly")
                transport.abort()
            elif size < self._stuck_size or not self._stuck_size:
                self._stuck_size = size
                self._stuck_since = now
            elif now - self._stuck_since > limits.write_timeout_s:
                log.debug("a connection is closed: its client has read nothing for %g s", limits.write_timeout_s)
                transport.abort()
            return
        self._stuck_size = 0
        if self._queue and not transport.is_reading():
            self._look_whether_closed()
        if self._deaf:
            return
        upload = self._upload
        asked = upload is not None and not (upload.wants_continue and self._queue and not upload.received)
        if upload is not None and asked:
            if now - upload.started > limits.upload_timeout_s:
                self._time_out("the body took too long", upload.head)
            elif now - upload.window_started > (window_s := self._window_s(upload)):
                least = limits.body_min_bytes_per_s
                if window_s < limits.body_idle_timeout_s:
                    least = max(least, constants.PRESSED_BYTES_PER_S)
                wanted = least * (now - upload.window_started)
                if upload.received - upload.window_received < wanted:
                    self._time_out("the body came too slowly", upload.head)
                upload.window_started = now
                upload.window_received = upload.received
        elif self._queue:
            return
        elif self._skip:
            if now - self._since > limits.body_idle_timeout_s:
                self._close()
        elif started := self._pending.strip(b"\r\n"):
            if now - self._since > limits.head_timeout_s:
                self._time_out("the request head took too long", _unsound(started))
        elif self._idle_for_too_long(now):
            self._deaf = True
            self._linger()

    def _window_s(self, upload: Upload) -> float:
        """How long a body may make no progress: not for long while memory is short, if it has some of it."""
        idle_s: float = self._hub.limits.body_idle_timeout_s
        if upload.received > JOINED_BYTES and self._hub.is_short_of_memory():
            return min(idle_s, constants.PRESSED_IDLE_S)
        return idle_s

    def _look_whether_closed(self) -> None:
        """Whether the client went away while nothing is read from it, so that the transport does not notice."""
        state = cast(asyncio.Transport, self._transport).get_extra_info("socket").getsockopt(
            socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]  # fmt: skip
        if state == _CLOSED:
            self.abort()
        elif state == _CLOSED_BY_CLIENT:  # there may be requests before that end: it is asked only
            self._hub.half_closed.setdefault(self, (self._hub.now, False))

    def _idle_for_too_long(self, now: float) -> bool:
        hub = self._hub
        if hub.ending:  # who was idle before gets its moment, too: it may be asking just now
            return now - max(self._since, hub.draining_since) > constants.DRAIN_IDLE_S
        return now - self._since > hub.limits.keep_alive_timeout_s

    def _time_out(self, message: str, head: Head) -> None:
        self._refuse(ApiError(408, message), head)

    def probe(self) -> None:
        """Asks a client that closed its side whether it still waits for its answers: if not, its system resets."""
        if self._transport is not None and self._queue and not self._queue[0].head.version_10 and not self._pieces:
            self._transport.write(_CONTINUE)

    def socket_error(self) -> int:
        """What the system says about the client since then."""
        if self._transport is None:
            return 0
        error: int = self._transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return error

    def give_up(self) -> None:
        """The server's end is near: whatever is not answered is 503, and the connection's end follows."""
        if self._transport is None or (self._deaf and not self._queue):
            return  # it ends already
        error = ApiError(503, "the server is ending", retry_after_s=1)
        upload, started = self._upload, self._pending.strip(b"\r\n") if not self._blocked() else b""
        open_ended = not self._deaf and (upload is not None or started)
        self._deaf = not open_ended
        for exchange in self._queue[:]:
            _abandon(exchange)
            exchange.fail(error)
        if open_ended:
            self._refuse(error, _unsound(started) if upload is None else upload.head)
        elif not self._queue:
            self._flush()

    def abort(self) -> None:
        """Ends at once."""
        if self._transport is not None:
            self._transport.abort()
