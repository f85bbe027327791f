# Rows of several requests as one block of memory, and back. Pure memory work, without the GIL.
# Lives here: gather, bounds of rows. Does not: the runtime, requests. Any thread; the memory belongs to the caller.

cimport cython
from libc.stdint cimport uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from fastinfer.base.debug cimport invariant
from fastinfer.tensor.datatype cimport BYTES, datatype_of
from fastinfer.tensor.tensor cimport MAX_RANK, Memory, Tensor, TensorSpec, element_count


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


cdef void gather_along(const RowSlice* slices, Py_ssize_t count, int64_t before, char* into) noexcept nogil:
    cdef int64_t block
    cdef Py_ssize_t i, size
    for block in range(before):
        for i in range(count):
            size = slices[i].nbytes // before
            memcpy(into, slices[i].data + block * size, size)
            into += size


cdef void scatter_along(const char* data, Py_ssize_t nbytes, int64_t before, const int64_t* rows, Py_ssize_t count,
                        char* into, Py_ssize_t* bounds) noexcept nogil:
    cdef int64_t total = 0
    cdef int64_t block
    cdef Py_ssize_t i, size, width
    cdef Py_ssize_t first = 0           # byte of a group's first row in a block of `data`
    for i in range(count):
        total += rows[i]
    width = nbytes // before
    bounds[0] = 0
    for i in range(count):
        size = width // total * rows[i]
        for block in range(before):
            memcpy(into + bounds[i] + block * size, data + block * width + first, size)
        first += size
        bounds[i + 1] = bounds[i] + before * size


@cython.final
cdef class BatchAxes:
    def __init__(self, inputs not None, outputs not None):
        cdef TensorSpec spec
        cdef Py_ssize_t i
        self.input_count = len(inputs)
        self.axes = <int*>malloc((len(inputs) + len(outputs) + 1) * sizeof(int))
        if self.axes == NULL:
            raise MemoryError()
        for i, spec in enumerate([*inputs, *outputs]):
            self.axes[i] = spec.batch_axis

    @staticmethod
    def of(inputs not None, outputs not None):
        cdef TensorSpec spec
        for spec in [*inputs, *outputs]:
            if spec.batch_axis != 0:
                return BatchAxes(inputs, outputs)
        return None

    def __dealloc__(self):
        free(self.axes)


def cut(Tensor tensor not None, int axis, int64_t start, int64_t count):
    if axis == 0:
        return tensor.slice_rows(start, count)
    if axis < 0:
        return tensor
    if axis >= tensor.rank or start < 0 or count < 0 or count > tensor.dims[axis] - start:
        raise IndexError(f"{count} rows from {start} on along dimension {axis} of {tensor.shape}")
    if tensor.datatype_id == BYTES:
        raise ValueError("rows of BYTES are along the first dimension")
    cdef int64_t[MAX_RANK] dims
    cdef int64_t before = element_count(tensor.dims, axis)
    cdef Py_ssize_t size = (element_count(tensor.dims + axis + 1, tensor.rank - axis - 1)
                            * datatype_of(tensor.datatype_id).itemsize)
    cdef Py_ssize_t width = tensor.dims[axis] * size
    cdef int64_t block
    memcpy(dims, tensor.dims, tensor.rank * sizeof(int64_t))
    dims[axis] = count
    cdef Memory memory = Memory.allocate(before * count * size)
    with nogil:
        for block in range(before):
            memcpy(memory.data + block * count * size, tensor.data + block * width + start * size, count * size)
    return Tensor.wrap(tensor.name, tensor.datatype_id, tensor.rank, dims, memory.data, memory.nbytes, memory)


def concatenate(list tensors not None, int axis=0):
    cdef Py_ssize_t count = len(tensors)
    if count == 0:
        raise ValueError("no tensors to concatenate")
    cdef Tensor first = <Tensor?>tensors[0]
    cdef Tensor tensor
    cdef int64_t[MAX_RANK] dims
    cdef Py_ssize_t i
    cdef int64_t before
    if not 0 <= axis < first.rank or (axis > 0 and first.datatype_id == BYTES):
        raise ValueError(f"{first!r} does not fit: it has no rows along dimension {axis}")
    memcpy(dims, first.dims, first.rank * sizeof(int64_t))
    dims[axis] = 0
    for i in range(count):
        tensor = <Tensor?>tensors[i]
        if tensor.datatype_id != first.datatype_id or not alike_but(tensor, first, axis):
            raise ValueError(f"{tensor!r} does not fit {first!r}")
        dims[axis] += tensor.dims[axis]
    cdef RowSlice* slices = <RowSlice*>malloc(count * sizeof(RowSlice))
    if slices == NULL:
        raise MemoryError()
    cdef Memory memory
    try:
        for i in range(count):
            tensor = <Tensor>tensors[i]
            slices[i] = RowSlice(tensor.data, tensor.nbytes)
        memory = Memory.allocate(gathered_size(slices, count))
        before = element_count(first.dims, axis)
        with nogil:
            if axis == 0:
                gather(slices, count, memory.data)
            else:
                gather_along(slices, count, before, memory.data)
    finally:
        free(slices)
    return Tensor.wrap(first.name, first.datatype_id, first.rank, dims, memory.data, memory.nbytes, memory)


cdef bint alike_but(Tensor one, Tensor other, int axis) noexcept:
    cdef int i
    if one.rank != other.rank:
        return False
    for i in range(one.rank):
        if i != axis and one.dims[i] != other.dims[i]:
            return False
    return True


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
