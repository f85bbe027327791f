# One direction of an HTTP/1.1 connection: answers, in any order, to bytes for the client in the order of its requests.
# Lives here: that order, what is collected for one write, compressed answers and those in pieces. Does not: the socket
# and timers (connection.pyx), an answer's head (reply.pyx), zlib (coded.py).
#
# A message is answered once. `exchanges` holds the unanswered ones, in order; an answer that comes too early waits in
# its exchange, and only the oldest one is ever written.
#
#     Exchange.respond -> answer (keeps the order) -> emit -> emit_plain, or emit_any (rare) -> retire ... take
#
# Loop's thread only. It keeps the buffers of an answer alive until its owner has taken them.

cimport cython

from fastinfer.base.debug cimport DEBUG, invariant
from fastinfer.base.lists cimport append
from fastinfer.http.exchange cimport Exchange, RequestHead
from fastinfer.http.loop_state cimport LoopState
from fastinfer.http.reply cimport ok_json, reply, size_of

import logging

from fastinfer.base import limits as constants
from fastinfer.base.errors import ApiError
from fastinfer.http.coded import deflate_apart
from fastinfer.http.compression import deflate
from fastinfer.http.exchange import JSON
from fastinfer.http.reply import reply_head

log = logging.getLogger(__name__)

# Answers are copied together up to this; larger ones are not copied.
JOINED_BYTES = 64 * constants.KIB
INTERNAL_ERROR = ApiError(500, "internal error")

cdef enum:
    FEW = 64    # places that may lie unused before the exchanges

cdef Py_ssize_t joined_bytes = JOINED_BYTES
cdef Py_ssize_t max_deflated_here = 64 * constants.KIB
cdef Py_ssize_t max_awaited_bytes = constants.MAX_AWAITED_ANSWER_BYTES
cdef bytes json_type = JSON


@cython.final
cdef class HttpExchange(Exchange):
    def __init__(self, Outbound outbound not None, RequestHead head not None, body, bint stable):
        self._connection = outbound
        self.method = head.method
        self.arguments = head.arguments
        self.body = body
        self.body_is_stable = stable
        self.head = head

    @property
    def headers(self):
        return self.head.headers

    @property
    def accepted(self):
        return self.head.accepted

    cdef bytes field(self, bytes name):
        return self.head.field(name)

    cdef int _answer(self, int status, bytes content_type, object body, object fields) except -1:
        return (<Outbound>self._connection).answer(self, status, content_type, body, fields)


cdef class Sink:
    cpdef object on_answers(self):
        return None

    cpdef object on_pieces(self):
        return None

    cpdef bint has_ended(self) noexcept:
        return False

    cpdef bint ends_now(self) except -1:
        return self.has_ended()


