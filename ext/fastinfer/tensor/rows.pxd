from libc.stdint cimport int64_t

from fastinfer.tensor.tensor cimport Tensor

cdef struct RowSlice:
    # Borrowed memory of one request's rows.
    const char* data
    Py_ssize_t nbytes


# Where the rows are in a session's inputs and outputs, if that is not the first dimension of each.
cdef class BatchAxes:
    cdef int* axes              # [inputs + outputs]; -1: an input without rows
    cdef Py_ssize_t input_count

# The size of all slices together.
cdef Py_ssize_t gathered_size(const RowSlice* slices, Py_ssize_t count) noexcept nogil
# Copies the slices one after the other to `into`, which has gathered_size bytes. That is right for BYTES, too: their
# elements lie one after the other.
cdef void gather(const RowSlice* slices, Py_ssize_t count, char* into) noexcept nogil
# Sets `bounds`, which has count + 1 places, to the byte at which each group of rows starts, and the end. rows[i] is the
# number of rows of group i, row_elements that of elements in a row. The tensor must have all these rows.
cdef void scatter(int datatype_id, const char* data, int64_t row_elements, const int64_t* rows, Py_ssize_t count,
                  Py_ssize_t* bounds) noexcept nogil

# As gather, for rows along an inner dimension: `before` is the product of the dimensions before it. Not for BYTES.
cdef void gather_along(const RowSlice* slices, Py_ssize_t count, int64_t before, char* into) noexcept nogil
# The reverse: copies each group of rows to `into`, one group after the other, and sets `bounds` as scatter does.
# `data` has nbytes, a positive number for each row.
cdef void scatter_along(const char* data, Py_ssize_t nbytes, int64_t before, const int64_t* rows, Py_ssize_t count,
                        char* into, Py_ssize_t* bounds) noexcept nogil

# Whether two tensors have the same shape, except for the dimension `axis` (-1: none).
cdef bint alike_but(Tensor one, Tensor other, int axis) noexcept
