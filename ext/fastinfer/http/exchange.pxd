from libc.stdint cimport int64_t


cdef class RequestHead:
    # A parsed request head (http/head.py). Immutable after parsing: equal heads share one.
    # While it is cached (head_cache), else None: its bytes, and where its lines are in them.
    cdef bytes raw
    cdef bytes lines
    # If it differs from a cached head only in values: that head, and its own bytes. Else None.
    cdef RequestHead cached_head
    cdef bytes own_bytes
    cdef dict _fields                   # by lower-case name; made of `own_bytes` on demand
    # Framing and the client.
    cdef readonly str method
    cdef readonly bint version_10
    cdef public Py_ssize_t body_size    # CHUNKED (-1) if its size is not announced
    cdef public bint keep_alive
    cdef public bint expects_continue
    cdef public bytes coding            # of the body: gzip, deflate or None
    cdef public bytes accepted          # of the answer: gzip, deflate or None
    cdef public Py_ssize_t compress_from    # the smallest answer that is compressed, if one is accepted
    cdef public bint plain              # HTTP/1.1, and nothing unusual in its answer's head: the common case
    # The route.
    cdef public object error            # ApiError that is the answer, or None
    cdef public object handler
    cdef public tuple arguments
    cdef public object max_body_bytes

    # The value of a field by its lower-case name, or None.
    cdef bytes field(self, bytes name)


cdef class BorrowedBody:
    # A body in the connections' shared read buffer, until its handler returns. Offers the buffer protocol, read-only.
    cdef bytearray _buffer              # the owner; a view keeps the buffer alive
    cdef const char* _data              # NULL after it was taken back
    cdef Py_ssize_t _size
    cdef Py_ssize_t _views              # the number of open views

    # Ends the loan; returns whether a view of the buffer is still open: then the buffer must not be read into.
    cdef bint take_back(self) noexcept


cdef BorrowedBody lend(bytearray buffer, const char* data, Py_ssize_t size)


cdef class Exchange:
    cdef object _connection
    cdef readonly str method
    cdef readonly tuple arguments
    cdef object _headers                # of the base class
    cdef public object body
    cdef public bint body_is_stable
    cdef public int64_t arrived_ns      # CLOCK_MONOTONIC when its first byte came
    cdef public int64_t handled_ns      # the same at the start of the callback that called its handler
    cdef public object on_client_gone
    cdef public bint answered
    cdef public bint packed             # its answer was compressed
    cdef public bint in_pieces          # its answer is sent in pieces, with a turn of the loop between

    # The value of a header field by its lower-case name, or None.
    cdef bytes field(self, bytes name)
    cpdef respond(self, int status, body=*, bytes content_type=*, fields=*)
    cpdef fail(self, error)
    # Sends the answer: calls the connection's `answer`.
    cdef int _answer(self, int status, bytes content_type, object body, object fields) except -1
