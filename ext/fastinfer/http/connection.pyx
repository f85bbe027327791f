# The hot path of an HTTP/1.1 connection: bytes from the socket to exchanges, answers back in the order of requests. The
# rare cases (refusals, chunked and compressed bodies, timeouts, the end) are in the subclass, http/protocol.py, which
# also states the invariants of both.
#
# Loop's thread only. All connections read into the hub's one buffer; a connection owns its exchanges until they are
# answered.
#
# An answer: `Exchange.respond` -> `answer` (keeps the order) -> `emit` -> `emit_plain` or `_emit_any` (rare) ->
# `retire` -> `flush` -> `write_out`.

cimport cython
from cpython.buffer cimport PyBuffer_Release
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uintptr_t
from libc.string cimport memcmp, memcpy

from fastinfer.base.budget cimport Budget
from fastinfer.base.debug cimport DEBUG, invariant
from fastinfer.http.exchange cimport BorrowedBody, Exchange, RequestHead, lend
from fastinfer.http.head_cache cimport HeadCache
from fastinfer.http.reply cimport ok_json, reply, size_of
from fastinfer.http.upload cimport BodyPool, SizedUpload, Upload
from fastinfer.native.job cimport monotonic_ns
from fastinfer.shared.counters cimport borrow

import logging

from fastinfer.base import limits as constants
from fastinfer.base.errors import ApiError
from fastinfer.http.exchange import JSON

cdef extern from "<string.h>" nogil:
    const void* memmem(const void* haystack, size_t size, const void* needle, size_t needle_size)

log = logging.getLogger(__name__)

# Answers are copied together up to this; larger ones are not copied.
JOINED_BYTES = 64 * constants.KIB
COUNTER_BYTES = 7 * sizeof(int64_t)
INTERNAL_ERROR = ApiError(500, "internal error")

cdef Py_ssize_t joined_bytes = JOINED_BYTES
cdef Py_ssize_t max_awaited_bytes = constants.MAX_AWAITED_ANSWER_BYTES
cdef bytes json_type = JSON


# The collector would drop the buffer's owner without releasing the buffer.
@cython.no_gc_clear
cdef class Shared:
    def __dealloc__(self):
        PyBuffer_Release(&self._counted)

    def __init__(self, limits, loop, Poller poller=None, counters=None, Budget budget=None):
        PyBuffer_Release(&self._counted)
        cdef Py_ssize_t size = 0
        cdef char* at = borrow(bytearray(COUNTER_BYTES) if counters is None else counters, &self._counted, &size)
        if size < COUNTER_BYTES or <uintptr_t>at % sizeof(int64_t) != 0:
            raise ValueError(f"the counters need {COUNTER_BYTES} bytes, aligned to 8")
        self._answers = <int64_t*>at
        self._connections = self._answers + 6
        self.limits = limits
        self.loop = loop
        self.poller = poller if poller is not None else Poller(loop, (), 0)
        self._max_pipelined = limits.max_pipelined
        self.budget = budget if budget is not None else Budget(limits.in_flight_bytes)
        self._keep_alive_s = limits.keep_alive_timeout_s
        self.bodies = BodyPool(constants.KEPT_BODY_BYTES)
        self.heads = HeadCache()
        self.now = loop.time()
        self.renew_buffer()

    def renew_buffer(self):
        # Two heads fit, so that there is always room after a started one.
        self.buffer = bytearray(max(constants.READ_BUFFER_BYTES, 2 * self.limits.max_head_bytes + constants.KIB))
        self.view = memoryview(self.buffer)
        self._data = PyByteArray_AS_STRING(self.buffer)

    def connections_to_check(self, set connections not None):
        cdef double since = self.now - self._keep_alive_s
        return [connection for connection in connections if not (<Connection>connection).awaits_request(since)]

    @property
    def in_flight_bytes(self):
        return self.budget.used

    @property
    def answers(self):
        return [self._answers[i] for i in range(6)]

    @property
    def connections_total(self):
        return self._connections[0]

    @connections_total.setter
    def connections_total(self, int64_t value):
        self._connections[0] = value


