# One HTTP/1.1 connection: the asyncio protocol that holds its two directions. Lives here: the transport, calls of
# handlers, timeouts, the end. Does not: bytes to messages (inbound.pyx), answers to bytes (outbound.pyx).
#
# - No further request is read once `inbound.ended` is set: the last answer is sent, then the connection lingers, so
#   that the client can read it, and closes.
# - There is no task, future or timer per request. The hub's sweep calls `check` of each connection that is not idle
#   every few seconds.
#
# Loop's thread only.

cimport cython
from libc.math cimport fmin
from libc.stdint cimport int64_t

from fastinfer.http.exchange cimport RequestHead
from fastinfer.http.inbound cimport Inbound
from fastinfer.http.loop_state cimport LoopState
from fastinfer.http.outbound cimport HttpExchange, Outbound, Sink
from fastinfer.http.upload cimport Upload
from fastinfer.native.job cimport monotonic_ns

import fcntl
import logging
import socket
import termios

from fastinfer.base import limits as constants
from fastinfer.base.errors import ApiError
from fastinfer.http.coded import inflate
from fastinfer.http.outbound import INTERNAL_ERROR, JOINED_BYTES

log = logging.getLogger(__name__)

cdef Py_ssize_t joined_bytes = JOINED_BYTES
cdef bytes CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# TCP states (Linux's tcp_states.h).
cdef int CLOSED = 7             # TCP_CLOSE: the connection was reset
cdef int CLOSED_BY_CLIENT = 8   # TCP_CLOSE_WAIT


def to_check(set connections not None, double idle_since):
    # Those that wait for anything but their client's next request, or have waited for it since before `idle_since`.
    # They are few, even of very many.
    return [connection for connection in connections if not (<Connection>connection).waits_for_request(idle_since)]


