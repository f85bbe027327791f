cdef struct Count:
    Py_ssize_t values
    Py_ssize_t depth


cdef Count count(const unsigned char* at, const unsigned char* end) noexcept nogil
