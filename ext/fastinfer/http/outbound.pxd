from fastinfer.http.exchange cimport Exchange, RequestHead
from fastinfer.http.loop_state cimport LoopState


cdef class HttpExchange(Exchange):
    cdef readonly RequestHead head
    cdef public bint inflating          # its body is still being inflated
    cdef public tuple reply             # (status, content_type, body, fields) if the answer came before its turn


# What an Outbound needs of its owner.
cdef class Sink:
    # There are outgoing bytes, and no call that collects them is under way.
    cpdef object on_answers(self)
    # There are pieces.
    cpdef object on_pieces(self)
    # Whether no further request is read.
    cpdef bint has_ended(self) noexcept
    # Whether to end the connection with the answer that is about to be written; then no further request is read.
    cpdef bint ends_now(self) except -1


cdef class Outbound:
    cdef LoopState hub
    cdef Sink sink
    cdef list exchanges                 # list[HttpExchange]: from `first` to `end`, not answered yet, in order
    cdef Py_ssize_t first
    cdef Py_ssize_t end
    cdef object only                    # bytes | memoryview: all outgoing bytes, or None: they are in `parts`
    cdef list parts                     # list[bytes | memoryview]
    cdef readonly Py_ssize_t size       # of the outgoing bytes
    cdef public bint collecting         # answers are collected: `on_answers` is not called
    cdef readonly list pieces           # list[memoryview]: the rest of an answer that is sent in pieces, last one first
    cdef Py_ssize_t largest             # bytes of the largest answer so far; 0: there was none yet

    # Gives an exchange its place in the order of answers.
    cpdef int expect(self, HttpExchange exchange) except -1
    # How many are not answered yet.
    cdef Py_ssize_t awaited(self) noexcept
    # Takes the answer of an exchange, in any order.
    cdef int answer(self, HttpExchange exchange, int status, bytes content_type, object body, object fields) except -1
    # Whether no further request may start: too many are unanswered, or their answers may take too much memory if the
    # client does not read them.
    cpdef bint is_full(self) noexcept
    # The outgoing bytes: bytes, a memoryview, a list of both, or None.
    cpdef object take(self)
    cdef int add(self, object part) except -1

    cdef int emit(self, HttpExchange exchange, int status, bytes content_type, object body, object fields) except -1
    cdef bint emit_plain(self, HttpExchange exchange, int status, bytes content_type, object body,
                         object fields) except -1
    cdef int emit_any(self, HttpExchange exchange, int status, bytes content_type, object body,
                      object fields) except -1
    cdef HttpExchange oldest(self)
    cdef int emit_held(self) except -1
    cdef int retire(self, HttpExchange exchange, int status_class) except -1
