# Counters in memory that is given from outside: see histogram.pxd.

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uintptr_t

cdef extern from *:
    """
    #include <cstdint>
    // Relaxed and without a lock prefix: there is one writer. A plain store could be split by the compiler.
    static inline int64_t fastinfer_read(const int64_t* cell) { return __atomic_load_n(cell, __ATOMIC_RELAXED); }
    static inline void fastinfer_raise(int64_t* cell, int64_t by) {
        __atomic_store_n(cell, *cell + by, __ATOMIC_RELAXED);
    }
    """
    int64_t fastinfer_read(const int64_t* cell) noexcept nogil
    void fastinfer_raise(int64_t* cell, int64_t by) noexcept nogil


DURATION_BOUNDS_NS = tuple([step * 10 ** decade // 10 for decade in range(4, 11) for step in (10, 25, 50)]) + (
    60_000_000_000,)
SIZE_BOUNDS = tuple([1 << power for power in range(13)])


def nbytes(bounds):
    return (len(bounds) + 2) * sizeof(int64_t)


cdef char* borrow(object memory, Py_buffer* held, Py_ssize_t* size) except NULL:
    cdef Py_buffer view
    cdef char* at
    PyObject_GetBuffer(memory, &view, PyBUF_WRITABLE)
    at = <char*>view.buf
    size[0] = view.len
    try:
        PyObject_GetBuffer(memory.obj if isinstance(memory, memoryview) else memory, held, PyBUF_WRITABLE)
    finally:
        PyBuffer_Release(&view)
    return at


# The collector would drop the buffer's owner without releasing the buffer.
@cython.no_gc_clear
@cython.final
cdef class Histogram:
    def __cinit__(self, bounds, memory=None, Py_ssize_t offset=0):
        self.bounds = tuple(bounds)
        self.bound_count = <int>len(self.bounds)
        if self.bound_count > MAX_BOUNDS:
            raise ValueError(f"{self.bound_count} bounds, at most {MAX_BOUNDS} are supported")
        cdef int i
        for i in range(self.bound_count):
            self.limits[i] = self.bounds[i]
            if i > 0 and self.limits[i] <= self.limits[i - 1]:
                raise ValueError("the bounds of a histogram must rise")
        cdef Py_ssize_t size = nbytes(self.bounds)
        cdef Py_ssize_t there = 0
        cdef char* at = borrow(bytearray(size) if memory is None else memory, &self.view, &there)
        if offset < 0 or size > there - offset:
            raise ValueError(f"a histogram of {size} bytes does not fit {there} bytes at {offset}")
        if (<uintptr_t>at + <uintptr_t>offset) % sizeof(int64_t) != 0:
            raise ValueError("the memory of a histogram must be aligned to 8 bytes")
        self.cells = <int64_t*>(at + offset)

    def __dealloc__(self):
        PyBuffer_Release(&self.view)

    cdef void count_in(self, int64_t value, int64_t times) noexcept nogil:
        cdef int low = 0
        cdef int high = self.bound_count
        cdef int middle
        if value < 0:
            value = 0
        while low < high:       # the first bucket whose bound is not below the value; the last one has no bound
            middle = (low + high) >> 1
            if value <= self.limits[middle]:
                high = middle
            else:
                low = middle + 1
        fastinfer_raise(&self.cells[0], value * times)
        fastinfer_raise(&self.cells[1 + low], times)

    def add(self, int64_t value, int64_t times=1):
        self.count_in(value, times)

    @property
    def sum(self):
        return fastinfer_read(&self.cells[0])

    @property
    def count(self):
        cdef int64_t total = 0
        cdef int i
        for i in range(self.bound_count + 1):
            total += fastinfer_read(&self.cells[1 + i])
        return total

    def counts(self):
        cdef int i
        return [fastinfer_read(&self.cells[1 + i]) for i in range(self.bound_count + 1)]

    def merge(self, Histogram other not None):
        cdef int i
        if other.bounds != self.bounds:
            raise ValueError("only histograms with equal bounds can be merged")
        for i in range(self.bound_count + 2):
            fastinfer_raise(&self.cells[i], fastinfer_read(&other.cells[i]))