@cython.final
cdef class HttpExchange(Exchange):
    def __init__(self, Connection connection not None, RequestHead head not None, body, bint stable):
        self._connection = connection
        self.method = head.method
        self.arguments = head.arguments
        self.body = body
        self.body_is_stable = stable
        self.head = head
        self.arrived_ns = connection._began_ns
        self.handled_ns = connection._hub._read_ns

    @property
    def headers(self):
        return self.head.headers

    @property
    def accepted(self):
        return self.head.accepted

    cdef bytes field(self, bytes name):
        return self.head.field(name)

    cdef int _answer(self, int status, bytes content_type, object body, object fields) except -1:
        return (<Connection>self._connection).answer(self, status, content_type, body, fields)


cdef HttpExchange new_exchange(Connection connection, RequestHead head, object body, bint stable):
    # HttpExchange(...), without packing the arguments.
    cdef HttpExchange exchange = HttpExchange.__new__(HttpExchange)
    exchange._connection = connection
    exchange.method = head.method
    exchange.arguments = head.arguments
    exchange.body = body
    exchange.body_is_stable = stable
    exchange.head = head
    exchange.arrived_ns = connection._began_ns
    exchange.handled_ns = connection._hub._read_ns
    return exchange


cdef class Connection:
    def __init__(self, Shared hub not None):
        self._hub = hub
        self._since = hub.now
        self._pending = b""
        self._queue = []
        self._out = []

    # --- Called by the transport -------------------------------------------------------------------------------------

    def get_buffer(self, sizehint):
        cdef SizedUpload upload = self.sized_upload()
        cdef Shared hub = self._hub
        if upload is not None and upload.body is not None:
            if upload.body.has_room():
                return upload.body
            # The transport waits for a buffer, so the refusal, which writes and may close, runs in the next turn.
            self._closing = True
            hub.loop.call_soon(self._refuse_for_memory, upload.head)
            return hub.buffer
        cdef Py_ssize_t size = PyBytes_GET_SIZE(self._pending)
        if size == 0:           # the common case
            return hub.buffer
        memcpy(hub._data, PyBytes_AS_STRING(self._pending), size)
        return hub.view[size:]

    def buffer_updated(self, Py_ssize_t size):
        if self._closing:
            self._since = self._hub.now
            return
        cdef SizedUpload upload = self.sized_upload()
        cdef Py_ssize_t kept = PyBytes_GET_SIZE(self._pending)
        cdef int64_t now = monotonic_ns()
        invariant(0 <= size <= <Py_ssize_t>len(self._hub.buffer) - kept or upload is not None,
                  "the bytes that were read are in the buffer")
        self._hub._read_ns = now
        self._hub.poller.on_bytes(now)
        if upload is not None and upload.body is not None:
            self.written(upload, size)
        else:
            self._older = kept
            self._newer_ns = now
            if kept > 0:
                self._pending = b""
                self._resumed = True
            self.read(kept + size)

    # --- Bytes to requests -------------------------------------------------------------------------------------------

    cdef int read(self, Py_ssize_t end) except -1:
        # Takes the messages in the first `end` bytes of the hub's buffer; keeps the rest.
        cdef Shared hub = self._hub
        cdef const char* data = hub._data       # the buffer is not renewed before this returns
        cdef const char* found
        cdef Py_ssize_t start = 0
        cdef Py_ssize_t first
        cdef Py_ssize_t stop = 0
        cdef RequestHead head
        self._reading = True
        while start < end and not self._closing:
            # The common case comes first: a head and its body wholly in the buffer.
            if self._skip == 0 and self._upload is None:
                if self._out_size > joined_bytes:
                    self.write_out()
                if self.blocked():
                    self.keep(start, end)
                    self._transport.pause_reading()
                    break
                head = self.known(data + start, end - start)
                if head is not None:
                    self._began_ns = self._newer_ns if start >= self._older else self._older_ns
                    start = self.begin(head, start + PyBytes_GET_SIZE(head.raw), end)
                    continue
                first = start
                if data[start] == c"\r":
                    first = self._skip_empty_lines(start, end)
                    if first < 0:
                        break
                head = hub.heads.find(data + first, end - first, self._latest, &stop)
                if head is not None:
                    stop += first
                else:
                    found = <const char*>memmem(data + first, end - first, b"\r\n\r\n", 4)
                    if found == NULL:
                        self._keep_partial_head(start, first, end)
                        break
                    stop = found - data + 4
                    head = self._parse_head(data[first:stop])
                    if head is None:
                        break
                if head.raw is not None:
                    self._latest = head
                self._began_ns = self._newer_ns if first >= self._older else self._older_ns
                start = self.begin(head, stop, end)
            elif self._skip > 0:
                stop = min(start + self._skip, end)
                self._skip -= stop - start
                start = stop
            elif type(self._upload) is SizedUpload:
                start = self.feed_sized(<SizedUpload>self._upload, start, end)
            else:
                start = self._feed(self._upload, start, end)
        self._reading = self._more = self._resumed = False
        if self._out:
            self.flush()
        if hub._view_kept:
            hub._view_kept = False
            hub.renew_buffer()  # a kept view of a body must not show other clients' bytes
        return 0

    cdef int keep(self, Py_ssize_t start, Py_ssize_t end) except -1:
        # Keeps unread bytes and their arrival times.
        self._pending = self._hub._data[start:end]
        self._older = max(self._older - start, 0)
        return 0

    cdef RequestHead known(self, const char* data, Py_ssize_t size):
        # The last head, if `data` starts with the same bytes, because clients repeat theirs; else None. A head ends at
        # its first empty line, so equal bytes are the whole head.
        cdef RequestHead head = self._latest
        if head is not None:
            if PyBytes_GET_SIZE(head.raw) <= size:
                if memcmp(PyBytes_AS_STRING(head.raw), data, PyBytes_GET_SIZE(head.raw)) == 0:
                    return head
        return None

    cdef Py_ssize_t begin(self, RequestHead head, Py_ssize_t start, Py_ssize_t end) except -1:
        # Starts a message whose body begins at `start`; returns where the next one begins, or the end.
        if head.error is not None:
            return self._answer_early(head, head.error, start, end)
        if head.body_size < 0:
            return self._begin_chunked(head, start, end)
        if head.body_size > end - start:
            return self.begin_sized(head, start, end)
        return self.take_body(head, start, end)

    cdef Py_ssize_t take_body(self, RequestHead head, Py_ssize_t start, Py_ssize_t end) except -1:
        # Handles a message whose body is wholly in the buffer; returns where the next one begins.
        cdef Shared hub = self._hub
        cdef Py_ssize_t size = head.body_size
        cdef HttpExchange exchange
        cdef BorrowedBody body
        if hub.draining:
            self._more = start + size < end
        if size > 0 and head.coding is not None:
            self._inflate(head, memoryview(<bytes>hub._data[start:start + size]))
            return start + size
        if size == 0:
            exchange = new_exchange(self, head, b"", True)
            self.enqueue(exchange)
            self.handle(exchange)
            return start
        body = lend(hub.buffer, hub._data + start, size)
        exchange = new_exchange(self, head, body, False)
        self.enqueue(exchange)
        self.handle(exchange)
        if body.take_back():
            hub._view_kept = True
        return start + size

    # --- Bodies that come in parts: of announced length --------------------------------------------------------------

    cdef SizedUpload sized_upload(self):
        upload = self._upload
        return <SizedUpload>upload if type(upload) is SizedUpload else None

    cdef Py_ssize_t begin_sized(self, RequestHead head, Py_ssize_t start, Py_ssize_t end) except -1:
        cdef Shared hub = self._hub
        if hub.budget.count.spent():
            self._refuse_for_memory(head)
            return end
        self._upload = SizedUpload.begin(head, hub.now, self._began_ns)
        if start < end:
            return self.feed_sized(<SizedUpload>self._upload, start, end)
        if head.expects_continue:
            self._expect(self._upload)
        return end

    cdef Py_ssize_t feed_sized(self, SizedUpload upload, Py_ssize_t start, Py_ssize_t end) except -1:
        # Takes the first bytes of a body from the read buffer. Many clients send head and body separately: if all of
        # the body is here now, it is handled in the buffer; else it gets memory of its own.
        if upload.head.body_size <= end - start:
            self._upload = None
            self._began_ns = upload.arrived_ns
            return self.take_body(upload.head, start, end)
        try:
            upload.append(self._hub.bodies, self._hub.budget, self._hub._data + start, end - start)
        except MemoryError:
            self._refuse_for_memory(upload.head)
        return end

    cdef int written(self, SizedUpload upload, Py_ssize_t size) except -1:
        # This many bytes of a body were read from the socket straight into its memory.
        upload.written(size)
        self._reading = True
        if upload.complete:
            self.finish(upload, upload.body)
        elif self._hub.budget.count.spent():
            self._refuse_for_memory(upload.head)
        self._reading = False
        if self._out:
            self.flush()
        return 0

    cdef int finish(self, Upload upload, object body) except -1:
        # Handles a message whose body came in parts.
        cdef RequestHead head = upload.head
        cdef HttpExchange exchange
        self._upload = None
        self._began_ns = upload.arrived_ns
        if head.coding is not None and upload.received > 0:
            self._inflate(head, memoryview(body))
            return 0
        exchange = new_exchange(self, head, body, True)
        self.enqueue(exchange)
        self.handle(exchange)
        return 0

    cdef bint blocked(self) noexcept:
        # Whether no further request may start: too many are in flight, the client does not read its answers, or the
        # answers may take too much memory if it does not.
        cdef Py_ssize_t awaited = len(self._queue)
        if self._write_paused or awaited >= self._hub._max_pipelined:
            return True
        return awaited > 0 and (self._largest == 0 or awaited * self._largest >= max_awaited_bytes)

    # --- Requests to handlers ----------------------------------------------------------------------------------------

    cdef int enqueue(self, HttpExchange exchange) except -1:
        # Gives an exchange its place in the order of answers.
        self._queue.append(exchange)
        if not exchange.head.keep_alive:
            self._closing = True
        return 0

    cdef int handle(self, HttpExchange exchange) except -1:
        try:
            coroutine = exchange.head.handler(exchange)
        except ApiError as error:
            exchange.fail(error)
        except Exception:
            log.exception("a request could not be handled")
            exchange.fail(INTERNAL_ERROR)
        else:
            if coroutine is not None:
                self._spawn(exchange, coroutine)
        return 0

    # --- Answers -----------------------------------------------------------------------------------------------------

    cdef int answer(self, HttpExchange exchange, int status, bytes content_type, object body, object fields) except -1:
        # Sends an answer, or keeps it until all earlier requests are answered.
        cdef list queue = self._queue
        cdef HttpExchange first
        if not queue or <HttpExchange>queue[0] is not exchange:
            exchange.reply = (status, content_type, body, fields)
            return 0
        self.emit(exchange, status, content_type, body, fields)
        while queue:
            first = <HttpExchange>queue[0]
            if first.reply is None:
                break
            status, content_type, body, fields = first.reply
            self.emit(first, status, content_type, body, fields)
        if not self._reading:
            if queue:
                self.wake_up()          # more answers may come in this turn: one write for all
            else:
                self.flush()
                if self._pending or self._eof or self._upload is not None:
                    self.wake_up()
        return 0

    cdef int emit(self, HttpExchange exchange, int status, bytes content_type, object body, object fields) except -1:
        # Puts an answer into the outgoing bytes; the exchange is the queue's first and leaves it.
        cdef Py_ssize_t before = self._out_size
        try:
            # An unusual answer's head is rare: a connection that ends, an old client, compression.
            if (not exchange.head.plain or self._hub.draining or self._closing
                    or not self.emit_plain(exchange, status, content_type, body, fields)):
                self._emit_any(exchange, status, content_type, body, fields)
            if status == 200:       # errors are small whatever the answers are
                self._largest = max(self._largest, self._out_size - before)
        except Exception:
            log.exception("an answer could not be written")
            self._emit_any(exchange, 500, json_type, INTERNAL_ERROR.body(), ())
        return 0

    cdef bint emit_plain(self, HttpExchange exchange, int status, bytes content_type, object body,
                         object fields) except -1:
        # Returns False, and does nothing, if the answer is to be compressed or sent in pieces.
        cdef bint compressed = exchange.head.accepted is not None and status == 200
        cdef bytes whole = None
        cdef list views = None
        cdef Py_ssize_t size, most
        if type(body) is not list and type(body) is not tuple:
            if status == 200 and content_type == json_type and not fields:      # the common case
                most = min(exchange.head.compress_from - 1, joined_bytes) if compressed else joined_bytes
                whole = ok_json(body, most)
            body = (body,)
        if whole is None:
            size = size_of(body)
            if compressed and size >= exchange.head.compress_from:
                return False
            if size > joined_bytes and exchange.in_pieces:
                return False
            if size > joined_bytes:     # not copied
                views = [memoryview(part).cast("B") for part in body if memoryview(part).nbytes > 0]
            whole = reply(status, content_type, fields, b"", size, body if views is None else None)
        self._out.append(whole)
        self._out_size += PyBytes_GET_SIZE(whole)
        if views is not None:
            self._out.extend(views)
            self._out_size += size
        self.retire(exchange, status // 100)
        return True

    cdef int retire(self, HttpExchange exchange, int status_class) except -1:
        # The exchange's answer is in the outgoing bytes.
        cdef Shared hub = self._hub
        invariant(len(self._queue) > 0 and self._queue[0] is exchange, "answers leave in the order of requests")
        del self._queue[0]
        if 0 <= status_class <= 5:
            hub._answers[status_class] += 1
        self._since = hub.now
        exchange.body = b""
        return 0

    cdef int flush(self) except -1:
        # Hands the collected answers to the transport; after the last one, ends the connection gently.
        self.write_out()
        if self._closing and not self._queue:
            self._linger()
        return 0

    cdef int write_out(self) except -1:
        cdef list out = self._out
        if DEBUG:
            invariant(self._out_size == sum([len(part) for part in out]), "the outgoing size is that of its parts")
        if self._transport is not None and out:
            if len(out) == 1:
                self._transport.write(out[0])
            elif self._out_size <= joined_bytes:
                self._transport.write(b"".join(out))
            else:
                self._transport.writelines(out)
            self._hub.poller.on_answer()
        out.clear()
        self._out_size = 0
        return 0

    cdef int wake_up(self) except -1:
        if self._wake is None and self._transport is not None:
            self._wake = self._hub.loop.call_soon(self._resume)
        return 0

    def _resume(self):
        # Writes the answers collected in the last turn, and resumes reading if it was paused.
        self._wake = None
        if self._transport is None:
            return
        if self._out:
            self.flush()
        if self._closing or self.blocked():
            return
        if self._upload is not None and self._upload.wants_continue and not self._queue:
            self._send_continue(self._upload)
            self.write_out()
        if self._transport.is_reading():
            return
        cdef bytes pending = self._pending
        self._pending = b""
        if pending:
            self._hub._read_ns = monotonic_ns()
            memcpy(self._hub._data, PyBytes_AS_STRING(pending), PyBytes_GET_SIZE(pending))
            self.read(PyBytes_GET_SIZE(pending))
        if self._closing or self.blocked():
            return
        if not self._eof:
            self._transport.resume_reading()
        elif not self._queue:
            self._close()

    cdef bint awaits_request(self, double since) except -1:
        # Whether it waits only for its client's next request, and not since before `since`.
        if self._transport is None:
            return True
        return (not self._closing and self._since >= since and len(self._queue) == 0 and self._upload is None
                and self._skip == 0 and PyBytes_GET_SIZE(self._pending) == 0 and self._stuck_size == 0
                and self._transport.get_write_buffer_size() == 0)

    def _collect(self, part not None):
        self._out.append(part)
        self._out_size += len(part)

    # --- For the subclass --------------------------------------------------------------------------------------------

    def _keep_head(self, Py_ssize_t start, Py_ssize_t begins, Py_ssize_t end):
        # Keeps a started head, which begins after empty lines, and the arrival time of its first byte.
        if begins >= self._older:
            self._older_ns = self._newer_ns
        self.keep(start, end)
        self._older = end - start

    def _enqueue(self, HttpExchange exchange not None):
        self.enqueue(exchange)

    def _handle(self, HttpExchange exchange not None):
        self.handle(exchange)

    def _blocked(self):
        return self.blocked()

    def _retire(self, HttpExchange exchange not None, int status_class):
        self.retire(exchange, status_class)

    def _finish(self, Upload upload not None, body):
        self.finish(upload, body)

    def _flush(self):
        self.flush()

    def _write_out(self):
        self.write_out()

    def _wake_up(self):
        self.wake_up()
