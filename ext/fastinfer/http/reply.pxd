# The most common answer: 200, JSON, no further fields. None if the body is longer than the limit.
cdef bytes ok_json(object body, Py_ssize_t limit)
# Any answer. `fields`: pairs of bytes; `ending`: a field line or nothing; `size`: of the body; `parts`: the body's
# buffers, of that size together, or None if the body does not follow.
cdef bytes reply(int status, bytes content_type, object fields, bytes ending, Py_ssize_t size, object parts)
# The size of a sequence of buffers.
cdef Py_ssize_t size_of(object parts) except -1