@cython.final
cdef class Outbound:
    def __init__(self, LoopState hub not None, Sink sink not None):
        self.hub = hub
        self.sink = sink
        self.exchanges = []
        self.parts = []
        self.pieces = []

    @property
    def queue(self):
        return self.exchanges[self.first:self.end]

    def close(self):
        # The client is gone. Returns the exchanges that are not answered.
        cdef HttpExchange exchange
        cdef list queue = self.queue
        self.exchanges = []
        self.first = self.end = 0
        self.only = None
        self.parts = []
        self.size = 0
        self.pieces = []
        self.sink = None        # ends the cycle of references
        for exchange in queue:
            exchange.body = b""
            exchange.answered = True
            exchange.reply = None
        return queue

    cpdef int expect(self, HttpExchange exchange) except -1:
        append(self.exchanges, self.end, exchange)
        self.end += 1
        return 0

    cdef Py_ssize_t awaited(self) noexcept:
        return self.end - self.first

    cdef HttpExchange oldest(self):
        return <HttpExchange>self.exchanges[self.first]

    cpdef bint is_full(self) noexcept:
        cdef Py_ssize_t awaited = self.awaited()
        if awaited >= self.hub.max_pipelined:
            return True
        return awaited > 0 and (self.largest == 0 or awaited * self.largest >= max_awaited_bytes)

    # --- Outgoing bytes ----------------------------------------------------------------------------------------------

    cpdef object take(self):
        cdef object whole = self.only
        cdef list parts
        if whole is not None:       # the common case
            self.only = None
            self.size = 0
            return whole
        if self.size == 0:
            return None
        parts = self.parts
        if DEBUG:
            invariant(self.size == sum([len(part) for part in parts]), "the outgoing size is that of its parts")
        self.parts = []
        whole = b"".join(parts) if self.size <= joined_bytes else parts
        self.size = 0
        return whole

    cdef int add(self, object part) except -1:
        # A view has items of one byte.
        if self.size == 0:
            self.only = part
        else:
            if self.only is not None:
                self.parts.append(self.only)
                self.only = None
            self.parts.append(part)
        self.size += len(part)
        return 0

    # --- Answers -----------------------------------------------------------------------------------------------------

    cdef int answer(self, HttpExchange exchange, int status, bytes content_type, object body, object fields) except -1:
        if self.awaited() == 0 or self.oldest() is not exchange:
            exchange.reply = (status, content_type, body, fields)
            return 0
        self.emit(exchange, status, content_type, body, fields)
        self.emit_held()
        if not self.collecting:
            self.sink.on_answers()
        return 0

    cdef int emit_held(self) except -1:
        # The answers that waited for their turn.
        cdef HttpExchange first
        while self.awaited() > 0:
            first = self.oldest()
            if first.reply is None:
                break
            status, content_type, body, fields = first.reply
            self.emit(first, status, content_type, body, fields)
        return 0

    cdef int emit(self, HttpExchange exchange, int status, bytes content_type, object body, object fields) except -1:
        # Puts an answer into the outgoing bytes; the exchange is the oldest one, and leaves.
        cdef Py_ssize_t before = self.size
        try:
            # An unusual answer's head is rare: a connection that ends, an old client, compression.
            if (not exchange.head.plain or self.hub.draining or self.sink.has_ended()
                    or not self.emit_plain(exchange, status, content_type, body, fields)):
                self.emit_any(exchange, status, content_type, body, fields)
            if status == 200:       # errors are small whatever the answers are
                self.largest = max(self.largest, self.size - before)
        except Exception:
            log.exception("an answer could not be written")
            self.emit_any(exchange, 500, json_type, INTERNAL_ERROR.body(), ())
        return 0

    cdef bint emit_plain(self, HttpExchange exchange, int status, bytes content_type, object body,
                         object fields) except -1:
        # Returns False, and does nothing, if the answer is to be compressed or sent in pieces.
        cdef bint compressed = exchange.head.accepted is not None and status == 200
        cdef bytes whole = None
        cdef list views = None
        cdef Py_ssize_t size = 0
        cdef Py_ssize_t most
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
                views = views_of(body)
            whole = reply(status, content_type, fields, b"", size, body if views is None else None)
        self.add(whole)
        if views is not None:
            for part in views:
                self.add(part)
        self.retire(exchange, status // 100)
        return True

    cdef int emit_any(self, HttpExchange exchange, int status, bytes content_type, object body,
                      object fields) except -1:
        cdef RequestHead head = exchange.head
        cdef list parts = views_of(body if type(body) is list or type(body) is tuple else (body,))
        cdef Py_ssize_t size = sum([len(part) for part in parts])
        cdef bytes coding = head.accepted
        cdef bint last
        if coding is not None and size >= head.compress_from and status == 200 and not exchange.packed:
            exchange.packed = True
            fields = (*fields, (b"Content-Encoding", coding), (b"Vary", b"Accept-Encoding"))
            if size > max_deflated_here:        # it stays, as unanswered
                exchange.reply = None
                exchange.answered = False
                deflate_apart(self.hub.pieces, exchange, coding, parts, content_type, fields)
                return 0
            parts = [memoryview(deflate(coding, *parts))]
            size = len(parts[0])
        last = self.awaited() == 1 and self.sink.ends_now()
        whole = reply_head(status, content_type, size, fields, last, head.version_10)
        if head.method == "HEAD":
            self.add(whole)
        elif exchange.in_pieces and size > joined_bytes:        # it stays until the last piece
            exchange.reply = None
            self.largest = max(self.largest, size)
            self.add(whole)
            self.pieces = [part[at:at + joined_bytes] for part in parts for at in range(0, len(part), joined_bytes)]
            self.pieces.reverse()
            self.sink.on_pieces()
            return 0
        elif size <= joined_bytes:
            self.add(b"".join((whole, *parts)))
        else:       # large parts are not copied
            self.add(whole)
            for part in parts:
                self.add(part)
        self.retire(exchange, status // 100)
        return 0

    cdef int retire(self, HttpExchange exchange, int status_class) except -1:
        # The exchange's answer is in the outgoing bytes.
        invariant(self.awaited() > 0 and self.oldest() is exchange, "answers leave in the order of requests")
        self.exchanges[self.first] = None
        self.first += 1
        if self.first == self.end:
            self.first = self.end = 0
        elif self.first > FEW:
            del self.exchanges[:self.first]
            self.end -= self.first
            self.first = 0
        if 0 <= status_class <= 5:
            self.hub.answers_by_class[status_class] += 1
        exchange.body = b""
        return 0

    # --- An answer in pieces -----------------------------------------------------------------------------------------

    def next_piece(self):
        return self.pieces.pop()

    def end_pieces(self):
        # The last piece is written.
        self.retire(self.oldest(), 2)
        self.emit_held()


cdef list views_of(object parts):
    return [memoryview(part).cast("B") for part in parts if memoryview(part).nbytes > 0]
