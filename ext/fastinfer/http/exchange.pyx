# An HTTP request and its answer: its parsed head, its body, and the way to answer it. Lives here: the part that both
# routes and connections use. Does not: the socket, the order of answers. Loop's thread only. The read buffer owns a
# borrowed body; an exchange keeps any other body alive.

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memchr

from fastinfer.native.job cimport monotonic_ns

import logging
from collections.abc import Sequence

from fastinfer.base.errors import ApiError

JSON = b"application/json"
Fields = Sequence[tuple[bytes, bytes]]

log = logging.getLogger(__name__)


@cython.final
cdef class RequestHead:
    def __init__(self, str method not None, bint version_10, dict headers not None):
        self.method = method
        self.version_10 = version_10
        self._fields = headers
        self.keep_alive = not version_10
        self.arguments = ()
        self.max_body_bytes = 0

    @property
    def headers(self):
        if self._fields is None:
            self._fields = {}
            lines = self.own_bytes.split(b"\r\n")
            for line in lines[1:len(lines) - 2]:
                name, _, value = line.partition(b":")
                self._fields[name.lower()] = value.strip(b" \t")
        return self._fields

    cdef bytes field(self, bytes name):
        if self._fields is None:
            if name not in self.cached_head._fields:       # it has the same fields
                return None
            return find_field(self.own_bytes, name)
        return <bytes>self._fields.get(name)


# A field's value in a valid head that has it once.
cdef bytes find_field(bytes head, bytes name):
    cdef const char* at = PyBytes_AS_STRING(head)
    cdef const char* end = at + PyBytes_GET_SIZE(head)
    cdef const char* wanted = PyBytes_AS_STRING(name)
    cdef const char* stop
    cdef Py_ssize_t size = PyBytes_GET_SIZE(name)
    cdef Py_ssize_t i
    while True:
        at = <const char*>memchr(at, c"\n", end - at) + 1
        stop = <const char*>memchr(at, c"\n", end - at) - 1
        if stop - at > size and at[size] == c":":
            i = 0
            while i < size and (at[i] == wanted[i] or (at[i] | 0x20) == wanted[i]):
                i += 1
            if i == size:
                return PyBytes_FromStringAndSize(at + size + 1, stop - at - size - 1).strip(b" \t")


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
        self._headers = headers
        self.body = body
        self.body_is_stable = body_is_stable
        self.arrived_ns = self.handled_ns = monotonic_ns()

    @property
    def headers(self):
        return self._headers

    cdef bytes field(self, bytes name):
        return self._headers.get(name)

    cpdef respond(self, int status, body=b"", bytes content_type=JSON, fields=()):
        if self.answered:
            return
        self.answered = True
        self.on_client_gone = None
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
