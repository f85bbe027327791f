from libc.stdint cimport int64_t

cdef struct ExpectedInput:
    const char* name        # UTF-8
    Py_ssize_t name_size
    int datatype_id
    bint open_rank
    int rank
    int batch_axis          # the dimension of rows, which is free, and ...; -1: none
    const int64_t* dims     # -1: any
    bint item_form          # ... may be left out

cdef struct Expected:
    int count
    ExpectedInput* inputs
    bint by_name            # else by position, and names are free

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

    # `optional` inputs have no batch dimension.
    @staticmethod
    cdef Expectation make(tuple required, tuple optional, bint by_name, bint batched, bint item_form)
