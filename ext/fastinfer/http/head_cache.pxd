from fastinfer.http.exchange cimport Head


cdef class HeadCache:
    cdef dict _known        # outline -> the head that had it first

    # The meaning of the head at `data`, and its size; None if it is not whole or not known. One that differs in values
    # alone from the head that is known is a new Head. `likely`: a remembered head to compare with first, or None.
    cdef Head find(self, const char* data, Py_ssize_t size, Head likely, Py_ssize_t* head_size)
