# Tensors: a name, a datatype, a shape, and memory with its owner. Does not live here: text, batches, the shapes that a
# model takes. Any thread with the GIL; a Tensor keeps the owner of its memory alive.
#
# Memory is native (malloc, 64-byte aligned), so that it can be written on threads without the GIL; numpy arrays are
# views of it whose base is the Tensor. Elements are little-endian and row-major. BYTES elements lie one after the
# other, each a uint32 length and its bytes: the wire's binary form is also the form in memory.

import numpy as np

cimport cython
cimport numpy as cnp
from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.ref cimport Py_INCREF
from libc.stdint cimport uint32_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from fastinfer.base.budget cimport Budget
from fastinfer.base.debug cimport invariant
from fastinfer.tensor.datatype cimport BOOL, BYTES, DATATYPE_COUNT, from_str, name_of, datatype_of

cdef extern from "Python.h":
    const Py_ssize_t PY_SSIZE_T_MAX

cdef extern from "<sys/mman.h>" nogil:
    int madvise(void* at, size_t size, int advice)
    enum: MADV_HUGEPAGE

cnp.import_array()

cdef enum:
    ALIGNMENT = 64      # a cache line, and the widest vector register
    HUGE_PAGE = 2 << 20
    OWN_MAPPING = 32 << 20      # from this size on, malloc gives each block a mapping of its own


# Aligned by hand, because posix_memalign bypasses malloc's thread cache. The byte before a block is its distance from
# malloc's address; that is at least 16, malloc's own alignment.
cdef char* allocate_block(Py_ssize_t nbytes) noexcept nogil:
    cdef char* room
    cdef char* block
    if nbytes < 0 or nbytes > PY_SSIZE_T_MAX - ALIGNMENT:
        return NULL
    room = <char*>malloc(<size_t>nbytes + ALIGNMENT)
    if room == NULL:
        return NULL
    block = <char*>((<uintptr_t>room + ALIGNMENT) & ~<uintptr_t>(ALIGNMENT - 1))
    (block - 1)[0] = <char>(block - room)
    if nbytes >= OWN_MAPPING:
        ask_for_huge_pages(room, nbytes)
    return block


# Each page of such a block is new; with huge pages there are fewer page faults than one for every 4 KiB. Smaller blocks
# may lie in malloc's heap, which would keep the advice, and clear 2 MiB for a few pages of other blocks.
cdef void ask_for_huge_pages(char* room, Py_ssize_t nbytes) noexcept nogil:
    cdef uintptr_t begin = (<uintptr_t>room + HUGE_PAGE - 1) & ~<uintptr_t>(HUGE_PAGE - 1)
    cdef uintptr_t end = (<uintptr_t>room + nbytes) & ~<uintptr_t>(HUGE_PAGE - 1)
    madvise(<void*>begin, end - begin, MADV_HUGEPAGE)


cdef void free_block(char* block) noexcept nogil:
    if block != NULL:
        free(block - <int>(block - 1)[0])


# Loops that the compiler vectorises.
cdef bint are_bools(const char* bytes, Py_ssize_t size) noexcept nogil:
    cdef unsigned char bits = 0
    cdef Py_ssize_t i
    for i in range(size):
        bits |= <unsigned char>bytes[i]
    return bits <= 1


cdef void put_bools(char* bools, const char* bytes, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(size):
        bools[i] = bytes[i] != 0


cdef int64_t element_count(const int64_t* dims, int rank) noexcept nogil:
    cdef int64_t count = 1
    cdef int i
    cdef bint empty = False
    for i in range(rank):
        if dims[i] < 0:
            return -1
        if dims[i] == 0:
            empty = True
    if empty:
        return 0
    for i in range(rank):
        if count > (<int64_t>0x7FFFFFFFFFFFFFFF) // dims[i]:
            return -1
        count *= dims[i]
    return count


@cython.no_gc
@cython.freelist(64)
@cython.final
cdef class Memory:
    def __dealloc__(self):
        free_block(self.data)
        if self._charged > 0:
            self._budget.count.release(self._charged)

    @staticmethod
    cdef Memory allocate(Py_ssize_t nbytes, Budget budget=None):
        cdef char* block
        if budget is not None and not budget.count.reserve(nbytes):
            raise MemoryError("the budget for requests is spent")
        block = allocate_block(nbytes)
        if block == NULL:
            if budget is not None:
                budget.count.release(nbytes)
            raise MemoryError(f"no memory for {nbytes} bytes")
        return Memory.adopt(block, nbytes, budget, nbytes)

    @staticmethod
    cdef Memory adopt(char* block, Py_ssize_t nbytes, Budget budget=None, Py_ssize_t charged=0):
        cdef Memory memory = Memory.__new__(Memory)
        memory.data = block
        memory.nbytes = nbytes
        if budget is not None:
            memory._budget = budget
            memory._charged = charged
        return memory

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, self.data, self.nbytes, 0, flags)


