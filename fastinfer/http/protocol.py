"""One HTTP/1.1 connection: bytes from the socket to exchanges, answers back in request order.

The rare cases live here: refusals, bodies that come in parts, compression, timeouts, the end. The hot path of every
request, from the read buffer to the handler and from the answer to the transport, is the base class,
``http/connection.pyx``.

The invariants of both:

- All connections of a loop read into one buffer, the hub's. Nothing of it outlives the callback that it came with: an
  incomplete head is copied (``_pending``), a body that is not completely in it gets its own buffer, and one that is
  complete is lent to its handler.
- A message is answered once. ``_queue`` holds the unanswered exchanges, in order; an answer that comes too early waits
  in its exchange. Only the first of the queue is ever written.
- ``_closing``: no further request is read. The last answer is sent, then the connection lingers so that the client can
  read it, and closes.
- There is no task, future or timer per request. The hub's sweep calls :meth:`check` of each connection every few
  seconds.

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
from fastinfer.http.exchange import Fields, RequestHead
from fastinfer.http.head import check_partial, parse
from fastinfer.http.hub import Hub, Sweepable
from fastinfer.http.pieces import Task
from fastinfer.http.reply import reply_head
from fastinfer.http.upload import Upload, new_body

log = logging.getLogger(__name__)

_INLINE_DEFLATE_BYTES: Final = 64 * constants.KIB
_END: Final = object()
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_CLOSED: Final = 7  # TCP states (Linux's tcp_states.h): TCP_CLOSE, the connection was reset, and ...
_CLOSED_BY_CLIENT: Final = 8  # ... TCP_CLOSE_WAIT, the client has closed its side


class _Waiter:
    """The owner of work for a request that is not an inference: ends the work if the client goes away."""

    def __init__(self, exchange: HttpExchange) -> None:
        self._exchange = exchange

    def work_on(self, task: Task) -> None:
        self._exchange.on_client_gone = task.terminate

    def refuse(self, error: ApiError) -> None:
        self._exchange.fail(error)


def _malformed(method: str) -> RequestHead:
    head = RequestHead(method, False, {})
    head.keep_alive = False
    return head


_MALFORMED: Final = _malformed("GET")
_MALFORMED_HEAD: Final = _malformed("HEAD")


def _malformed_head(raw: bytes) -> RequestHead:
    """Stand-in for the head of a malformed message; an answer to HEAD never has a body."""
    return _MALFORMED_HEAD if raw.startswith(b"HEAD ") else _MALFORMED


def _described(head: RequestHead) -> str:
    handler = getattr(head.handler, "__name__", type(head.handler).__name__)
    return " ".join([head.method, handler, *map(str, head.arguments)])


def _abandon(exchange: HttpExchange) -> None:
    """Ends the work for a request that no longer needs it."""
    abandoned, exchange.on_client_gone = exchange.on_client_gone, None
    if abandoned is not None:
        try:
            abandoned()
        except Exception:
            log.exception("the work for a request could not be ended")


class HttpProtocol(Connection, asyncio.BufferedProtocol):
    """One connection; see the head of the file. The state of the hot path is in the base class."""

    __slots__ = ("_checked", "_linger_end", "_lingering", "_pieces", "_refusal", "_stuck_since", "_sweep_bucket")

    _hub: Hub

    def __init__(self, hub: Hub, refusal: ApiError | None = None) -> None:
        """``refusal``: the only answer of this connection, if the server has too many connections."""
        super().__init__(hub)
        self._sweep_bucket: set[Sweepable] = set()
        self._refusal = refusal
        self._lingering: asyncio.TimerHandle | None = None
        self._linger_end = 0.0
        self._checked = 0  # bytes of the incomplete head that are checked already
        self._pieces: list[memoryview] = []  # rest of an answer that is sent in pieces, in reverse order
        self._stuck_since = 0.0  # when the write buffer last shrank, to _stuck_size

    # --- Called by the transport --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._sweep_bucket = self._hub.connected(self)
        if self._refusal is not None:
            self._refuse(self._refusal)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._transport = None
        self._closing = True
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
        self._hub.disconnected(self, self._sweep_bucket)

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
        """Return where the request line starts; -1 if it has not arrived or the client sends too many empty lines."""
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

    def _keep(self, start: int, begins: int, end: int, checked: int = 0) -> None:
        """Keeps an incomplete head, which starts at ``begins`` after empty lines, and starts its timeout."""
        if start or not self._resumed:
            self._since = self._hub.now
        self._checked = checked
        self._keep_head(start, begins, end)

    def _keep_partial_head(self, first: int, start: int, end: int) -> None:
        """Keeps an incomplete head, or refuses it as soon as it cannot become valid."""
        raw = bytes(self._hub.view[start:end])
        try:
            checked = check_partial(raw, 0 if first or not self._resumed else self._checked, self._hub.limits)
        except ApiError as error:
            self._refuse(error, _malformed_head(raw))
        else:
            self._keep(first, start, end, checked)

    def _parse_head(self, raw: bytes) -> RequestHead | None:
        """Parses a head that is not in the cache; None: it is malformed and was refused."""
        hub = self._hub
        try:
            if len(raw) > hub.limits.max_head_bytes:
                check_partial(raw, 0, hub.limits)  # raises: the size is wrong, or an earlier byte
            head = parse(raw, hub.limits, hub.router)
        except ApiError as error:
            self._refuse(error, _malformed_head(raw))
            return None
        if head.error is None:
            hub.heads.remember(raw, head)
        return head

    def _begin_chunked(self, head: RequestHead, start: int, end: int) -> int:
        """Starts a message with a chunked body, which begins at ``start``; returns where to continue."""
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
        """Sends ``100 Continue``, now or once the earlier requests are answered."""
        upload.wants_continue = True
        if not self._queue:
            self._send_continue(upload)

    def _answer_early(self, head: RequestHead, error: ApiError, start: int, end: int) -> int:
        """Answers before the body arrives. A small body that is sure to come is discarded; else the connection ends."""
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

    def _inflate(self, head: RequestHead, data: memoryview) -> None:
        """Inflates a body, then handles its request, which takes its place in the order of answers now."""
        hub, limit = self._hub, head.max_body_bytes
        exchange = HttpExchange(self, head, b"", True)
        self._enqueue(exchange)
        exchange.inflating = True
        body = new_body(hub.bodies, hub.budget, limit)
        # await_body starts the deadline and the statistics of an inference.
        await_body = getattr(head.handler, "await_body", None)
        steps = inflating(cast(bytes, head.coding), data, body, limit, hub.limits.max_inflation)

        def inflated() -> None:
            exchange.inflating = False
            if not exchange.answered:
                if await_body is None:
                    exchange.on_client_gone = None
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
        """Runs the rest of a handler as a task: for rare and long requests, such as loading a model."""
        if not exchange.body_is_stable:
            exchange.body = bytes(exchange.body)
            exchange.body_is_stable = True
        self._hub.spawn(exchange, coroutine)

    def _refuse(self, error: ApiError, head: RequestHead = _MALFORMED) -> None:
        """Answers a message whose end is unknown. It is the connection's last answer."""
        log.debug("closing a connection after status %d: %s", error.status, error.message)
        self._closing = True
        self._pending = b""
        self._upload = None
        exchange = HttpExchange(self, head, b"", True)
        self._queue.append(exchange)
        exchange.fail(error)

    def _refuse_for_memory(self, head: RequestHead) -> None:
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
        last = len(self._queue) == 1 and (self._closing or (self._hub.draining and self._is_idle()))
        start = reply_head(status, content_type, size, fields, last, head.version_10)
        if head.method == "HEAD":
            self._collect(start)
        elif exchange.in_pieces and size > JOINED_BYTES:
            self._closing = self._closing or last
            self._begin_pieces(exchange, start, parts)
            return
        elif size <= JOINED_BYTES:
            self._collect(b"".join((start, *parts)))
        else:  # large parts are not copied
            self._collect(start)
            for part in parts:
                self._collect(part)
        if last:
            self._closing = True
        self._retire(exchange, status // 100)

    def _deflate(
        self, exchange: HttpExchange, coding: bytes, parts: list[memoryview], content_type: bytes, fields: Fields
    ) -> None:
        """Compresses a large answer on threads. Its exchange stays in the queue, as unanswered."""
        packed: list[bytes] = []
        exchange.reply = None
        exchange.answered = False

        def deflated(error: ApiError | None) -> None:
            if error is not None:
                exchange.fail(error)
            else:
                exchange.respond(200, packed, content_type, fields)

        exchange.on_client_gone = self._hub.pieces.submit(deflating(coding, parts, packed), deflated).terminate

    def _begin_pieces(self, exchange: HttpExchange, start: bytes, parts: list[memoryview]) -> None:
        """Writes a large answer piece by piece. Its exchange stays in the queue until the last piece."""
        exchange.reply = None
        self._collect(start)
        pieces = [part[at : at + JOINED_BYTES] for part in parts for at in range(0, len(part), JOINED_BYTES)]
        self._pieces = pieces[::-1]
        self._hub.in_turn(self._write_piece)

    def _write_piece(self) -> None:
        if self._transport is None or self._write_paused or not self._pieces:
            return  # the connection is lost, or resume_writing continues
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
        """Whether no byte of a further request has arrived, here or in the kernel's buffer."""
        if self._more or self._pending or self._skip or self._upload is not None or self._transport is None:
            return False
        unread = bytearray(4)
        fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), termios.FIONREAD, unread)
        return not any(unread)

    def _send_continue(self, upload: Upload) -> None:
        """Sends ``100 Continue``: all earlier requests are answered."""
        upload.wants_continue = False
        upload.started = upload.window_started = self._hub.now
        if not upload.received:
            self._collect(_CONTINUE)

    # --- For the SIGUSR1 report ---------------------------------------------------------------------------------------

    def state(self) -> str:
        """Describe what the connection does, in a few words."""
        if self._queue:
            return "waits for answers" if not self._pieces else "writes in pieces"
        if self._closing:
            return "ends"
        if self._upload is not None or self._skip:
            return "receives a body"
        if self._transport is not None and self._transport.get_write_buffer_size():
            return "writes"
        return "receives a head" if self._pending else "idle"

    def requests(self) -> Iterator[tuple[int, str, str]]:
        """Yield the unanswered requests: time of the first byte in ns, stage, description."""
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
        return getattr(exchange.on_client_gone, "stage", "in its handler")

    # --- The end ------------------------------------------------------------------------------------------------------

    def _linger(self) -> None:
        """Closes our side and waits for the client to close its own, so that it gets the whole answer. The wait is
        longer while the client sends, because the kernel resets a connection that is closed with unread bytes."""
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
        self._closing = True
        if self._transport is not None:
            self._transport.close()

    def check(self, now: float) -> None:
        """Ends what takes too long; the hub calls it every few seconds."""
        transport = self._transport
        if transport is None:
            return
        limits = self._hub.limits
        size = transport.get_write_buffer_size() + sum(map(len, self._pieces))
        if size:
            if size > JOINED_BYTES and 4 * size > 3 * self._stuck_size > 0 and self._hub.is_short_of_memory():
                log.debug("closing a connection: memory is short, and its client reads too slowly")
                transport.abort()
            elif size < self._stuck_size or not self._stuck_size:
                self._stuck_size = size
                self._stuck_since = now
            elif now - self._stuck_since > limits.write_timeout_s:
                log.debug("closing a connection: its client has read nothing for %g s", limits.write_timeout_s)
                transport.abort()
            return
        self._stuck_size = 0
        if self._queue and not transport.is_reading():
            self._check_whether_closed()
        if self._closing:
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
                self._time_out("the request head took too long", _malformed_head(started))
        elif self._idle_for_too_long(now):
            self._closing = True
            self._linger()

    def _window_s(self, upload: Upload) -> float:
        """Seconds that a body may make no progress; fewer while memory is short, if the body holds some."""
        idle_s: float = self._hub.limits.body_idle_timeout_s
        if upload.received > JOINED_BYTES and self._hub.is_short_of_memory():
            return min(idle_s, constants.PRESSED_IDLE_S)
        return idle_s

    def _check_whether_closed(self) -> None:
        """Detects that the client has gone while reading is paused, because the transport does not notice then."""
        state = cast(asyncio.Transport, self._transport).get_extra_info("socket").getsockopt(
            socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]  # fmt: skip
        if state == _CLOSED:
            self.abort()
        elif state == _CLOSED_BY_CLIENT:  # unread requests may precede the end, so the client is only probed
            self._hub.half_closed.setdefault(self, (self._hub.now, False))

    def _idle_for_too_long(self, now: float) -> bool:
        hub = self._hub
        if hub.ending:  # a long-idle connection gets this time, too: its next request may be on its way
            return now - max(self._since, hub.draining_since) > constants.DRAIN_IDLE_S
        return now - self._since > hub.limits.keep_alive_timeout_s

    def _time_out(self, message: str, head: RequestHead) -> None:
        self._refuse(ApiError(408, message), head)

    def probe(self) -> None:
        """Writes to a client that has closed its side: if it no longer waits for answers, its kernel sends a reset."""
        if self._transport is not None and self._queue and not self._queue[0].head.version_10 and not self._pieces:
            self._transport.write(_CONTINUE)

    def socket_error(self) -> int:
        """Return the pending error of the socket, 0 for none."""
        if self._transport is None:
            return 0
        error: int = self._transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return error

    def give_up(self) -> None:
        """Answers every unanswered request with 503, and closes: the server is ending."""
        if self._transport is None or (self._closing and not self._queue):
            return  # the connection ends already
        error = ApiError(503, "the server is ending", retry_after_s=1)
        upload, started = self._upload, self._pending.strip(b"\r\n") if not self._blocked() else b""
        open_ended = not self._closing and (upload is not None or started)
        self._closing = not open_ended
        for exchange in self._queue[:]:
            _abandon(exchange)
            exchange.fail(error)
        if open_ended:
            self._refuse(error, _malformed_head(started) if upload is None else upload.head)
        elif not self._queue:
            self._flush()

    def abort(self) -> None:
        """Closes the connection immediately."""
        if self._transport is not None:
            self._transport.abort()
