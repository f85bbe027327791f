# One direction of an HTTP/1.1 connection: bytes from the client to messages, which are a head and a body, or a head and
# the error that answers it. Lives here: where a message begins and ends, bodies that come in parts, refusals. Does not:
# the socket, timers, handlers (connection.pyx), the grammar of a head (head.py) and of chunks (chunked.py).
#
# Its owner asks for room, reports how many bytes came, and then takes one message after the other:
#
#     room() -> received() -> next(), handled(), next(), handled(), ... until next() is false
#
# All connections of a loop read into one buffer. Nothing of it outlives the callback in which it was read: a started
# head is copied (`pending`), a body that is not wholly in it gets memory of its own (`upload`), and one that is, is
# lent until `handled`. Loop's thread only.

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t
from libc.string cimport memcmp, memcpy

from fastinfer.base.debug cimport invariant
from fastinfer.http.exchange cimport RequestHead, lend
from fastinfer.http.loop_state cimport LoopState
from fastinfer.http.upload cimport SizedUpload, Upload
from fastinfer.native.job cimport monotonic_ns

import logging

from fastinfer.base import limits as constants
from fastinfer.base.errors import ApiError
from fastinfer.http.chunked import ChunkedUpload
from fastinfer.http.head import check_partial, parse
from fastinfer.http.upload import new_body

cdef extern from "<string.h>" nogil:
    const void* memmem(const void* haystack, size_t size, const void* needle, size_t needle_size)

log = logging.getLogger(__name__)

cdef Py_ssize_t max_empty_lines = constants.MAX_LEADING_EMPTY_LINES
cdef Py_ssize_t max_skipped_bytes = constants.MAX_SKIPPED_BODY_BYTES


cdef RequestHead malformed_head(str method):
    # Stands for a head that is malformed.
    cdef RequestHead head = RequestHead(method, False, {})
    head.keep_alive = False
    return head


cdef RequestHead MALFORMED = malformed_head("GET")
cdef RequestHead MALFORMED_HEAD = malformed_head("HEAD")


cdef RequestHead stand_in(bytes raw):
    # An answer to HEAD never has a body.
    return MALFORMED_HEAD if raw.startswith(b"HEAD ") else MALFORMED


