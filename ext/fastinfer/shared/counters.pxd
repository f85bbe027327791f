from cpython.buffer cimport Py_buffer
from libc.stdint cimport int64_t

cdef enum:
    MAX_BOUNDS = 64


# Returns the address and the size of writable memory; `held` keeps it in place. For a memoryview, `held` is a buffer of
# the viewed object: if the collector finds both in one cycle, it clears the memoryview first, and a buffer of the
# memoryview that is released after that ends the process.
cdef char* borrow(object memory, Py_buffer* held, Py_ssize_t* size) except NULL


cdef class Histogram:
    cdef readonly tuple bounds
    cdef int64_t[MAX_BOUNDS] limits     # a copy of the bounds, for the search
    cdef int bound_count
    cdef Py_buffer view                 # keeps the memory alive and in place
    cdef int64_t* cells                 # borrowed from view: the sum, then the count of each bucket

    # Counts `value` `times` times. Never fails; a negative value counts as 0.
    cdef void count_in(self, int64_t value, int64_t times) noexcept nogil


cdef enum:
    # The cause of a failure; also the index of its histogram in the block.
    BY_CLIENT = 0           # the request was wrong (4xx)
    BY_MODEL = 1            # the model failed (500)
    BY_TIMEOUT = 2
    REJECTED = 3            # the queue was full, or there was no memory for it
    CANCELLED = 4           # its client went away
    CAUSE_COUNT = 5

    EXACT_SIZES = 128       # batches of fewer rows have a line each, larger ones share one ...
    LARGER_SIZES = 24       # ... with all up to the next power of two
    LINE_CELLS = 4          # runs, and the nanoseconds of their three parts


cdef class Counters:
    cdef readonly Histogram success         # total time of requests that were answered with outputs
    cdef readonly Histogram queue
    cdef readonly Histogram compute_input
    cdef readonly Histogram compute_infer
    cdef readonly Histogram compute_output
    cdef readonly Histogram batch_size
    cdef readonly dict failures             # cause -> Histogram, in the order of the causes above
    cdef tuple _failures                    # the same by index
    cdef readonly object block              # memoryview of the whole block
    cdef int64_t* _lines                    # borrowed from the block, which the histograms hold; as the next five
    cdef int64_t* _answered_rows
    cdef int64_t* _last_inference_ms
    cdef int64_t* _overruns
    cdef int64_t* _withdrawn
    cdef int64_t* _version

    # Called once for a request.
    cdef void count_success(self, int64_t rows, int64_t total_ns, int64_t queue_ns, int64_t input_ns, int64_t infer_ns,
                            int64_t output_ns) noexcept
    cdef void count_failure(self, int cause, int64_t total_ns) noexcept
    # A request was refused because its model is withdrawn; its failure is counted as well.
    cdef void count_withdrawn(self) noexcept
    # A run on the loop's thread took much longer than expected.
    cdef void count_overrun(self) noexcept
    # A run has ended. `useful`: it gave outputs, and a request waited for them.
    cdef void count_run(self, int64_t rows, bint useful, int64_t input_ns, int64_t infer_ns,
                        int64_t output_ns) noexcept
