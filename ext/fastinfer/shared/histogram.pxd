# Counters in memory that is given from outside, so that other processes can read them while they run.
# Lives here: buckets, counts, sums. Does not: clocks, names, what is counted.
#
# One thread of one process writes a histogram (the loop's); anybody may read it. Cells are aligned 64-bit integers that
# are stored whole, so a reader sees every counter as it was at some moment, though not all at the same moment.

from cpython.buffer cimport Py_buffer
from libc.stdint cimport int64_t

cdef enum:
    MAX_BOUNDS = 64


# Where writable memory is, and how large; `held` keeps it there. Of a memoryview it holds the buffer of what is viewed:
# if the collector finds both in one cycle, it clears the memoryview first, and a buffer of it that is given back after
# that ends the process.
cdef char* borrow(object memory, Py_buffer* held, Py_ssize_t* size) except NULL


cdef class Histogram:
    cdef readonly tuple bounds
    cdef int64_t[MAX_BOUNDS] limits     # the bounds again, for the search
    cdef int bound_count
    cdef Py_buffer view                 # keeps the memory alive and in place
    cdef int64_t* cells                 # borrowed from view: the sum, then the count of each bucket

    # Counts `value` `times` times. Never fails; a negative value counts as 0.
    cdef void count_in(self, int64_t value, int64_t times) noexcept nogil
