from fastinfer.http.exchange cimport Head


cdef class HeadCache:
    cdef dict _known        # outline -> the head that had it first

    # The meaning of a whole head, or None. One that differs from the head that is known in values alone is a new Head.
    cdef Head find(self, const char* data, Py_ssize_t size)
