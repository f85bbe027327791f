# One HTTP request and its answer: see exchange.pxd.

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo

from fastinfer.native.job cimport monotonic_ns

import logging
from collections.abc import Sequence

from fastinfer.base.errors import ApiError

JSON = b"application/json"
Fields = Sequence[tuple[bytes, bytes]]

log = logging.getLogger(__name__)


@cython.final
cdef class Head:
    def __init__(self, str method not None, bint version_10, dict headers not None):
        self.method = method
        self.version_10 = version_10
        self.headers = headers
        self.keep_alive = not version_10
        self.arguments = ()
        self.max_body_bytes = 0


@cython.final
@cython.freelist(16)
cdef class BorrowedBody:
    def __len__(self):
        return self._size

    def __getbuffer__(self, Py_buffer* view, int flags):
        if self._data == NULL:
            raise ValueError("a borrowed body is valid only until its handler returns")
        PyBuffer_FillInfo(view, self, <void*>self._data, self._size, 1, flags)
        self._views += 1

    def __releasebuffer__(self, Py_buffer* view):
        self._views -= 1

    cdef bint take_back(self) noexcept:
        self._data = NULL
        return self._views != 0


cdef BorrowedBody lend(bytearray buffer, const char* data, Py_ssize_t size):
    cdef BorrowedBody body = BorrowedBody.__new__(BorrowedBody)
    body._buffer = buffer
    body._data = data
    body._size = size
    return body


cdef class Exchange:
    def __init__(self, connection, str method not None, tuple arguments not None, headers not None, body,
                 bint body_is_stable):
        self._connection = connection
        self.method = method
        self.arguments = arguments
        self.headers = headers
        self.body = body
        self.body_is_stable = body_is_stable
        self.arrived_ns = self.handled_ns = monotonic_ns()

    cpdef respond(self, int status, body=b"", bytes content_type=JSON, fields=()):
        if self.answered:
            return
        self.answered = True
        self.abandoned = None
        self._answer(status, content_type, body, fields)

    @property
    def accepted(self):
        return None

    cpdef fail(self, error):
        self.respond(error.status, error.body(), JSON, error.headers)

    cdef int _answer(self, int status, bytes content_type, object body, object fields) except -1:
        self._connection.answer(self, status, content_type, body, fields)
        return 0

    def guard(self, step, *arguments):
        try:
            step(*arguments)
        except ApiError as error:
            self.fail(error)
        except Exception:
            log.exception("a request could not be answered")
            self.fail(ApiError(500, "internal error"))
