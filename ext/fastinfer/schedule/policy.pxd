from libc.stdint cimport int64_t

from fastinfer.schedule.queue cimport Group


cdef class Policy:
    # Returns how many of the oldest requests of a group to take now; or, as a negative number, in how many nanoseconds
    # to ask again. By default it calls the Python method `decide`.
    cdef int64_t ask(self, Group waiting, int64_t waited_ns) except? -1


# A batch that the policy is filling.
cdef struct Filling:
    Py_ssize_t count        # requests that fit
    int64_t total           # their rows
    Py_ssize_t preferred    # how many of the requests have exactly the largest preferred size; 0: none
    bint full


cdef class BatchingPolicy(Policy):
    cdef readonly int64_t max_batch_size
    cdef readonly tuple preferred_batch_size
    cdef readonly int64_t max_queue_delay_ns
    cdef bint _has_preferred

    cdef bint add(self, Filling* filling, int64_t rows) except -1
    cdef int64_t answer(self, const Filling* filling, int64_t waited_ns) noexcept