@cython.final
cdef class Connection(Sink):
    def __init__(self, LoopState hub not None, refusal=None):
        self.hub = hub
        self.inbound = Inbound(hub)
        self.outbound = Outbound(hub, self)
        self.refusal = refusal

    # --- Called by the transport -------------------------------------------------------------------------------------

    def connection_made(self, transport not None):
        self.transport = transport
        self.sweep_bucket = self.hub.connected(self)
        if self.refusal is not None:
            self.refuse(self.refusal)

    def connection_lost(self, error):
        cdef HttpExchange exchange
        self.transport = None
        self.inbound.stop()
        if self.lingering is not None:
            self.lingering.cancel()
        if self.wake is not None:
            self.wake.cancel()
        for exchange in self.outbound.close():
            abandon(exchange)
        self.hub.disconnected(self, self.sweep_bucket)

    def get_buffer(self, size_hint):
        room = self.inbound.room() if not self.inbound.ended else self.hub.buffer
        if room is not None:
            return room
        # The transport waits for a buffer, so the refusal is written in the next turn.
        self.outbound.collecting = True
        self.refuse(ApiError(503, "too many bytes of requests are in flight", retry_after_s=1))
        self.outbound.collecting = False
        self.wake_up()
        return self.hub.buffer

    def buffer_updated(self, Py_ssize_t size):
        cdef int64_t now = monotonic_ns()
        if not self.inbound.ended:
            self.hub.poller.on_bytes(now)
        self.inbound.received(size, now)
        if not self.inbound.ended:
            self.read()

    def eof_received(self):
        self.client_closed = True
        if self.outbound.awaited() > 0 and self.lingering is None:
            self.hub.half_closed[self] = (self.hub.now, False)
        elif not self.inbound.pending or not self.is_blocked():
            self.close()
        return True

    def pause_writing(self):
        self.write_paused = True

    def resume_writing(self):
        self.write_paused = False
        self.wake_up()
        if self.outbound.pieces:
            self.hub.in_turn(self.write_piece)

    # --- Messages to handlers ----------------------------------------------------------------------------------------

    cdef int read(self) except -1:
        # Takes the messages that were read; keeps them while no further request may start.
        cdef Inbound inbound = self.inbound
        cdef Outbound outbound = self.outbound
        outbound.collecting = True
        while True:
            if inbound.at < inbound.end and inbound.upload is None:
                if outbound.size > joined_bytes:
                    self.write_out()
                if self.is_blocked():
                    inbound.pause()
                    self.transport.pause_reading()
                    self.reading_paused = True
                    break
            if not inbound.next():
                break
            self.take_message()
            inbound.handled()
        outbound.collecting = False
        if inbound.upload is not None:
            self.ask_for_body()
        if outbound.size > 0:
            self.flush()
        if self.hub.view_kept:
            self.hub.renew_buffer()     # a kept view of a body must not show other clients' bytes
        return 0

    cdef bint is_blocked(self) noexcept:
        return self.write_paused or self.outbound.is_full()

    cdef int take_message(self) except -1:
        # Gives the message its place in the order of answers, and the handler or the error that answers it.
        cdef Inbound inbound = self.inbound
        cdef RequestHead head = inbound.head
        cdef HttpExchange exchange = HttpExchange.__new__(HttpExchange)     # without packing the arguments
        exchange._connection = self.outbound
        exchange.method = head.method
        exchange.arguments = head.arguments
        exchange.body = inbound.body
        exchange.body_is_stable = inbound.body_is_stable
        exchange.head = head
        exchange.arrived_ns = inbound.arrived_ns
        exchange.handled_ns = inbound.read_ns
        self.outbound.expect(exchange)
        if inbound.error is not None:
            exchange.fail(inbound.error)
        elif head.coding is not None and len(inbound.body) > 0:
            exchange.inflating = True
            exchange.body = b""
            inflate(self.hub, exchange, head, inbound.body, self.handle_inflated)
        else:
            self.handle(exchange)
        return 0

    def handle_inflated(self, HttpExchange exchange not None):
        exchange.inflating = False
        self.handle(exchange)

    cdef int handle(self, HttpExchange exchange) except -1:
        try:
            coroutine = exchange.head.handler(exchange)
        except ApiError as error:
            exchange.fail(error)
        except Exception:
            log.exception("a request could not be handled")
            exchange.fail(INTERNAL_ERROR)
        else:
            if coroutine is not None:       # a rare and long request, such as loading a model
                if not exchange.body_is_stable:
                    exchange.body = bytes(exchange.body)
                    exchange.body_is_stable = True
                self.hub.spawn(exchange, coroutine)
        return 0

    cdef int ask_for_body(self) except -1:
        # Sends `100 Continue` to a client that waits for it, once all earlier requests are answered.
        cdef Upload upload = self.inbound.upload
        if upload is not None and upload.wants_continue and self.outbound.awaited() == 0:
            upload.wants_continue = False
            upload.started = upload.window_started = self.hub.now
            if upload.received == 0:
                self.outbound.add(CONTINUE)
        return 0

    # --- Answers to the transport ------------------------------------------------------------------------------------

    cpdef object on_answers(self):
        if self.outbound.awaited() > 0:
            self.wake_up()          # more answers may come in this turn: one write for all
        else:
            self.flush()
            if self.reading_paused or self.inbound.upload is not None or self.client_closed:
                self.wake_up()

    cpdef object on_pieces(self):
        self.hub.in_turn(self.write_piece)

    cpdef bint has_ended(self) noexcept:
        return self.inbound.ended

    cpdef bint ends_now(self) except -1:
        if not self.inbound.ended and self.hub.draining and self.is_idle():
            self.inbound.stop()
        return self.inbound.ended

    cdef int flush(self) except -1:
        # Hands the collected answers to the transport; after the last one, ends the connection gently.
        self.write_out()
        if self.inbound.ended and self.outbound.awaited() == 0:
            self.linger()
        return 0

    cdef int write_out(self) except -1:
        cdef Py_ssize_t size = self.outbound.size
        out = self.outbound.take()
        if self.transport is None or out is None:
            return 0
        if type(out) is list:
            self.transport.writelines(out)
        else:
            self.transport.write(out)
        self.written += size
        self.inbound.since = self.hub.now
        self.hub.poller.on_answer()
        return 0

    def write_piece(self):
        if self.transport is None or self.write_paused or not self.outbound.pieces:
            return      # the connection is lost, or resume_writing continues
        self.write_out()
        piece = self.outbound.next_piece()
        self.transport.write(piece)
        self.written += len(piece)
        if self.outbound.pieces:
            if not self.write_paused:
                self.hub.in_turn(self.write_piece)
            return
        self.inbound.since = self.hub.now
        self.outbound.end_pieces()
        self.flush()
        self.wake_up()

    cdef int wake_up(self) except -1:
        if self.wake is None and self.transport is not None:
            self.wake = self.hub.loop.call_soon(self.resume)
        return 0

    def resume(self):
        # Writes the answers collected in the last turn, and resumes reading if it was paused.
        self.wake = None
        if self.transport is None:
            return
        if self.outbound.size > 0:
            self.flush()
        if self.inbound.ended or self.is_blocked():
            return
        self.ask_for_body()
        self.write_out()
        if self.reading_paused:
            if self.inbound.resume():
                self.read()
            if self.inbound.ended or self.is_blocked():
                return
            self.reading_paused = False
            if not self.client_closed:
                self.transport.resume_reading()
        if self.client_closed and self.outbound.awaited() == 0:
            self.close()

    cdef bint is_idle(self) except -1:
        # Whether no byte of a further request has arrived, here or in the kernel's buffer.
        if not self.inbound.is_between_messages() or self.transport is None:
            return False
        unread = bytearray(4)
        fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.FIONREAD, unread)
        return not any(unread)

    # --- The end -----------------------------------------------------------------------------------------------------

    cdef int refuse(self, error) except -1:
        # Answers the message that has begun, or would come next. It is the connection's last answer.
        self.inbound.refuse(error)
        self.take_message()
        self.inbound.handled()
        return 0

    cdef int linger(self) except -1:
        # Closes our side and waits for the client to close its own, so that it gets the whole answer. The wait is
        # longer while the client sends, because the kernel resets a connection that is closed with unread bytes.
        if self.lingering is not None or self.transport is None or self.transport.is_closing():
            return 0
        if self.client_closed:
            return self.close()
        self.transport.write_eof()
        self.transport.resume_reading()
        loop, limits = self.hub.loop, self.hub.limits
        self.linger_end = loop.time() + constants.MAX_LINGERS * limits.linger_s
        self.lingering = loop.call_later(limits.linger_s, self.linger_on)
        return 0

    def linger_on(self):
        loop, linger_s = self.hub.loop, self.hub.limits.linger_s
        now = loop.time()
        sends = now - self.inbound.since < linger_s and now < self.linger_end and not self.hub.ending
        if self.transport is not None and (sends or self.transport.get_write_buffer_size()):
            self.lingering = loop.call_later(linger_s, self.linger_on)
        else:
            self.close()

    cdef int close(self) except -1:
        self.inbound.stop()
        if self.transport is not None:
            self.transport.close()
        return 0

    def give_up(self):
        if self.transport is None or (self.inbound.ended and self.outbound.awaited() == 0):
            return      # the connection ends already
        error = ApiError(503, "the server is ending", retry_after_s=1)
        started = self.inbound.upload is not None or (self.inbound.has_started_head() and not self.is_blocked())
        open_ended = started and not self.inbound.ended
        if not open_ended:
            self.inbound.stop()
        for exchange in self.outbound.queue:
            abandon(exchange)
            exchange.fail(error)
        if open_ended:
            self.refuse(error)
        elif self.outbound.awaited() == 0:
            self.flush()

    def abort(self):
        if self.transport is not None:
            self.transport.abort()

    # --- Timeouts ----------------------------------------------------------------------------------------------------

    cdef bint waits_for_request(self, double since) except -1:
        # Whether it waits only for its client's next request, and not since before `since`.
        if self.transport is None:
            return True
        return (not self.inbound.ended and self.inbound.since >= since and self.outbound.awaited() == 0
                and self.inbound.is_between_messages() and self.unwritten == 0
                and self.transport.get_write_buffer_size() == 0)

    def check(self, double now):
        cdef Inbound inbound = self.inbound
        cdef Upload upload = inbound.upload
        if self.transport is None or self.check_writing(now):
            return
        if self.outbound.awaited() > 0 and not self.transport.is_reading():
            self.check_closed()
        if inbound.ended:
            return
        limits = self.hub.limits
        if upload is not None and not (upload.wants_continue and self.outbound.awaited() > 0 and upload.received == 0):
            reason = upload.overdue(now, limits, self.hub.is_short_of_memory())
            if reason is not None:
                self.refuse(ApiError(408, reason))
        elif self.outbound.awaited() > 0:
            return
        elif inbound.skip > 0:
            if inbound.skipped.overdue(now, limits, False) is not None:
                inbound.stop()
                self.linger()
        elif inbound.has_started_head():
            if now - inbound.since > limits.head_timeout_s:
                self.refuse(ApiError(408, "the request head took too long"))
        else:
            # While the server ends, a long-idle connection gets some time, too: its next request may be on its way.
            idle_since = max(inbound.since, self.hub.draining_since) if self.hub.ending else inbound.since
            if now - idle_since > (constants.DRAIN_IDLE_S if self.hub.ending else limits.keep_alive_timeout_s):
                inbound.stop()
                self.linger()

    cdef bint check_writing(self, double now) except -1:
        # Whether there is something to write; ends the connection if its client has read nothing of it for too long.
        cdef Py_ssize_t buffered = self.transport.get_write_buffer_size()
        cdef Py_ssize_t size = buffered + sum(map(len, self.outbound.pieces))
        cdef Py_ssize_t before = self.unwritten
        cdef double timeout_s = self.hub.limits.write_timeout_s
        cdef int64_t sent = self.written - buffered
        cdef int64_t progress = sent - self.sent
        if size > 0 and before > 0 and now - self.checked_at < fmin(1, timeout_s / 8):
            return True         # during a drain checks are frequent
        self.unwritten = size
        self.sent = sent
        self.checked_at = now
        if size == 0:
            return False
        if before == 0 or progress > 0:
            self.progress_at = now
        if before > 0 and size > joined_bytes and 4 * progress < before and self.hub.is_short_of_memory():
            log.debug("closing a connection: memory is short, and its client reads too slowly")
            self.transport.abort()
        elif now - self.progress_at > timeout_s:
            log.debug("closing a connection: its client has read nothing for %g s", timeout_s)
            self.transport.abort()
        return True

    cdef int check_closed(self) except -1:
        # Detects that the client has gone while reading is paused, because the transport does not notice then.
        state = self.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        if state == CLOSED:
            self.abort()
        elif state == CLOSED_BY_CLIENT:     # unread requests may precede the end, so the client is only probed
            self.hub.half_closed.setdefault(self, (self.hub.now, False))
        return 0

    def probe(self):
        if self.transport is None or self.outbound.awaited() == 0 or self.outbound.pieces:
            return
        if not self.outbound.oldest().head.version_10:
            self.transport.write(CONTINUE)
            self.written += len(CONTINUE)

    def socket_error(self):
        if self.transport is None:
            return 0
        return self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    # --- For the SIGUSR1 report --------------------------------------------------------------------------------------

    def state(self):
        if self.outbound.awaited() > 0:
            return "writes in pieces" if self.outbound.pieces else "waits for answers"
        if self.inbound.ended:
            return "ends"
        if self.inbound.upload is not None or self.inbound.skip > 0:
            return "receives a body"
        if self.transport is not None and self.transport.get_write_buffer_size():
            return "writes"
        return "receives a head" if self.inbound.pending else "idle"

    def requests(self):
        cdef Upload upload = self.inbound.upload
        cdef HttpExchange exchange
        found = []
        for exchange in self.outbound.queue:
            found.append((exchange.arrived_ns, stage_of(exchange), described(exchange.head)))
        if upload is not None:
            stage = f"receiving, {upload.received} bytes so far"
            found.append((upload.arrived_ns, stage, described(upload.head)))
        return found


cdef str stage_of(HttpExchange exchange):
    if exchange.answered:
        return "writing" if exchange.reply is None else "answered, after others of its connection"
    if exchange.packed:
        return "compressing"
    if exchange.inflating:
        return "inflating"
    return getattr(exchange.on_client_gone, "stage", "in its handler")


cdef str described(RequestHead head):
    handler = getattr(head.handler, "__name__", type(head.handler).__name__)
    return " ".join([head.method, handler, *map(str, head.arguments)])


cdef int abandon(HttpExchange exchange) except -1:
    # Ends the work for a request that no longer needs it.
    abandoned = exchange.on_client_gone
    exchange.on_client_gone = None
    if abandoned is not None:
        try:
            abandoned()
        except Exception:
            log.exception("the work for a request could not be ended")
    return 0
