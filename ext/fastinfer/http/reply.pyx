# An answer as bytes: the head, followed by the body if it is short. Does not live here: the order of answers, the
# socket. Loop's thread only.

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memchr, memcpy

from http import HTTPStatus

cdef extern from *:
    # String literals and their sizes.
    """
    #define OK_JSON "HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: "
    #define CONTENT_TYPE "Content-Type: "
    #define CONTENT_LENGTH "Content-Length: "
    """
    const char* OK_JSON
    const char* CONTENT_TYPE
    const char* CONTENT_LENGTH
    Py_ssize_t OK_JSON_SIZE "(sizeof(OK_JSON) - 1)"
    Py_ssize_t CONTENT_TYPE_SIZE "(sizeof(CONTENT_TYPE) - 1)"
    Py_ssize_t CONTENT_LENGTH_SIZE "(sizeof(CONTENT_LENGTH) - 1)"

cdef enum:
    MAX_DIGITS = 20

cdef dict STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}


cdef inline char* put(char* at, const char* text, Py_ssize_t size) noexcept:
    memcpy(at, text, size)
    return at + size


cdef inline char* put_bytes(char* at, bytes text) noexcept:
    return put(at, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))


# Writes a number so that it ends at `end`; returns where it begins.
cdef inline char* digits_before(char* end, Py_ssize_t number) noexcept:
    while True:
        end -= 1
        end[0] = <char>(c"0" + number % 10)
        number //= 10
        if number == 0:
            return end


cdef bytes ok_json(object body, Py_ssize_t limit):
    cdef char[MAX_DIGITS] room
    cdef char* digits
    cdef Py_ssize_t count
    cdef Py_buffer view
    cdef bytes whole
    cdef char* at
    PyObject_GetBuffer(body, &view, PyBUF_SIMPLE)
    try:
        if view.len > limit:
            return None
        digits = digits_before(room + MAX_DIGITS, view.len)
        count = room + MAX_DIGITS - digits
        whole = PyBytes_FromStringAndSize(NULL, OK_JSON_SIZE + count + 4 + view.len)
        at = put(PyBytes_AS_STRING(whole), OK_JSON, OK_JSON_SIZE)
        at = put(at, digits, count)
        at = put(at, b"\r\n\r\n", 4)
        put(at, <const char*>view.buf, view.len)
        return whole
    finally:
        PyBuffer_Release(&view)


cdef bytes reply(int status, bytes content_type, object fields, bytes ending, Py_ssize_t size, object parts):
    cdef bytes line = STATUS_LINES.get(status) or b"HTTP/1.1 %d Unknown\r\n" % status
    cdef char[MAX_DIGITS] room
    cdef char* digits = digits_before(room + MAX_DIGITS, size)
    cdef Py_ssize_t count = room + MAX_DIGITS - digits
    cdef Py_ssize_t head_size = len(line) + field_size(CONTENT_TYPE_SIZE, content_type)
    cdef bytes name, value, whole
    cdef char* at
    for name, value in fields:
        head_size += field_size(len(name) + 2, value)
    head_size += len(ending) + CONTENT_LENGTH_SIZE + count + 4
    whole = PyBytes_FromStringAndSize(NULL, head_size + (size if parts is not None else 0))
    at = put_bytes(PyBytes_AS_STRING(whole), line)
    at = put(at, CONTENT_TYPE, CONTENT_TYPE_SIZE)
    at = put_bytes(at, content_type)
    at = put(at, b"\r\n", 2)
    for name, value in fields:
        at = put_bytes(at, name)
        at = put(at, b": ", 2)
        at = put_bytes(at, value)
        at = put(at, b"\r\n", 2)
    at = put_bytes(at, ending)
    at = put(at, CONTENT_LENGTH, CONTENT_LENGTH_SIZE)
    at = put(at, digits, count)
    at = put(at, b"\r\n\r\n", 4)
    if parts is not None:
        put_parts(at, parts)
    return whole


# The size of a field's line, whose name and punctuation have this size.
cdef Py_ssize_t field_size(Py_ssize_t name_size, bytes value) except -1:
    cdef const char* at = PyBytes_AS_STRING(value)
    if memchr(at, c"\n", len(value)) != NULL or memchr(at, c"\r", len(value)) != NULL:
        raise ValueError("a header field's value holds a line break")
    return name_size + len(value) + 2


cdef Py_ssize_t size_of(object parts) except -1:
    cdef Py_buffer view
    cdef Py_ssize_t size = 0
    for part in parts:
        PyObject_GetBuffer(part, &view, PyBUF_SIMPLE)
        size += view.len
        PyBuffer_Release(&view)
    return size


cdef int put_parts(char* at, object parts) except -1:
    cdef Py_buffer view
    for part in parts:
        PyObject_GetBuffer(part, &view, PyBUF_SIMPLE)
        at = put(at, <const char*>view.buf, view.len)
        PyBuffer_Release(&view)
    return 0


def reply_head(int status, bytes content_type not None, Py_ssize_t size, fields, bint last, bint version_10):
    ending = b""
    if last:
        ending = b"Connection: close\r\n"
    elif version_10:
        ending = b"Connection: keep-alive\r\n"
    return reply(status, content_type, fields, ending, size, None)
