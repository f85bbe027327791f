"""One HTTP/1.1 connection: bytes from the socket to exchanges, answers back in request order.

The law of this file:

- All connections of a loop read into one buffer, the hub's. Nothing of it outlives the callback that it came with: a
  started head is kept apart (``_pending``), a body that does not lie in it wholly gets a buffer of its own.
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
from collections.abc import Coroutine
from sys import getrefcount
from typing import Any, Final, cast

from typing_extensions import Buffer

from fastinfer import limits as constants
from fastinfer.errors import ApiError
from fastinfer.http.exchange import JSON, Body, Exchange, Fields
from fastinfer.http.head import CHUNKED, LINE_BYTES, Head, parse, request_line, target_too_long
from fastinfer.http.hub import Connection, Hub
from fastinfer.http.reply import OK_JSON, reply_head
from fastinfer.http.upload import ChunkedUpload, SizedUpload, Upload, deflate, inflate

log = logging.getLogger(__name__)

_JOINED_BYTES: Final = 64 * constants.KIB  # answers are copied together up to this; larger ones are not copied
_INLINE_INFLATE_BYTES: Final = 4 * constants.KIB  # at most 4 MiB inflated, a few ms; more is inflated on a thread
_INLINE_DEFLATE_BYTES: Final = 64 * constants.KIB
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_UNSOUND: Final = Head("GET", False, {})  # stands for a message that could not be understood
_UNSOUND.keep_alive = False
_INTERNAL_ERROR: Final = ApiError(500, "internal error")


class HttpExchange(Exchange):
    """An exchange of this protocol.

    Attributes:
        head: the request's.
        counted: bytes of its body that count towards the process's budget.
        packed: its answer was compressed.
        reply: its answer, if that came before its turn.
    """

    __slots__ = ("counted", "head", "packed", "reply")

    def __init__(self, connection: HttpProtocol, head: Head, body: Buffer, stable: bool) -> None:
        self._connection = connection
        self.abandoned = None
        self.answered = False
        self.arguments = head.arguments
        self.body = body
        self.body_is_stable = stable
        self.headers = head.headers
        self.method = head.method
        self.head = head
        self.counted = 0
        self.packed = False
        self.reply: tuple[int, bytes, Body, Fields] | None = None


class HttpProtocol(asyncio.BufferedProtocol):
    """One connection; see the head of the file."""

    __slots__ = (
        "_deaf",
        "_eof",
        "_hub",
        "_lingering",
        "_more",
        "_out",
        "_out_size",
        "_pending",
        "_queue",
        "_reading",
        "_refusal",
        "_resumed",
        "_since",
        "_skip",
        "_slot",
        "_stuck_since",
        "_stuck_size",
        "_transport",
        "_upload",
        "_wake",
        "_write_paused",
    )

    def __init__(self, hub: Hub, refusal: ApiError | None = None) -> None:
        """``refusal``: the only answer that this connection will give; the server has too many of them."""
        # Per connection.
        self._hub = hub
        self._slot: set[Connection] = set()
        self._refusal = refusal
        self._transport: asyncio.Transport | None = None
        self._deaf = False
        self._eof = False  # the client has closed its side
        self._lingering: asyncio.TimerHandle | None = None
        self._write_paused = False
        self._wake: asyncio.Handle | None = None  # a call of _resume that is due
        self._stuck_since = 0.0  # when the write buffer was last seen to shrink ...
        self._stuck_size = 0  # ... and its size then
        self._since = hub.now  # when the current wait for the client began
        # Per message and answer.
        self._reading = False  # inside _read or _written: answers are collected
        self._more = False  # while draining: there are bytes behind the message that is being handled
        self._resumed = False  # what is read begins with a head that was started earlier
        self._pending = b""  # a started head; when reading is paused, all that was read
        self._upload: SizedUpload | ChunkedUpload | None = None
        self._skip = 0  # bytes of a refused body, still to be thrown away
        self._queue: list[HttpExchange] = []
        self._out: list[bytes | memoryview] = []
        self._out_size = 0

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
        self._drop_upload()
        if self._lingering is not None:
            self._lingering.cancel()
        if self._wake is not None:
            self._wake.cancel()
        queue, self._queue = self._queue, []
        for exchange in queue:
            self._hub.in_flight_bytes -= exchange.counted
            abandoned, exchange.abandoned = exchange.abandoned, None
            exchange.answered = True
            exchange.reply = None
            if abandoned is not None:
                try:
                    abandoned()
                except Exception:
                    log.exception("a request could not be abandoned")
        self._hub.disconnected(self, self._slot)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        upload = self._upload
        if upload is not None and type(upload) is SizedUpload:
            return upload.space()
        hub = self._hub
        pending = self._pending
        if not pending:
            return hub.view
        hub.buffer[: len(pending)] = pending
        return hub.view[len(pending) :]

    def buffer_updated(self, size: int) -> None:
        if self._deaf:
            return
        upload = self._upload
        if upload is not None and type(upload) is SizedUpload:
            self._written(upload, size)
        else:
            pending = self._pending
            if pending:
                size += len(pending)
                self._pending = b""
                self._resumed = True
            self._read(size)

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

    # --- Bytes to requests --------------------------------------------------------------------------------------------

    def _blocked(self) -> bool:
        """Whether no further request may start: too many in flight, or the client does not read its answers."""
        return self._write_paused or len(self._queue) >= self._hub.limits.max_pipelined

    def _read(self, end: int) -> None:
        """Takes the messages in the first ``end`` bytes of the hub's buffer; keeps what is left."""
        hub = self._hub
        buffer = hub.buffer
        users = getrefcount(buffer)
        start = 0
        self._reading = True
        while start < end and not self._deaf:
            # The common case comes first: a head and its body wholly in the buffer.
            if not self._skip and self._upload is None:
                if self._out_size > _JOINED_BYTES:
                    self._write_out()
                if self._write_paused or len(self._queue) >= hub.limits.max_pipelined:
                    self._pending = bytes(hub.view[start:end])
                    cast(asyncio.Transport, self._transport).pause_reading()
                    break
                if buffer[start] == 13:
                    body = self._skip_empty_lines(start, end)
                    if body < 0:
                        break
                else:
                    body = start
                stop = buffer.find(b"\r\n\r\n", body, end) + 4
                if stop < 4:
                    self._keep_started_head(start, body, end)
                    break
                raw = bytes(hub.view[body:stop])
                head = hub.heads.get(raw)
                if head is None:
                    head = self._understand(raw)
                    if head is None:
                        break
                start = self._begin(head, stop, end)
            elif self._skip:
                skipped = min(self._skip, end - start)
                self._skip -= skipped
                start += skipped
            else:
                start = self._feed(cast(ChunkedUpload, self._upload), start, end)
        self._reading = self._more = self._resumed = False
        if self._out:
            self._flush()
        if getrefcount(buffer) != users:
            hub.renew_buffer()  # a handler kept a view of its body; it shall not see other clients' bytes

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
            self._keep(first, end)
            return -1
        return start

    def _keep(self, start: int, end: int) -> None:
        """Keeps a started head; its time runs from its first byte."""
        if start or not self._resumed:
            self._since = self._hub.now
        self._pending = bytes(self._hub.view[start:end])

    def _keep_started_head(self, first: int, start: int, end: int) -> None:
        """A head that has not ended yet: refused as soon as it cannot become a sound one."""
        limits = self._hub.limits
        raw = bytes(self._hub.view[start:end])
        lines = raw.count(b"\r\n")
        try:
            if raw.count(b"\n") != lines or raw.count(b"\r", 0, len(raw) - 1) != lines:
                raise ApiError(400, "malformed request head: lines end with CR LF")
            if lines:
                request_line(raw, limits)
            elif len(raw) > limits.max_target_bytes + LINE_BYTES:
                raise target_too_long(limits)
            if len(raw) > limits.max_head_bytes:
                raise ApiError(431, f"the request head is larger than {limits.max_head_bytes} bytes")
        except ApiError as error:
            self._refuse(error)
        else:
            self._keep(first, end)

    def _understand(self, raw: bytes) -> Head | None:
        """The meaning of a head that was not seen before; None if it has none and was refused."""
        hub = self._hub
        try:
            if len(raw) > hub.limits.max_head_bytes:
                request_line(raw, hub.limits)
                raise ApiError(431, f"the request head is larger than {hub.limits.max_head_bytes} bytes")
            head = parse(raw, hub.limits, hub.router)
        except ApiError as error:
            self._refuse(error)
            return None
        if head.error is None:
            hub.remember(raw, head)
        return head

    def _begin(self, head: Head, start: int, end: int) -> int:
        """Starts a message whose body begins at ``start``; returns where the next one does, as far as it is here."""
        hub = self._hub
        size = head.body_size
        if head.error is not None:
            return self._answer_early(head, head.error, start, end)
        if hub.draining:
            self._more = start + size < end
        if size == 0:
            exchange = HttpExchange(self, head, b"", True)
            self._enqueue(exchange)
            self._handle(exchange)
            return start
        if 0 < size <= end - start:
            if head.coding is not None:
                self._inflate(head, memoryview(bytes(hub.view[start : start + size])), 0)
                return start + size
            body = memoryview(hub.buffer)[start : start + size]
            exchange = HttpExchange(self, head, body, False)
            self._enqueue(exchange)
            self._handle(exchange)
            try:
                body.release()  # whoever comes back to it gets an error, not the bytes of another client
            except BufferError:
                pass  # _read will notice
            return start + size
        if hub.in_flight_bytes > hub.limits.in_flight_bytes:
            self._refuse(_out_of_memory(), head)
            return end
        if size == CHUNKED:
            self._upload = ChunkedUpload(head, hub.now, hub.limits)
        else:
            self._upload = SizedUpload(head, hub.now, hub.view[start:end])
            hub.in_flight_bytes += end - start
        if head.expects_continue and start == end:
            self._upload.wants_continue = True
            if not self._queue:
                self._send_continue(self._upload)
        return start if size == CHUNKED else end

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

    def _written(self, upload: SizedUpload, size: int) -> None:
        """``size`` bytes of a body went straight into its own buffer."""
        hub = self._hub
        hub.in_flight_bytes += size
        upload.written(size)
        self._reading = True
        if upload.complete:
            self._finish_upload(upload)
        elif hub.in_flight_bytes > hub.limits.in_flight_bytes:
            self._refuse(_out_of_memory(), upload.head)
        self._reading = False
        if self._out:
            self._flush()

    def _feed(self, upload: ChunkedUpload, start: int, end: int) -> int:
        hub = self._hub
        before = upload.received
        try:
            start = upload.feed(hub.buffer, start, end)
        except ApiError as error:
            hub.in_flight_bytes += upload.received - before
            self._refuse(error, upload.head)
            return end
        hub.in_flight_bytes += upload.received - before
        if upload.complete:
            self._more = start < end
            self._finish_upload(upload)
        elif hub.in_flight_bytes > hub.limits.in_flight_bytes:
            self._refuse(_out_of_memory(), upload.head)
        return start

    def _finish_upload(self, upload: SizedUpload | ChunkedUpload) -> None:
        self._upload = None
        head = upload.head
        if head.coding is not None and upload.received:
            self._inflate(head, upload.body(), upload.received)
            return
        exchange = HttpExchange(self, head, upload.body(), True)
        exchange.counted = upload.received
        self._enqueue(exchange)
        self._handle(exchange)

    def _drop_upload(self) -> None:
        if self._upload is not None:
            self._hub.in_flight_bytes -= self._upload.received
            self._upload = None

    def _inflate(self, head: Head, data: memoryview, counted: int) -> None:
        """Inflates a body, then handles its request; its place in the order of answers is taken at once."""
        exchange = HttpExchange(self, head, b"", True)
        exchange.counted = counted
        self._enqueue(exchange)
        coding, limit = cast(bytes, head.coding), head.max_body_bytes
        if len(data) <= _INLINE_INFLATE_BYTES:
            exchange.guard(lambda: self._inflated(exchange, inflate(coding, data, limit)))
        else:
            self._hub.on_thread(
                exchange, lambda: inflate(coding, data, limit), lambda body: self._inflated(exchange, body)
            )

    def _inflated(self, exchange: HttpExchange, body: bytes) -> None:
        if not exchange.answered:
            more = len(body) - exchange.counted
            exchange.counted += more
            self._hub.in_flight_bytes += more
            exchange.body = body
            self._handle(exchange)

    # --- Requests to handlers -----------------------------------------------------------------------------------------

    def _enqueue(self, exchange: HttpExchange) -> None:
        """Gives an exchange its place in the order of answers."""
        self._queue.append(exchange)
        if not exchange.head.keep_alive:
            self._deaf = True

    def _handle(self, exchange: HttpExchange) -> None:
        try:
            coroutine = exchange.head.handler(exchange)
        except ApiError as error:
            exchange.fail(error)
        except Exception:
            log.exception("a request could not be handled")
            exchange.fail(_INTERNAL_ERROR)
        else:
            if coroutine is not None:
                self._spawn(exchange, coroutine)

    def _spawn(self, exchange: HttpExchange, coroutine: Coroutine[Any, Any, None]) -> None:
        """Runs the rest of a handler as a task: for requests that are rare and long, such as loading a model."""
        if not exchange.body_is_stable:
            exchange.body = bytes(exchange.body)
            exchange.body_is_stable = True
        self._hub.spawn(exchange, coroutine)

    def _refuse(self, error: ApiError, head: Head = _UNSOUND) -> None:
        """Answers a message whose end is uncertain: the connection's last answer."""
        self._deaf = True
        self._pending = b""
        self._drop_upload()
        exchange = HttpExchange(self, head, b"", True)
        self._queue.append(exchange)
        exchange.fail(error)

    # --- Answers ------------------------------------------------------------------------------------------------------

    def answer(self, exchange: Any, status: int, content_type: bytes, body: Body, fields: Fields) -> None:
        """See :class:`fastinfer.http.exchange.Connection`; the exchange is an HttpExchange."""
        queue = self._queue
        if not queue or queue[0] is not exchange:
            exchange.reply = (status, content_type, body, fields)
            return
        self._emit(exchange, status, content_type, body, fields)
        while queue and (reply := queue[0].reply) is not None:
            self._emit(queue[0], *reply)
        if not self._reading:
            if queue:
                self._wake_up()  # more answers may come in this turn: one write for all
            else:
                self._flush()
                if self._pending or self._eof or self._upload is not None:
                    self._wake_up()

    def _emit(self, exchange: HttpExchange, status: int, content_type: bytes, body: Any, fields: Fields) -> None:
        """Puts an answer into the outgoing bytes; the exchange is the queue's first and leaves it."""
        try:
            # The common case comes first.
            head = exchange.head
            if status == 200 and head.plain and content_type is JSON and not fields and not self._hub.draining:
                kind = type(body)
                if kind is bytes or (kind is not list and kind is not tuple):
                    size = len(body) if kind is bytes else memoryview(body).nbytes
                    if size <= _JOINED_BYTES and (head.accepted is None or size < constants.MIN_COMPRESSED_BYTES):
                        self._out.append(b"".join((OK_JSON % size, body)))
                        self._out_size += size
                        self._retire(exchange, 2)
                        return
            self._emit_any(exchange, status, content_type, body, fields)
        except Exception:
            log.exception("an answer could not be written")
            self._emit_any(exchange, 500, JSON, _INTERNAL_ERROR.body(), ())

    def _retire(self, exchange: HttpExchange, status_class: int) -> None:
        """The exchange's answer is in the outgoing bytes."""
        hub = self._hub
        del self._queue[0]
        hub.answers[status_class] += 1
        self._since = hub.now
        if exchange.counted:
            hub.in_flight_bytes -= exchange.counted
            exchange.body = b""

    def _emit_any(self, exchange: HttpExchange, status: int, content_type: bytes, body: Any, fields: Fields) -> None:
        parts = [memoryview(part) for part in (body if isinstance(body, (list, tuple)) else (body,))]
        parts = [part.cast("B") for part in parts if part.nbytes]
        size = sum([len(part) for part in parts])
        head = exchange.head
        coding = head.accepted
        if coding is not None and size >= constants.MIN_COMPRESSED_BYTES and status == 200 and not exchange.packed:
            exchange.packed = True
            fields = (*fields, (b"Content-Encoding", coding), (b"Vary", b"Accept-Encoding"))
            if size > _INLINE_DEFLATE_BYTES:
                self._deflate(exchange, coding, parts, content_type, fields)
                return
            parts = [memoryview(deflate(coding, b"".join(parts)))]
            size = len(parts[0])
        last = len(self._queue) == 1 and (self._deaf or (self._hub.draining and self._is_idle()))
        start = reply_head(status, content_type, size, fields, last, head.version_10)
        if head.method == "HEAD":
            self._out.append(start)
        elif size <= _JOINED_BYTES:
            self._out.append(b"".join((start, *parts)))
        else:  # not copied
            self._out.append(start)
            self._out.extend(parts)
        self._out_size += size
        if last:
            self._deaf = True
        self._retire(exchange, status // 100)

    def _deflate(
        self, exchange: HttpExchange, coding: bytes, parts: list[memoryview], content_type: bytes, fields: Fields
    ) -> None:
        """Compresses a large answer on a thread; it keeps its place in the queue, as one that has not come yet."""
        exchange.reply = None
        exchange.answered = False
        self._hub.on_thread(
            exchange,
            lambda: deflate(coding, b"".join(parts)),
            lambda packed: exchange.respond(200, packed, content_type, fields),
        )

    def _is_idle(self) -> bool:
        """Whether nothing of a further request has arrived, here or in the system's buffer."""
        if self._more or self._pending or self._skip or self._upload is not None or self._transport is None:
            return False
        unread = bytearray(4)
        fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), termios.FIONREAD, unread)
        return not any(unread)

    def _flush(self) -> None:
        """Hands the collected answers to the transport; after the last one, ends the connection gently."""
        self._write_out()
        if self._deaf and not self._queue and self._lingering is None:
            self._linger()

    def _write_out(self) -> None:
        out = self._out
        transport = self._transport
        if transport is not None and out:
            if len(out) == 1:
                transport.write(out[0])
            elif self._out_size <= _JOINED_BYTES:
                transport.write(b"".join(out))
            else:
                transport.writelines(out)
        out.clear()
        self._out_size = 0

    def _wake_up(self) -> None:
        if self._wake is None and self._transport is not None:
            self._wake = self._hub.loop.call_soon(self._resume)

    def _resume(self) -> None:
        """Writes what was collected in the last turn, and goes on reading if that was paused."""
        self._wake = None
        transport = self._transport
        if transport is None:
            return
        if self._out:
            self._flush()
        if self._deaf or self._blocked():
            return
        if self._upload is not None and self._upload.wants_continue and not self._queue:
            self._send_continue(self._upload)
            self._write_out()
        if transport.is_reading():
            return
        pending, self._pending = self._pending, b""
        if pending:
            self._hub.buffer[: len(pending)] = pending
            self._read(len(pending))
        if self._deaf or self._blocked():
            return
        if not self._eof:
            transport.resume_reading()
        elif not self._queue:
            self._close()

    def _send_continue(self, upload: Upload) -> None:
        """Asks for the body, when that is the next thing that the client waits for."""
        upload.wants_continue = False
        if not upload.received:
            self._out.append(_CONTINUE)

    # --- The end ------------------------------------------------------------------------------------------------------

    def _linger(self) -> None:
        """Closes our side and waits a little for the client to close its own, so that it gets the whole answer."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._eof:
            self._close()
            return
        transport.write_eof()
        transport.resume_reading()
        self._lingering = self._hub.loop.call_later(self._hub.limits.linger_s, self._lingered)

    def _lingered(self) -> None:
        transport = self._transport
        if transport is not None and transport.get_write_buffer_size():
            self._lingering = self._hub.loop.call_later(self._hub.limits.linger_s, self._lingered)
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
        size = transport.get_write_buffer_size()
        if size:
            if size < self._stuck_size or not self._stuck_size:
                self._stuck_size = size
                self._stuck_since = now
            elif now - self._stuck_since > limits.write_timeout_s:
                transport.abort()
            return
        self._stuck_size = 0
        if self._queue or self._deaf:
            return
        upload = self._upload
        if upload is not None:
            if now - upload.started > limits.upload_timeout_s:
                self._time_out("the body took too long", upload.head)
            elif now - upload.window_started > limits.body_idle_timeout_s:
                wanted = limits.body_min_bytes_per_s * (now - upload.window_started)
                if upload.received - upload.window_received < wanted:
                    self._time_out("the body came too slowly", upload.head)
                upload.window_started = now
                upload.window_received = upload.received
        elif self._skip:
            if now - self._since > limits.body_idle_timeout_s:
                self._close()
        elif self._pending.strip(b"\r\n"):
            if now - self._since > limits.head_timeout_s:
                self._time_out("the request head took too long", _UNSOUND)
        elif now - self._since > (constants.DRAIN_IDLE_S if self._hub.draining else limits.keep_alive_timeout_s):
            self._deaf = True
            self._linger()

    def _time_out(self, message: str, head: Head) -> None:
        self._refuse(ApiError(408, message), head)

    def probe(self) -> None:
        """Asks a client that closed its side whether it still waits for its answers: if not, its system resets."""
        if self._transport is not None and self._queue and not self._queue[0].head.version_10:
            self._transport.write(_CONTINUE)

    def socket_error(self) -> int:
        """What the system says about the client since then."""
        if self._transport is None:
            return 0
        error: int = self._transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return error

    def abort(self) -> None:
        """Ends at once."""
        if self._transport is not None:
            self._transport.abort()


def _out_of_memory() -> ApiError:
    return ApiError(503, "too many bytes of requests are in flight", retry_after_s=1)
