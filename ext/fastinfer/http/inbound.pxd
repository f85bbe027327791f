from libc.stdint cimport int64_t

from fastinfer.http.exchange cimport BorrowedBody, RequestHead
from fastinfer.http.loop_state cimport LoopState
from fastinfer.http.upload cimport SizedUpload, Upload


cdef class Inbound:
    cdef LoopState hub
    # The message that `next` found.
    cdef readonly RequestHead head
    cdef readonly object body           # bytes, BorrowedBody or Body
    cdef readonly bint body_is_stable   # it may be kept
    cdef readonly object error          # an ApiError that is the answer, or None: the handler answers
    # CLOCK_MONOTONIC: when its first byte came, and when its last bytes were read.
    cdef readonly int64_t arrived_ns
    cdef readonly int64_t read_ns
    # Between messages.
    cdef readonly bint ended            # no further message is taken
    cdef readonly Upload upload         # SizedUpload, ChunkedUpload or None: a body that is not wholly in the buffer
    cdef readonly Py_ssize_t skip       # bytes of a refused body, still to be discarded; and ...
    cdef readonly Upload skipped        # ... the progress of those that came
    cdef readonly bytes pending         # a started head; while reading is paused, all bytes that were read
    cdef public double since            # when the wait for the client began; at the end: when it last sent
    # The bytes that were read: hub.data[at:end]. Of them, or of `pending`, the first `older` came at older_ns and the
    # others at newer_ns.
    cdef Py_ssize_t at
    cdef Py_ssize_t end
    cdef Py_ssize_t older
    cdef int64_t older_ns
    cdef int64_t newer_ns
    cdef bint resumed                   # they begin with a head that was started earlier, ...
    cdef Py_ssize_t checked             # ... of which this many bytes are checked
    cdef RequestHead latest             # the head of the last request, if it is cached
    cdef BorrowedBody lent              # the body of the message, if it is in the buffer

    # Where the transport puts the next bytes; None if there is no memory for them.
    cpdef room(self)
    # This many bytes are in the room.
    cpdef int received(self, Py_ssize_t size, int64_t now_ns) except -1
    # Takes the next message; False: it is not whole, or no further one is taken.
    cpdef bint next(self) except -1
    # The handler of the message has returned.
    cpdef int handled(self) except -1
    # Whether no byte of a further message was read.
    cpdef bint is_between_messages(self) noexcept
    # The message that has begun, or the next one, is the last, and this ApiError its answer.
    cpdef int refuse(self, error) except -1
    # Keeps the bytes that are not taken yet, because reading is paused; takes them up again (False: there are none).
    cpdef int pause(self) except -1
    cpdef bint resume(self) except -1
    # Takes no further message, and discards what was read.
    cpdef int stop(self) except -1

    cdef int discard(self) except -1
    cdef bint next_head(self) except -1
    cdef RequestHead known(self, const char* data, Py_ssize_t size)
    cdef Py_ssize_t skip_empty_lines(self) except -2
    cdef int keep(self, Py_ssize_t head, Py_ssize_t checked) except -1
    cdef bint keep_partial_head(self, Py_ssize_t head) except -1
    cdef bint begin(self, RequestHead head, Py_ssize_t head_at) except -1
    cdef bint answer_early(self, RequestHead head) except -1
    cdef bint begin_sized(self, RequestHead head) except -1
    cdef bint begin_chunked(self, RequestHead head) except -1
    cdef bint feed_sized(self, SizedUpload upload) except -1
    cdef bint feed_chunked(self, Upload upload) except -1
    cdef bint take_body(self, RequestHead head) except -1
    cdef bint finish(self, Upload upload, object body) except -1
    cdef bint found(self, RequestHead head, object body, bint stable) except -1
    cdef bint fail(self, error, RequestHead head) except -1
    cdef bint fail_for_memory(self, RequestHead head) except -1
    cdef SizedUpload sized_upload(self)