@cython.final
cdef class Inbound:
    def __init__(self, LoopState hub not None):
        self.hub = hub
        self.since = hub.now
        self.pending = b""

    # --- Bytes -------------------------------------------------------------------------------------------------------

    cpdef room(self):
        cdef SizedUpload upload = self.sized_upload()
        cdef LoopState hub = self.hub
        cdef Py_ssize_t size
        if upload is not None and upload.body is not None:
            return upload.body if upload.body.has_room() else None
        size = PyBytes_GET_SIZE(self.pending)
        if size == 0:           # the common case
            return hub.buffer
        memcpy(hub.data, PyBytes_AS_STRING(self.pending), size)
        return hub.view[size:]

    cpdef int received(self, Py_ssize_t size, int64_t now_ns) except -1:
        cdef SizedUpload upload
        cdef Py_ssize_t kept
        if self.ended:
            self.since = self.hub.now
            return 0
        self.read_ns = now_ns
        upload = self.sized_upload()
        if upload is not None and upload.body is not None:
            upload.written(size)
            return 0
        kept = PyBytes_GET_SIZE(self.pending)
        invariant(0 <= size <= <Py_ssize_t>len(self.hub.buffer) - kept, "the bytes that were read are in the buffer")
        self.older = kept
        self.newer_ns = now_ns
        self.resumed = kept > 0
        if kept > 0:
            self.pending = b""
        self.end = kept + size
        self.at = 0
        if self.skip > 0:
            self.discard()
        return 0

    cdef int discard(self) except -1:
        cdef Py_ssize_t size = min(self.skip, self.end - self.at)
        self.at += size
        self.skip -= size
        self.skipped.received += size
        return 0

    cpdef int pause(self) except -1:
        self.pending = self.hub.data[self.at:self.end]
        self.older = max(self.older - self.at, 0)
        self.at = self.end = 0
        return 0

    cpdef bint resume(self) except -1:
        cdef bytes pending = self.pending
        if not pending:
            return False
        self.read_ns = monotonic_ns()
        memcpy(self.hub.data, PyBytes_AS_STRING(pending), PyBytes_GET_SIZE(pending))
        self.pending = b""
        self.resumed = False
        self.at = 0
        self.end = PyBytes_GET_SIZE(pending)
        return True

    cpdef int stop(self) except -1:
        self.ended = True
        self.pending = b""
        self.upload = None
        self.at = self.end = 0
        return 0

    # --- Messages ----------------------------------------------------------------------------------------------------

    cpdef bint next(self) except -1:
        if self.ended:
            return False
        if self.upload is None:
            return self.at < self.end and self.next_head()
        if type(self.upload) is SizedUpload:
            return self.feed_sized(<SizedUpload>self.upload)
        return self.feed_chunked(self.upload)

    cpdef int handled(self) except -1:
        if self.lent is not None:
            if self.lent.take_back():
                self.hub.view_kept = True
            self.lent = None
        self.body = None
        self.error = None       # its traceback may hold the body
        return 0

    cpdef bint is_between_messages(self) noexcept:
        return self.at == self.end and self.upload is None and self.skip == 0 and PyBytes_GET_SIZE(self.pending) == 0

    def has_started_head(self):
        return len(self.pending.strip(b"\r\n")) > 0

    cpdef int refuse(self, error) except -1:
        cdef Upload upload = self.upload
        if upload is not None:
            self.arrived_ns = upload.arrived_ns
            self.fail(error, upload.head)
        else:
            self.arrived_ns = self.older_ns
            self.fail(error, stand_in(self.pending.lstrip(b"\r\n")))
        return 0

    cdef bint found(self, RequestHead head, object body, bint stable) except -1:
        self.head = head
        self.body = body
        self.body_is_stable = stable
        self.error = None
        if not head.keep_alive:
            self.ended = True
            self.at = self.end
        return True

    cdef bint fail(self, error, RequestHead head) except -1:
        # The end of the message is unknown, so it is the last one.
        log.debug("closing a connection after status %d: %s", error.status, error.message)
        self.stop()
        self.found(head, b"", True)
        self.error = error
        return True

    cdef bint fail_for_memory(self, RequestHead head) except -1:
        return self.fail(ApiError(503, "too many bytes of requests are in flight", retry_after_s=1), head)

    # --- Heads -------------------------------------------------------------------------------------------------------

    cdef bint next_head(self) except -1:
        cdef LoopState hub = self.hub
        cdef const char* data = hub.data
        cdef const char* empty_line
        cdef Py_ssize_t head_at = self.at
        cdef Py_ssize_t size = 0
        cdef RequestHead head = self.known(data + head_at, self.end - head_at)
        cdef bytes raw
        if head is not None:        # the common case
            self.at += PyBytes_GET_SIZE(head.raw)
            return self.begin(head, head_at)
        if data[head_at] == c"\r":
            head_at = self.skip_empty_lines()
            if head_at < 0:
                return self.ended
        head = hub.heads.find(data + head_at, self.end - head_at, self.latest, &size)
        if head is None:
            empty_line = <const char*>memmem(data + head_at, self.end - head_at, b"\r\n\r\n", 4)
            if empty_line == NULL:
                return self.keep_partial_head(head_at)
            size = empty_line + 4 - data - head_at
            raw = data[head_at:head_at + size]
            try:
                if size > hub.limits.max_head_bytes:
                    check_partial(raw, 0, hub.limits)  # raises: the size is wrong, or an earlier byte
                head = parse(raw, hub.limits, hub.router)
            except ApiError as error:
                return self.fail(error, stand_in(raw))
            if head.error is None:
                hub.heads.remember(raw, head)
        if head.raw is not None:
            self.latest = head
        self.at = head_at + size
        return self.begin(head, head_at)

    cdef RequestHead known(self, const char* data, Py_ssize_t size):
        # The last head, if `data` starts with the same bytes, because clients repeat theirs; else None. A head ends at
        # its first empty line, so equal bytes are the whole head.
        cdef RequestHead head = self.latest
        if head is not None:
            if PyBytes_GET_SIZE(head.raw) <= size:
                if memcmp(PyBytes_AS_STRING(head.raw), data, PyBytes_GET_SIZE(head.raw)) == 0:
                    return head
        return None

    cdef Py_ssize_t skip_empty_lines(self) except -2:
        # Where the request line begins; -1 if it has not come, or the client sends too many empty lines.
        cdef const char* data = self.hub.data
        cdef Py_ssize_t at = self.at
        while at + 1 < self.end and data[at] == c"\r" and data[at + 1] == c"\n":
            at += 2
        if (at - self.at) // 2 > max_empty_lines:
            self.fail(ApiError(400, "malformed request line"), MALFORMED)
            return -1
        if at == self.end or (at + 1 == self.end and data[at] == c"\r"):
            self.keep(at, 0)
            return -1
        return at

    cdef bint keep_partial_head(self, Py_ssize_t head_at) except -1:
        # Keeps a head that is not whole, or refuses it as soon as it cannot become valid.
        cdef bint begins = self.at > 0 or not self.resumed
        cdef bytes raw = self.hub.data[head_at:self.end]
        try:
            checked = check_partial(raw, 0 if begins else self.checked, self.hub.limits)
        except ApiError as error:
            return self.fail(error, stand_in(raw))
        self.keep(head_at, checked)
        return False

    cdef int keep(self, Py_ssize_t head_at, Py_ssize_t checked) except -1:
        # Keeps a started head, which begins at `head_at` after empty lines; its timeout begins with the first of them.
        if self.at > 0 or not self.resumed:
            self.since = self.hub.now
        if head_at >= self.older:
            self.older_ns = self.newer_ns
        self.checked = checked
        self.pending = self.hub.data[self.at:self.end]
        self.older = self.end - self.at
        self.at = self.end = 0
        return 0

    cdef bint begin(self, RequestHead head, Py_ssize_t head_at) except -1:
        # Begins a message whose head is parsed.
        self.arrived_ns = self.newer_ns if head_at >= self.older else self.older_ns
        if head.error is not None:
            return self.answer_early(head)
        if head.body_size < 0:
            return self.begin_chunked(head)
        if head.body_size > self.end - self.at:
            return self.begin_sized(head)
        return self.take_body(head)

    cdef bint answer_early(self, RequestHead head) except -1:
        # A message that is answered before its body comes. A small body that is sure to come is discarded; else the
        # connection ends.
        cdef Py_ssize_t size = head.body_size
        if not 0 <= size <= max_skipped_bytes or head.expects_continue or not head.keep_alive:
            return self.fail(head.error, head)
        self.skip = size
        if size > 0:
            self.skipped = Upload(head, self.hub.now, self.arrived_ns)
            self.discard()
        self.found(head, b"", True)
        self.error = head.error
        return True

    # --- Bodies ------------------------------------------------------------------------------------------------------

    cdef bint take_body(self, RequestHead head) except -1:
        # The body is wholly in the buffer.
        cdef LoopState hub = self.hub
        cdef Py_ssize_t at = self.at
        cdef Py_ssize_t size = head.body_size
        self.at += size
        if size == 0:
            return self.found(head, b"", True)
        if head.coding is not None:
            return self.found(head, <bytes>hub.data[at:at + size], True)
        self.lent = lend(hub.buffer, hub.data + at, size)
        return self.found(head, self.lent, False)

    cdef SizedUpload sized_upload(self):
        upload = self.upload
        return <SizedUpload>upload if type(upload) is SizedUpload else None

    cdef bint begin_sized(self, RequestHead head) except -1:
        if self.hub.budget.count.spent():
            return self.fail_for_memory(head)
        self.upload = SizedUpload.begin(head, self.hub.now, self.arrived_ns)
        self.upload.wants_continue = head.expects_continue and self.at == self.end
        return self.feed_sized(<SizedUpload>self.upload)

    cdef bint feed_sized(self, SizedUpload upload) except -1:
        # Many clients send head and body separately: if all of the body is in the buffer now, it is taken there; else
        # it gets memory of its own, into which the transport writes what follows.
        if upload.body is not None:
            if upload.complete:
                return self.finish(upload, upload.body)
            if self.hub.budget.count.spent():
                return self.fail_for_memory(upload.head)
            return False
        if self.at == self.end:
            return False
        if upload.head.body_size <= self.end - self.at:
            self.upload = None
            self.arrived_ns = upload.arrived_ns
            return self.take_body(upload.head)
        try:
            upload.append(self.hub.bodies, self.hub.budget, self.hub.data + self.at, self.end - self.at)
        except MemoryError:
            return self.fail_for_memory(upload.head)
        self.at = self.end
        return False

    cdef bint begin_chunked(self, RequestHead head) except -1:
        cdef LoopState hub = self.hub
        if hub.budget.count.spent():
            return self.fail_for_memory(head)
        body = new_body(hub.bodies, hub.budget, head.max_body_bytes)
        self.upload = ChunkedUpload(head, hub.now, self.arrived_ns, hub.limits, body)
        self.upload.wants_continue = head.expects_continue and self.at == self.end
        return self.feed_chunked(self.upload)

    cdef bint feed_chunked(self, Upload upload) except -1:
        try:
            self.at = (<object>upload).feed(self.hub.buffer, self.at, self.end)
        except ApiError as error:
            return self.fail(error, upload.head)
        except MemoryError:
            return self.fail_for_memory(upload.head)
        return upload.complete and self.finish(upload, (<object>upload).body())

    cdef bint finish(self, Upload upload, object body) except -1:
        # A body that came in parts is whole.
        self.upload = None
        self.arrived_ns = upload.arrived_ns
        return self.found(upload.head, body, True)
