from libcpp cimport bool as cbool
from libc.stdint cimport int64_t

from fastinfer.native.job cimport Job, PoolShare, Task

cdef extern from "fastinfer/native/pool.h" namespace "fastinfer" nogil:
    cdef cppclass Pool:
        int start(int threads)
        int fd()
        cbool submit(Task* task)
        Task* take_done()
        int queued()
        int running()
        int displaced()
        void demote_overlong(int64_t long_since_ns, int64_t overlong_since_ns, int normal, int most)
        Task* close()


# A scheduling class of an executor's threads (native/pool.h): one model's runs, or data work of one kind.
cdef class Share:
    cdef PoolShare share


cdef class Executor:
    cdef Pool* pool
    cdef readonly int threads
    cdef int _full_priority             # the number of overlong jobs that keep their priority
    cdef int _loop_fd                   # see native/interrupt.h
    cdef object _call_later             # the loop's; None: overlong jobs are not demoted
    cdef bint _watching
    # Shares of data work: jobs of about a millisecond, and longer ones.
    cdef readonly Share brief
    cdef readonly Share bulk
    # job -> (callback, share). Keeps both, and the memory that the job works on, until the callback was called. Changed
    # on the loop's thread only.
    cdef dict _jobs

    cpdef int submit(self, Job job, object done=*, Share share=*) except -1
    cpdef int drain(self) except -1