@cython.final
cdef class TensorSpec:
    def __init__(self, str name not None, str datatype not None, shape, symbols=(), int batch_axis=0):
        self.name = name
        self.datatype_id = from_str(datatype)
        self.open_rank = shape is None
        self.shape = (-1,) if self.open_rank else tuple(shape)
        self.rank = <int>len(self.shape)
        if self.rank > MAX_RANK:
            raise ValueError(f"'{name}' has {self.rank} dimensions, at most {MAX_RANK} are supported")
        self.symbols = tuple(symbols) or ("",) * self.rank
        self.batch_axis = batch_axis
        cdef int i
        for i in range(self.rank):
            self.dims[i] = self.shape[i]

    @property
    def datatype(self):
        return name_of(self.datatype_id)

    @property
    def row_shape(self):
        if self.open_rank or self.batch_axis < 0:
            return self.shape
        return self.shape[:self.batch_axis] + self.shape[self.batch_axis + 1:]

    def along(self, int axis):
        return TensorSpec(self.name, self.datatype, None if self.open_rank else self.shape, self.symbols, axis)

    def __eq__(self, other):
        if not isinstance(other, TensorSpec):
            return NotImplemented
        cdef TensorSpec that = other
        return (self.name == that.name and self.datatype_id == that.datatype_id and self.shape == that.shape
                and self.open_rank == that.open_rank and self.batch_axis == that.batch_axis)

    def __hash__(self):
        return hash((self.name, self.datatype_id, self.shape, self.open_rank, self.batch_axis))

    def __repr__(self):
        return f"TensorSpec({self.name!r}, {self.datatype!r}, {None if self.open_rank else list(self.shape)})"


