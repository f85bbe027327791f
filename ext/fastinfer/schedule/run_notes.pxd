from libc.stdint cimport int64_t, uint64_t

from fastinfer.shared.crash_record cimport CrashSlot, NotedRun
from fastinfer.tensor.message cimport InferRequest


cdef class RunNotes:
    cdef readonly CrashSlot slot
    cdef uint64_t key           # of the model as it was loaded: other files, another key
    cdef uint64_t group
    cdef bytes label

    # Whether there are any suspects: else no request needs to be looked up.
    cdef bint armed(self) noexcept
    # NONE, SUSPECT (to be run alone), CULPRIT (not to be run) or WITHDRAWN (as the whole model).
    cdef int verdict(self, InferRequest request) noexcept
    # Nanoseconds until the model is no longer withdrawn; 0: it is not withdrawn.
    cdef int64_t withdrawn_ns(self) noexcept
    # Computed once per request.
    cdef uint64_t fingerprint_of(self, InferRequest request) noexcept
    # Notes a run, which begins with run_begins and ends with run_ends; then it is closed. NULL: there is no place.
    cdef NotedRun* open(self, list requests) noexcept
    cdef void close(self, NotedRun* run) noexcept
