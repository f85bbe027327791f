from libc.stdint cimport int64_t

cdef extern from "fastinfer/base/budget.h" namespace "fastinfer" nogil:
    cdef cppclass Count:
        void set_limit(int64_t limit) noexcept
        int64_t used() noexcept
        bint reserve(int64_t nbytes) noexcept
        void add(int64_t nbytes) noexcept
        void release(int64_t nbytes) noexcept
        bint spent() noexcept
        int64_t refused() noexcept


cdef class Budget:
    cdef Count count
    cdef readonly int64_t limit


cdef inline Count* count_of(Budget budget) noexcept:
    # For code without the GIL; NULL: bytes are not counted. The caller keeps the budget alive.
    if budget is None:
        return NULL
    return &budget.count