# Not tracked by the collector, which saves time: an owner of memory never refers back to a tensor.
@cython.no_gc
@cython.freelist(64)
@cython.final
cdef class Tensor:
    @staticmethod
    cdef Tensor wrap(str name, int datatype_id, int rank, const int64_t* dims, char* data, Py_ssize_t nbytes,
                     object owner):
        cdef Tensor tensor = Tensor.__new__(Tensor)
        invariant(0 <= rank <= MAX_RANK, "a tensor has at most MAX_RANK dimensions")
        invariant(0 <= datatype_id < DATATYPE_COUNT and nbytes >= 0, "a tensor has a datatype and a size")
        tensor.name = name
        tensor.datatype_id = datatype_id
        tensor.rank = rank
        memcpy(tensor.dims, dims, rank * sizeof(int64_t))
        tensor.count = element_count(dims, rank)
        tensor.data = data
        tensor.nbytes = nbytes
        tensor.owner = owner
        invariant(tensor.count >= 0, "the elements of a tensor can be counted")
        invariant(datatype_id == BYTES or nbytes == 0 or nbytes == tensor.count * datatype_of(datatype_id).itemsize,
                  "a tensor's bytes are those of its elements")
        return tensor

    @staticmethod
    def from_numpy(str name not None, array, str datatype=None):
        array = np.ascontiguousarray(array) if np.ndim(array) else np.asarray(array)
        if array.ndim > MAX_RANK:
            raise ValueError(f"'{name}' has {array.ndim} dimensions, at most {MAX_RANK} are supported")
        cdef int datatype_id = from_str(datatype if datatype is not None else _v2_name(array.dtype))
        cdef int64_t[MAX_RANK] dims
        cdef int i
        for i in range(array.ndim):
            dims[i] = array.shape[i]
        if datatype_id == BYTES:
            return _from_strings(name, array, dims)
        array = array.astype(datatype_of(datatype_id).numpy.decode(), copy=False, casting="equiv")
        return Tensor.wrap(name, datatype_id, array.ndim, dims, <char*>cnp.PyArray_DATA(array), array.nbytes, array)

    @staticmethod
    def empty(str name not None, str datatype not None, shape, Budget budget=None):
        cdef int64_t[MAX_RANK] dims
        cdef int rank = _dims_of(shape, dims)
        cdef int64_t count = element_count(dims, rank)
        cdef int datatype_id = from_str(datatype)
        if count < 0 or count > PY_SSIZE_T_MAX // 8 or (datatype_id == BYTES and count > 0):
            raise ValueError(f"no empty {datatype} tensor of shape {list(shape)}")
        cdef Memory memory = Memory.allocate(count * datatype_of(datatype_id).itemsize, budget)
        return Tensor.wrap(name, datatype_id, rank, dims, memory.data, memory.nbytes, memory)

    @staticmethod
    def copied(str name not None, str datatype not None, shape, block, Budget budget=None):
        cdef Py_buffer view
        PyObject_GetBuffer(block, &view, PyBUF_SIMPLE)
        try:
            return _copied(name, from_str(datatype), shape, <const char*>view.buf, view.len, budget)
        finally:
            PyBuffer_Release(&view)

    def fill(self):
        if not isinstance(self.owner, Memory) or self.datatype_id == BYTES:
            raise ValueError("only numbers in memory of their own can be filled in")
        return np.frombuffer(self.owner, datatype_of(self.datatype_id).numpy.decode()).reshape(self.shape)

    @property
    def datatype(self):
        return name_of(self.datatype_id)

    @property
    def shape(self):
        return tuple([self.dims[i] for i in range(self.rank)])

    def numpy(self):
        cdef cnp.npy_intp[MAX_RANK] dims
        cdef int i
        for i in range(self.rank):
            dims[i] = self.dims[i]
        if self.datatype_id == BYTES:
            return _strings(self)
        dtype = np.dtype(datatype_of(self.datatype_id).numpy.decode())
        cdef cnp.ndarray array = cnp.PyArray_SimpleNewFromData(self.rank, dims, dtype.num, self.data)
        Py_INCREF(self)
        cnp.PyArray_SetBaseObject(array, self)      # steals the reference just taken
        array.flags.writeable = False
        return array

    cdef Tensor rows(self, int64_t start, int64_t count):
        invariant(self.rank > 0 and start >= 0 and 0 <= count <= self.dims[0] - start, "rows are inside their tensor")
        cdef Py_ssize_t first = self.row_offset(start)
        # The end of all rows needs no walk over the elements of BYTES.
        cdef Py_ssize_t end = self.nbytes if start + count == self.dims[0] else self.row_offset(start + count)
        cdef int64_t[MAX_RANK] dims
        memcpy(dims, self.dims, self.rank * sizeof(int64_t))
        dims[0] = count
        return Tensor.wrap(self.name, self.datatype_id, self.rank, dims, self.data + first, end - first, self.owner)

    cdef Py_ssize_t row_offset(self, int64_t row_index) noexcept:
        cdef int64_t elements = row_index * element_count(self.dims + 1, self.rank - 1)
        cdef Py_ssize_t at = 0
        cdef uint32_t size
        if self.datatype_id != BYTES:
            return elements * datatype_of(self.datatype_id).itemsize
        for _ in range(elements):
            memcpy(&size, self.data + at, 4)
            at += 4 + <Py_ssize_t>size
            invariant(at <= self.nbytes, "the elements of BYTES end inside their tensor")
        return at

    def slice_rows(self, int64_t start, int64_t count):
        if self.rank == 0 or start < 0 or count < 0 or count > self.dims[0] - start:     # start + count may overflow
            raise IndexError(f"{count} rows from {start} on of {self.shape}")
        return self.rows(start, count)

    def reshaped(self, shape):
        cdef int64_t[MAX_RANK] dims
        cdef int rank = _dims_of(shape, dims)
        if element_count(dims, rank) != self.count:
            raise ValueError(f"{self.count} elements do not fit the shape {list(shape)}")
        return Tensor.wrap(self.name, self.datatype_id, rank, dims, self.data, self.nbytes, self.owner)

    def renamed(self, str name not None):
        return Tensor.wrap(name, self.datatype_id, self.rank, self.dims, self.data, self.nbytes, self.owner)

    def __getbuffer__(self, Py_buffer* view, int flags):
        if flags & PyBUF_WRITABLE:
            raise BufferError("a tensor's memory is read-only")
        PyBuffer_FillInfo(view, self, self.data, self.nbytes, 1, flags)

    def __repr__(self):
        return f"Tensor({self.name!r}, {self.datatype!r}, {list(self.shape)})"


