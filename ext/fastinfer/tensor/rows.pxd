from libc.stdint cimport int64_t

cdef struct RowSlice:
    # Borrowed memory of one request's rows.
    const char* data
    Py_ssize_t nbytes

# The size of all slices together.
cdef Py_ssize_t gathered_size(const RowSlice* slices, Py_ssize_t count) noexcept nogil
# Copies the slices one after the other to `into`, which has gathered_size bytes. That is right for BYTES, too: their
# elements lie one after the other.
cdef void gather(const RowSlice* slices, Py_ssize_t count, char* into) noexcept nogil
# Sets `bounds`, which has count + 1 places, to the byte at which each group of rows starts, and the end. rows[i] is the
# number of rows of group i, row_elements that of elements in a row. The tensor must have all these rows.
cdef void scatter(int datatype_id, const char* data, int64_t row_elements, const int64_t* rows, Py_ssize_t count,
                  Py_ssize_t* bounds) noexcept nogil
