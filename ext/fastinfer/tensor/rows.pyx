# Rows of several requests as one block of memory, and back. Pure memory work, without the GIL.
# Lives here: gather, bounds of rows. Does not: the runtime, requests. Any thread; the memory belongs to the caller.

from libc.stdint cimport uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy

from fastinfer.base.debug cimport invariant
from fastinfer.tensor.datatype cimport BYTES, datatype_of
from fastinfer.tensor.tensor cimport MAX_RANK, Memory, Tensor, element_count


cdef Py_ssize_t gathered_size(const RowSlice* slices, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t nbytes = 0
    cdef Py_ssize_t i
    for i in range(count):
        nbytes += slices[i].nbytes
    return nbytes


cdef void gather(const RowSlice* slices, Py_ssize_t count, char* into) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(count):
        invariant(slices[i].nbytes >= 0, "a slice has a size")
        memcpy(into, slices[i].data, slices[i].nbytes)
        into += slices[i].nbytes


cdef void scatter(int datatype_id, const char* data, int64_t row_elements, const int64_t* rows, Py_ssize_t count,
                  Py_ssize_t* bounds) noexcept nogil:
    cdef Py_ssize_t row_bytes = row_elements * datatype_of(datatype_id).itemsize
    cdef Py_ssize_t at = 0
    cdef Py_ssize_t i
    cdef int64_t _element
    cdef uint32_t size
    for i in range(count):
        bounds[i] = at
        if datatype_id != BYTES:
            at += rows[i] * row_bytes
        else:
            for _element in range(rows[i] * row_elements):
                memcpy(&size, data + at, 4)
                at += 4 + <Py_ssize_t>size
    bounds[count] = at


def concatenate(list tensors not None):
    cdef Py_ssize_t count = len(tensors)
    if count == 0:
        raise ValueError("no tensors to concatenate")
    cdef Tensor first = <Tensor?>tensors[0]
    cdef Tensor tensor
    cdef int64_t[MAX_RANK] dims
    cdef Py_ssize_t i
    memcpy(dims, first.dims, first.rank * sizeof(int64_t))
    dims[0] = 0
    for i in range(count):
        tensor = <Tensor?>tensors[i]
        if (tensor.rank == 0 or tensor.rank != first.rank or tensor.datatype_id != first.datatype_id
                or memcmp(tensor.dims + 1, first.dims + 1, (first.rank - 1) * sizeof(int64_t)) != 0):
            raise ValueError(f"{tensor!r} does not fit {first!r}")
        dims[0] += tensor.dims[0]
    cdef RowSlice* slices = <RowSlice*>malloc(count * sizeof(RowSlice))
    if slices == NULL:
        raise MemoryError()
    cdef Memory memory
    try:
        for i in range(count):
            tensor = <Tensor>tensors[i]
            slices[i] = RowSlice(tensor.data, tensor.nbytes)
        memory = Memory.allocate(gathered_size(slices, count))
        with nogil:
            gather(slices, count, memory.data)
    finally:
        free(slices)
    return Tensor.wrap(first.name, first.datatype_id, first.rank, dims, memory.data, memory.nbytes, memory)


def split(Tensor tensor not None, list rows not None):
    cdef Py_ssize_t count = len(rows)
    cdef int64_t[MAX_RANK] dims
    cdef int64_t total = 0
    cdef Py_ssize_t i
    cdef int64_t* counts = <int64_t*>malloc((count + 1) * sizeof(int64_t))
    cdef Py_ssize_t* bounds = <Py_ssize_t*>malloc((count + 1) * sizeof(Py_ssize_t))
    cdef list parts = []
    try:
        if counts == NULL or bounds == NULL:
            raise MemoryError()
        for i in range(count):
            counts[i] = rows[i]
            if counts[i] < 0 or counts[i] > 0x7FFFFFFFFFFFFFFF - total:
                raise ValueError("row counts are not negative")
            total += counts[i]
        if tensor.rank == 0 or total != tensor.dims[0]:
            raise ValueError(f"{total} rows of {tensor!r}")
        with nogil:
            scatter(tensor.datatype_id, tensor.data, element_count(tensor.dims + 1, tensor.rank - 1), counts, count,
                    bounds)
        invariant(bounds[count] == tensor.nbytes, "the rows of a tensor are all of it")
        memcpy(dims, tensor.dims, tensor.rank * sizeof(int64_t))
        for i in range(count):
            dims[0] = counts[i]
            parts.append(Tensor.wrap(tensor.name, tensor.datatype_id, tensor.rank, dims, tensor.data + bounds[i],
                                     bounds[i + 1] - bounds[i], tensor.owner))
        return parts
    finally:
        free(counts)
        free(bounds)
