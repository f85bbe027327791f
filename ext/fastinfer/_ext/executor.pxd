# Native threads that run Jobs, and tell the event loop of their ends.
# Lives here: hand-over and completion, on the loop's thread. Does not: what a job does.
#
# The threads have no Python state and never take the GIL; all Python references stay in `_jobs`.

from libcpp cimport bool as cbool
from libc.stdint cimport int64_t

from fastinfer._ext.job cimport Job

cdef extern from "pool.h" namespace "fastinfer" nogil:
    cdef cppclass Task:
        void (*work)(void* state) noexcept
        void* state
        void* owner
        int64_t started_ns
        int64_t ended_ns
        Task* next

    cdef cppclass Pool:
        int start(int threads)
        int fd()
        cbool submit(Task* task)
        Task* take_done()
        int queued()
        int running()
        Task* close()


cdef class Executor:
    cdef Pool* pool
    cdef readonly int threads
    cdef readonly int loop_fd           # see give_way.h
    # job -> what to call with it: keeps the job, and what it works on, until its end was told. In and out on the
    # loop's thread only.
    cdef dict _jobs

    cpdef int submit(self, Job job, object done=*) except -1
    cpdef int drain(self) except -1
