from libc.stdint cimport int64_t

cdef struct Piece:
    # Borrowed memory of one request's rows.
    const char* data
    Py_ssize_t nbytes

# The size of all pieces together.
cdef Py_ssize_t gathered_size(const Piece* pieces, Py_ssize_t count) noexcept nogil
# Writes the pieces one behind the other into `into`, which has gathered_size bytes. BYTES need nothing else: their
# elements lie one behind the other, too.
cdef void gather(const Piece* pieces, Py_ssize_t count, char* into) noexcept nogil
# The byte at which each group of rows starts, and behind them the end: bounds has count + 1 places. rows[i] is the
# number of rows of group i, row_elements that of elements in a row. The tensor must have all these rows.
cdef void scatter(int datatype_id, const char* data, int64_t row_elements, const int64_t* rows, Py_ssize_t count,
                  Py_ssize_t* bounds) noexcept nogil
