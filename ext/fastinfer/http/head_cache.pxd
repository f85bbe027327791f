from fastinfer.http.exchange cimport RequestHead


cdef class HeadCache:
    cdef dict _known        # outline -> the first head with it

    # The parsed head at `data`, and its size; None if it is not whole or not cached. A head that differs only in values
    # from the cached one is a new RequestHead. `likely`: a cached head to compare with first, or None.
    cdef RequestHead find(self, const char* data, Py_ssize_t size, RequestHead likely, Py_ssize_t* head_size)
