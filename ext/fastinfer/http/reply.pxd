# The most common answer whole: 200, JSON, no further fields. None where the body is longer than the limit.
cdef bytes ok_json(object body, Py_ssize_t limit)
# Any answer. `fields`: pairs of bytes; `ending`: a field line or nothing; `size`: of the body; `parts`: the body's
# buffers, which together are as long, or None where it does not follow.
cdef bytes reply(int status, bytes content_type, object fields, bytes ending, Py_ssize_t size, object parts)
# Of a sequence of buffers.
cdef Py_ssize_t size_of(object parts) except -1
