# The inputs that a model takes, as plain structs, so that the decoder does not decode data that cannot fit. Immutable
# after the load, read without the GIL on any thread; the model's Signature owns them.

cimport cython
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp

from fastinfer.tensor.datatype cimport BYTES
from fastinfer.tensor.tensor cimport TensorSpec


cdef bint cannot_fit(const Expected* expected, int index, const char* name, Py_ssize_t name_size, int datatype_id,
                     int rank, const int64_t* dims) noexcept nogil:
    cdef const ExpectedInput* wanted = NULL
    cdef int i
    if expected.by_name:
        for i in range(expected.count):
            if expected.inputs[i].name_size == name_size and memcmp(expected.inputs[i].name, name, name_size) == 0:
                wanted = &expected.inputs[i]
                break
    elif index < expected.count:
        wanted = &expected.inputs[index]
    if wanted == NULL or wanted.datatype_id != datatype_id:
        return True
    if wanted.open_rank or (datatype_id == BYTES and rank == 1):        # the latter may be AMD's form: a length
        return False
    i = wanted.batch_axis
    if rank == wanted.rank:
        return differ(wanted.dims, dims, i) or differ(wanted.dims + i + 1, dims + i + 1, rank - i - 1)
    if rank == wanted.rank - 1 and wanted.item_form:
        return differ(wanted.dims, dims, i) or differ(wanted.dims + i + 1, dims + i, rank - i)
    return not is_same_scalar(wanted.rank, wanted.dims, rank, dims)


cdef bint is_same_scalar(int wanted_rank, const int64_t* wanted, int rank, const int64_t* dims) noexcept nogil:
    if wanted_rank > 1 or rank > 1 or (rank == 1 and dims[0] != 1):
        return False
    return wanted_rank == 0 or wanted[0] == 1 or wanted[0] == -1


cdef bint differ(const int64_t* wanted, const int64_t* dims, int rank) noexcept nogil:
    cdef int i
    for i in range(rank):
        if wanted[i] >= 0 and wanted[i] != dims[i]:
            return True
    return False


@cython.no_gc
@cython.final
cdef class Expectation:
    def __dealloc__(self):
        free(self.expected.inputs)

    @staticmethod
    cdef Expectation make(tuple required, tuple optional, bint by_name, bint batched, bint item_form):
        cdef tuple specs = required + optional
        cdef Expectation made = Expectation.__new__(Expectation)
        cdef Expected* expected = &made.expected
        cdef ExpectedInput* wanted
        cdef TensorSpec spec
        cdef int i
        expected.by_name = by_name
        expected.inputs = <ExpectedInput*>calloc(max(1, len(specs)), sizeof(ExpectedInput))
        if expected.inputs == NULL:
            raise MemoryError
        expected.count = <int>len(specs)
        made.specs = specs
        for i in range(expected.count):
            spec = <TensorSpec?>specs[i]
            wanted = &expected.inputs[i]
            wanted.name = PyUnicode_AsUTF8AndSize(spec.name, &wanted.name_size)
            wanted.datatype_id = spec.datatype_id
            wanted.open_rank = spec.open_rank
            wanted.rank = spec.rank
            wanted.batch_axis = spec.batch_axis if batched and i < <int>len(required) else -1
            wanted.item_form = item_form and wanted.batch_axis >= 0
            wanted.dims = spec.dims
        return made
