from libc.stdint cimport int64_t

cdef struct ExpectedInput:
    const char* name        # UTF-8
    Py_ssize_t name_size
    int datatype_id
    bint open_rank
    int rank
    const int64_t* dims     # -1: any

cdef struct Expected:
    int count
    ExpectedInput* inputs
    bint by_name            # else by position, and names are free
    bint batched            # the first dimension is free, and ...
    bint item_form          # ... may be left out

# Whether the signature will certainly refuse an input of this name, type and shape. If that is not clear, the input is
# decoded, and the signature decides. `index`: its position in the request.
cdef bint cannot_fit(const Expected* expected, int index, const char* name, Py_ssize_t name_size, int datatype_id,
                     int rank, const int64_t* dims) noexcept nogil

# Whether two shapes of at most one dimension are of one element: [] and [1]. A dimension of -1 is wanted as 1, too.
cdef bint is_same_scalar(int wanted_rank, const int64_t* wanted, int rank, const int64_t* dims) noexcept nogil


# Owns the structs, and the specifications that they point into.
cdef class Expectation:
    cdef Expected expected
    cdef tuple specs

    @staticmethod
    cdef Expectation make(tuple specs, bint by_name, bint batched, bint item_form)