cdef int _dims_of(object shape, int64_t* dims) except -1:
    cdef Py_ssize_t rank = len(shape)
    cdef int i
    if rank > MAX_RANK:
        raise ValueError(f"at most {MAX_RANK} dimensions are supported")
    for i in range(<int>rank):
        dims[i] = shape[i]
    return <int>rank


cdef Tensor _copied(str name, int datatype_id, object shape, const char* block, Py_ssize_t nbytes, Budget budget):
    cdef int64_t[MAX_RANK] dims
    cdef int rank = _dims_of(shape, dims)
    cdef int64_t count = element_count(dims, rank)
    cdef Memory memory
    cdef bint fits = True
    if count < 0 or count > PY_SSIZE_T_MAX // 8 or (
            datatype_id != BYTES and nbytes != count * datatype_of(datatype_id).itemsize):
        raise ValueError(f"{nbytes} bytes are no {name_of(datatype_id)} tensor of shape {list(shape)}")
    memory = Memory.allocate(nbytes, budget)
    with nogil:
        # The copy comes before the check, because another process may still write to the block.
        memcpy(memory.data, block, nbytes)
        if datatype_id == BOOL:
            put_bools(memory.data, memory.data, nbytes)
        elif datatype_id == BYTES:
            fits = _are_elements(memory.data, nbytes, count)
    if not fits:
        raise ValueError(f"{nbytes} bytes do not hold {count} elements")
    return Tensor.wrap(name, datatype_id, rank, dims, memory.data, nbytes, memory)


# Whether a block is exactly `count` elements of BYTES.
cdef bint _are_elements(const char* block, Py_ssize_t nbytes, int64_t count) noexcept nogil:
    cdef Py_ssize_t at = 0
    cdef int64_t _element
    cdef uint32_t size
    for _element in range(count):
        if nbytes - at < 4:
            return False
        memcpy(&size, block + at, 4)
        at += 4
        if <Py_ssize_t>size > nbytes - at:
            return False
        at += <Py_ssize_t>size
    return at == nbytes


cdef object _strings(Tensor tensor):
    cdef list elements = []
    cdef Py_ssize_t at = 0
    cdef uint32_t size
    for _ in range(tensor.count):
        memcpy(&size, tensor.data + at, 4)
        elements.append((tensor.data + at + 4)[:size])
        at += 4 + <Py_ssize_t>size
    array = np.empty(tensor.count, dtype=object)
    array[:] = elements
    return array.reshape(tensor.shape)


cdef Tensor _from_strings(str name, array, const int64_t* dims):
    cdef list elements = [e.encode() if isinstance(e, str) else bytes(e) for e in array.reshape(-1)]
    cdef Py_ssize_t nbytes = 0
    cdef Py_ssize_t at = 0
    cdef bytes element
    cdef uint32_t size
    for element in elements:
        if len(element) > 0xFFFFFFFF:
            raise ValueError(f"an element of '{name}' is longer than 4 GiB")
        nbytes += 4 + len(element)
    cdef Memory memory = Memory.allocate(nbytes)
    for element in elements:
        size = <uint32_t>len(element)
        memcpy(memory.data + at, &size, 4)
        memcpy(memory.data + at + 4, <const char*>element, size)
        at += 4 + <Py_ssize_t>size
    return Tensor.wrap(name, BYTES, array.ndim, dims, memory.data, nbytes, memory)


cdef dict _V2_NAMES = {
    np.dtype(code): name for code, name in [
        ("?", "BOOL"), ("u1", "UINT8"), ("u2", "UINT16"), ("u4", "UINT32"), ("u8", "UINT64"), ("i1", "INT8"),
        ("i2", "INT16"), ("i4", "INT32"), ("i8", "INT64"), ("f2", "FP16"), ("f4", "FP32"), ("f8", "FP64"),
    ]
}


cdef str _v2_name(dtype):
    if dtype.kind in "OSU":
        return "BYTES"
    found = _V2_NAMES.get(dtype.newbyteorder("="))
    if found is None:
        raise ValueError(f"no v2 datatype for numpy's {dtype}")
    return found
